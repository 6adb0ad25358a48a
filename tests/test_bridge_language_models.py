"""Bridges of a language model whose first position dwarfs the others, or whose values are thousands throughout."""

import importlib
from dataclasses import replace

import pytest
import torch
from test_bridge import hugging_face

from circuits.bridges import (
    BridgeConfig,
    Side,
    bridge_metrics,
    chain_losses,
    fit_bridges,
    identity_bridges,
    load_bridges,
)
from circuits.bridges.maps import put
from circuits.bridges.measure import position_0_share
from circuits.bridges.scales import least_squares, scale_of, stored_scales
from circuits.bridges.steering import steer
from circuits.model.checkpoint import load_checkpoint, save_checkpoint
from circuits.model.config import ModelConfig
from circuits.model.stored import save_stored
from circuits.model.transformer import SparseTransformer
from circuits.reading import UnreadableError
from circuits.training.config import TrainConfig
from tasks import load_task
from tasks.corpus import mini_corpus

fit_module = importlib.import_module("circuits.bridges.fit")
N_CTX = 128
SHAPE = ModelConfig(
    d_vocab=50, d_model=16, n_layers=2, n_heads=2, d_head=8, d_mlp=32, n_ctx=N_CTX, bigram=False
)
MAPS_ALONE = BridgeConfig(
    kl_dense_to_sparse=0.0, kl_sparse_to_dense=0.0, steps=1, batch_size=4, n_val=8, log_every=1
)
"""Errors of the maps are all that is learned from, which takes no hybrid passes."""
WHOLE = BridgeConfig(steps=2, batch_size=4, n_val=4, log_every=1)


@pytest.fixture(scope="module")
def text():
    return mini_corpus(n_train_lines=600, n_val_lines=100)


def language_model(*, at_0: float = 1000.0, everywhere: float = 1.0):
    """A GPT-2 whose embedding of position 0, or whose whole stream, is so many times as large as it starts."""
    model = hugging_face(n_ctx=N_CTX)
    body = model.original_model.transformer
    with torch.no_grad():
        body.wpe.weight[0] *= at_0
        for weight in (body.wpe.weight, body.wte.weight):
            weight *= everywhere
    return model


@pytest.fixture(scope="module")
def dense():
    return language_model()


@pytest.fixture(scope="module")
def sparse():
    return SparseTransformer(SHAPE, seed=1)


@pytest.fixture(scope="module")
def bridges(dense, sparse, text):
    return fit_bridges(dense, sparse, text, replace(WHOLE, first=1), progress=False)


@pytest.fixture
def tokens(text):
    return text.windows(4, N_CTX, split="val", generator=torch.Generator().manual_seed(5))


def after(n: int, dense, sparse, text, config: BridgeConfig):
    """The fit after `n` steps of a config of many, and its bridges then."""
    fit = fit_module._Fit(Side(dense, "dense"), sparse, text, replace(config, steps=100))
    for _ in range(n):
        fit.one_step()
    return fit.result()


def errors(bridges) -> list[float]:
    rows = bridges.metrics["locations"]
    return [bridges.summary()[f"max_nmse_{way}"] for way in ("encode", "decode")] if rows else []


# Passes.


class Passes:
    """Forward passes of a wrapped model."""

    def __init__(self, model) -> None:
        self.n = 0
        model.original_model.register_forward_hook(self._count)

    def _count(self, *_) -> None:
        self.n += 1

    def since(self) -> int:
        n, self.n = self.n, 0
        return n


@pytest.mark.parametrize("n_layers", [1, 5])
def test_a_wrapped_model_is_run_no_more_often_than_asked_however_deep_it_is(n_layers, tmp_path):
    model = hugging_face(n_layers=n_layers)
    passes, other = Passes(model), SparseTransformer(replace(SHAPE, n_ctx=24, n_layers=n_layers))
    tokens = torch.zeros(2, 8, dtype=torch.int64)
    side = Side(model, "dense")
    assert passes.since() == 0
    assert len(side.locations) == len(side.locations) == 2 * n_layers + 1
    assert passes.since() == 1
    side.run(tokens, keep=side.locations)
    assert passes.since() == 1
    made = replace(identity_bridges(other), dense=model)
    path = made.save(tmp_path / "bridges.safetensors")
    assert passes.since() == 0
    made.hybrid(tokens, "embed")
    assert passes.since() == 2  # one is the check
    for start in ("dense", "sparse"):
        made.hybrid(tokens, "0.mlp", start=start)
        assert passes.since() == 1
    loaded = load_bridges(path, dense=model, sparse=other)
    assert passes.since() == 1
    loaded.fingerprints()
    assert passes.since() == 0


def test_a_model_with_another_point_after_attention_has_none():
    """One layer out of three is enough, whose residual stream is not where the arithmetic says."""
    model = hugging_face(n_layers=3)
    model.blocks[1].hook_resid_mid.add_hook(lambda x, hook: x + 1)
    found = Side(model, "dense").locations
    assert found == ("embed", "0.mlp", "1.mlp", "2.mlp")


def test_looking_at_a_stream_changes_no_bit_of_a_pass(dense, tokens):
    side = Side(dense, "dense")
    plain = dense(tokens)
    assert torch.equal(side.run(tokens, keep=side.locations)[0], plain)
    same = {place: lambda x: x for place in side.locations}
    assert torch.equal(side.run(tokens, replace=same)[0], plain)


# Positions that bridges leave alone.


def test_share_of_position_0_by_hand():
    real = torch.ones(1, 2, dtype=torch.bool)
    assert float(position_0_share(torch.tensor([[[0.0], [2.0]]]), real)) == 0.5
    three = torch.tensor([[[4.0, 0.0], [1.0, 0.0], [1.0, 0.0], [99.0, 99.0]]])  # deviations 2, -1, -1
    real = torch.tensor([[True, True, True, False]])
    assert float(position_0_share(three, real)) == pytest.approx(4 / 6)
    assert float(position_0_share(torch.ones(2, 3, 4), torch.ones(2, 3, dtype=torch.bool))) == 0


def test_errors_say_nothing_where_position_0_holds_the_sum_of_squares(dense, sparse, text, tokens):
    """Without `first` they look like those of any fit, while the maps are of no use at every position but one."""
    blind = fit_bridges(dense, sparse, text, MAPS_ALONE, progress=False)
    assert all(row["position_0_share_dense"] > 0.99 for row in blind.metrics["locations"])
    assert blind.summary()["max_position_0_share"] > 0.99
    assert blind.summary()["max_nmse_decode"] < 0.9
    from_1 = bridge_metrics(replace(blind, first=1), tokens)["locations"]
    assert max(row["nmse_decode"] for row in from_1) > 100
    seeing = fit_bridges(dense, sparse, text, replace(MAPS_ALONE, first=1), progress=False)
    from_1 = bridge_metrics(seeing, tokens)["locations"]
    assert max(row["nmse_decode"] for row in from_1) < 0.9
    assert seeing.summary()["max_position_0_share"] > 0.99  # of the model, whatever `first` is


def test_a_fit_that_leaves_position_0_alone_gets_better_from_its_start(dense, sparse, text):
    config = replace(MAPS_ALONE, first=1, batch_size=8, n_val=32)
    start, one, some = (after(n, dense, sparse, text, config) for n in (0, 1, 30))
    for was, then, now in zip(errors(start), errors(one), errors(some), strict=True):
        assert then < 1.01 * was
        assert now < was


@pytest.mark.parametrize("first", [0, 1, 3])
def test_hybrids_keep_what_comes_before(bridges, tokens, first):
    found = replace(bridges, first=first)
    for start, end in (("dense", found.sparse), ("sparse", found.dense)):
        plain = end(tokens)
        for pair in found.pairs:
            hybrid = found.hybrid(tokens, pair, start=start)
            assert torch.equal(hybrid[:, :first], plain[:, :first])
            assert not torch.allclose(hybrid[:, first], plain[:, first])
    there_and_back = found.hybrid(tokens, "embed", "0.mlp")
    assert torch.equal(there_and_back[:, :first], found.dense(tokens)[:, :first])


def test_a_hybrid_by_hand(bridges, tokens):
    dense, sparse = bridges.sides["dense"], bridges.sides["sparse"]
    pair, maps = bridges.at("0.mlp")
    theirs = dense.run(tokens, keep=[pair.dense])[1][pair.dense]
    value = sparse.run(tokens, keep=[pair.sparse])[1][pair.sparse].clone()
    value[:, 1:] = maps.encode(theirs)[:, 1:]
    by_hand, _ = sparse.run(tokens, replace={pair.sparse: put(value)})
    assert torch.equal(bridges.hybrid(tokens, pair), by_hand)


@torch.no_grad()
def test_metrics_take_errors_and_means_from_what_is_carried(bridges, tokens):
    pair, maps = bridges.at("0.mlp")
    assert pair == ("0.mlp", "0.mlp")
    row = next(r for r in bridge_metrics(bridges, tokens)["locations"] if r["location"] == str(pair))
    sides = bridges.sides
    theirs, ours = (sides[r].run(tokens, keep=["0.mlp"])[1]["0.mlp"] for r in ("dense", "sparse"))
    wrong = (maps.decode(ours) - theirs)[:, 1:].square().sum()
    mean = theirs[:, 1:].mean(dim=(0, 1))
    assert row["nmse_decode"] == pytest.approx(float(wrong / (theirs[:, 1:] - mean).square().sum()), rel=1e-4)
    held = theirs.clone()
    held[:, 1:] = mean
    ablated = dense_loss(sides["dense"].run(tokens, replace={"0.mlp": put(held)})[0], tokens)
    assert row["ablated_sparse_to_dense"] == pytest.approx(ablated, rel=1e-5)
    assert chain_losses(bridges, tokens).diagonal().isfinite().all()


def dense_loss(logits: torch.Tensor, tokens: torch.Tensor) -> float:
    return float(torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()))


def test_padding_and_positions_left_alone_add_up(bridges, tokens):
    lengths = torch.tensor([N_CTX, 60, 40, 2])
    otherwise = torch.where(torch.arange(N_CTX) < lengths[:, None], tokens, (tokens + 7) % 50)
    one, other = (bridge_metrics(bridges, t, lengths=lengths)["locations"] for t in (tokens, otherwise))
    for a, b in zip(one, other, strict=True):
        assert a["nmse_decode"] == pytest.approx(b["nmse_decode"], rel=1e-4)
        assert a["position_0_share_dense"] == pytest.approx(b["position_0_share_dense"], rel=1e-4)
    with pytest.raises(ValueError, match="tokens: got texts of at most 2 tokens; expected more than 2"):
        bridge_metrics(replace(bridges, first=2), tokens, lengths=torch.full((4,), 2))


def test_a_move_leaves_positions_alone_too():
    model = SparseTransformer(replace(SHAPE, bigram=True), tokenizer=load_task("quotes").tokenizer)
    batch = load_task("quotes").batch(2, split="test", seed=0)
    longest = int(batch.lengths.max())
    options = dict(strengths=(0.0, 1.0), amount=3.0, n_controls=1)
    moved, still = (
        steer(replace(identity_bridges(model), first=first), batch, "0.mlp", [1], **options).steered.p_foil
        for first in (1, longest)
    )
    assert torch.equal(still[0], still[1])
    assert not torch.equal(moved[0], moved[1])


def test_positions_are_part_of_the_file_and_older_files_leave_none_alone(bridges, tokens, tmp_path):
    path = bridges.save(tmp_path / "bridges.safetensors")
    loaded = load_bridges(path, dense=bridges.dense, sparse=bridges.sparse)
    assert loaded.first == 1
    assert torch.equal(loaded.hybrid(tokens, "0.attn"), bridges.hybrid(tokens, "0.attn"))
    load = {"dense": bridges.dense, "sparse": bridges.sparse}
    assert load_bridges(with_first(bridges, tmp_path / "old", None), **load).first == 0
    for wrong in (-1, 1.5, "1", True, N_CTX, 2**40):
        with pytest.raises(UnreadableError, match="first: got"):
            load_bridges(with_first(bridges, tmp_path / "wrong", wrong), **load)


def with_first(bridges, path, first):
    """Bridges saved as an older version did (None), or with another value."""
    header = {
        "schema": "sparse-circuits/bridges/1",
        "fingerprints": bridges.fingerprints(),
        "pairs": [list(pair) for pair in bridges.pairs],
        "topk_fraction": bridges.topk_fraction,
        "metrics": {},
        "history": [],
    }
    return save_stored(
        path, bridges.maps.state_dict(), header if first is None else {**header, "first": first}
    )


def test_bridges_need_a_position(dense, sparse, text):
    for first in (N_CTX, 10**6):
        with pytest.raises(
            ValueError, match=f"first: got {first}; expected at most 127, since .* 128 .*Lower it: 1"
        ):
            fit_bridges(dense, sparse, text, replace(MAPS_ALONE, first=first), progress=False)
    with pytest.raises(ValueError, match="first: got -1; expected a whole number of at least 0"):
        BridgeConfig(first=-1)


# Scale.


def test_a_step_is_relative_to_the_spread_of_values(sparse, text, monkeypatch):
    """Where a location holds thousands and the other one hundredths, one step would throw the start away."""
    large = language_model(at_0=1.0, everywhere=1e5)
    start, one = (errors(after(n, large, sparse, text, MAPS_ALONE))[0] for n in (0, 1))
    assert one < 1.01 * start
    monkeypatch.setattr(fit_module, "scale_of", lambda values: 1.0)
    assert errors(after(1, large, sparse, text, MAPS_ALONE))[0] > 100 * start


@pytest.mark.parametrize("first", [0, 1])
def test_a_regression_start_is_the_exact_one(dense, sparse, text, first):
    fit = fit_module._Fit(Side(dense, "dense"), sparse, text, replace(MAPS_ALONE, first=first))
    tokens = text.windows(64, N_CTX, split="train", generator=torch.Generator().manual_seed(0))
    maps = fit.scales.folded(fit.maps)
    assert set(fit.scales.dense) != {1.0}
    for i, pair in enumerate(fit.pairs):
        with torch.no_grad():
            theirs, ours = (
                side.run(tokens, keep=[place])[1][place][:, first:].flatten(0, 1)
                for side, place in ((fit.dense, pair.dense), (fit.sparse, pair.sparse))
            )
        for linear, x, y in ((maps[i].encoder, theirs, ours), (maps[i].decoder, ours, theirs)):
            weight, bias = least_squares(x, y)
            assert torch.equal(linear.weight, weight)
            assert torch.equal(linear.bias, bias)


def test_folded_maps_are_the_ones_that_learned(dense, sparse, text, tokens):
    fit = fit_module._Fit(Side(dense, "dense"), sparse, text, replace(MAPS_ALONE, first=1))
    fit.one_step()
    values, maps = fit.dense.run(tokens, keep=["0.mlp"])[1]["0.mlp"], fit.scales.folded(fit.maps)
    assert torch.equal(maps[2].encode(values), fit.scales.encode(2, fit.maps[2], values))
    back = torch.randn(2, 3, 16)
    assert torch.equal(maps[2].decode(back), fit.scales.decode(2, fit.maps[2], back))


def test_scales_are_powers_of_two():
    values = torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(0))
    assert scale_of(values) == 1
    assert scale_of(100 * values + 1e4) == 128
    assert scale_of(0.01 * values) == 2**-7
    assert scale_of(torch.full((2, 3, 4), 7.0)) == 1


@pytest.mark.parametrize("beside", [False, True])
def test_an_interrupted_fit_keeps_its_scales(beside, dense, sparse, text, tmp_path):
    train = TrainConfig(model=SHAPE, steps=3, batch_size=2, n_val=4, density=0.5)
    config = replace(WHOLE, first=1, steps=3, hybrids_per_step=1)
    arguments = (Side(dense, "dense"), train if beside else sparse, text, config)
    whole, half, taken_up = (fit_module._Fit(*arguments) for _ in range(3))
    half.one_step()
    path = half.save(tmp_path / "half.safetensors")
    taken_up.scales = None
    taken_up.restore(path)
    for fit, n in ((whole, 3), (taken_up, 2)):
        for _ in range(n):
            fit.one_step()
    for a, b in zip(whole.result().maps.parameters(), taken_up.result().maps.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_fit_from_before_there_were_scales_goes_on_without(dense, sparse, text, tmp_path):
    config = replace(MAPS_ALONE, steps=3)
    fit = fit_module._Fit(Side(dense, "dense"), sparse, text, config)
    left = load_checkpoint(fit.save(tmp_path / "left.safetensors"))
    del left.meta["scales"], left.meta["fit"]["bridge"]["first"]
    older = save_checkpoint(tmp_path / "older.safetensors", left.model, meta=left.meta, extra=left.extra)
    fit.restore(older)
    assert set(fit.scales.dense + fit.scales.sparse) == {1.0}


@pytest.mark.parametrize(
    "wrong",
    [
        [],
        {},
        {"dense": [1.0], "sparse": [1.0]},
        {"dense": [1.0, 0.0], "sparse": [1.0, 1.0]},
        {"dense": [1.0, -2.0], "sparse": [1.0, 1.0]},
        {"dense": [1.0, 3.0], "sparse": [1.0, 1.0]},
        {"dense": [1.0, float("inf")], "sparse": [1.0, 1.0]},
        {"dense": ["1", 1.0], "sparse": [1.0, 1.0]},
        {"dense": [1.0, 1.0], "sparse": [1.0, 1.0], "more": []},
    ],
)
def test_what_are_no_scales_is_refused(wrong):
    with pytest.raises(ValueError, match="scales"):
        stored_scales(wrong, 2)


# A large vocabulary.


def test_a_bigram_table_that_would_not_fit_is_refused():
    said = r"bigram: got True with d_vocab=49152; .* at most 4 GB, .* 9\.7 GB\. Pass bigram=False.* 31,622 tokens"
    with pytest.raises(ValueError, match=said):
        ModelConfig(d_vocab=49_152)
    with pytest.raises(ValueError, match=said):
        TrainConfig.from_json({"model": {"d_vocab": 49_152}})
    assert ModelConfig(d_vocab=49_152, bigram=False).d_vocab == 49_152
    assert ModelConfig(d_vocab=31_622).bigram
