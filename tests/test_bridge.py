"""Bridges: identities that must hold exactly, bad input, and a fit that recovers what a mean ablation loses."""

import importlib
import os
import signal
from dataclasses import replace

import pytest
import torch

from circuits.bridges import (
    BridgeConfig,
    Pair,
    Side,
    bridge_metrics,
    chain_losses,
    fit_bridges,
    identity_bridges,
    load_bridges,
    locations,
)
from circuits.bridges.scales import least_squares
from circuits.model.checkpoint import load_checkpoint, save_checkpoint
from circuits.model.config import ModelConfig
from circuits.model.transformer import SparseTransformer
from circuits.training.config import TrainConfig
from circuits.training.loop import train
from circuits.training.losses import kl_per_token, nmse
from circuits.training.numbered import Keep, Numbered
from circuits.training.steps import TrainingInterrupted
from tasks.corpus import mini_corpus
from tasks.tokenizer import CharTokenizer

fit_module = importlib.import_module("circuits.bridges.fit")
updates_module = importlib.import_module("circuits.training.updates")
SMALL = ModelConfig(d_vocab=50, d_model=16, n_layers=2, n_heads=2, d_head=8, d_mlp=32, n_ctx=24)
QUICK = TrainConfig(
    model=SMALL, steps=16, batch_size=8, n_val=16, density=0.3, val_every=60, lr=1e-2, weight_decay=0.01
)


@pytest.fixture(scope="module")
def text():
    return mini_corpus(n_train_lines=3000, n_val_lines=300)


@pytest.fixture(scope="module")
def dense(text):
    return train(
        TrainConfig.dense(model=SMALL, steps=30, batch_size=8, n_val=16), corpus=text, progress=False
    ).model


@pytest.fixture(scope="module")
def sparse(text):
    return train(QUICK, corpus=text, progress=False).model


@pytest.fixture(scope="module")
def bridges(dense, sparse, text):
    return fit_bridges(
        dense,
        sparse,
        text,
        BridgeConfig(steps=12, batch_size=8, n_val=32, log_every=1, topk_fraction=None),
        progress=False,
    )


@pytest.fixture
def tokens(text):
    return text.windows(4, 24, split="val", generator=torch.Generator().manual_seed(5))


def hugging_face(
    kind: str = "gpt2", *, n_layers: int = 2, d_vocab: int = 50, n_ctx: int = 24, reverse: bool = False
):
    """A small Hugging Face model with mini-Python's tokenizer, behind a TransformerBridge; no download."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import (
        GPT2Config,
        GPT2LMHeadModel,
        LlamaConfig,
        LlamaForCausalLM,
        PreTrainedTokenizerFast,
    )

    symbols = CharTokenizer().symbols[::-1] if reverse else CharTokenizer().symbols
    words = Tokenizer(models.WordLevel({symbol: i for i, symbol in enumerate(symbols)}, unk_token=" "))
    words.pre_tokenizer = pre_tokenizers.Split(Regex(r"\]\]|[\s\S]"), "isolated")
    words.decoder = decoders.Fuse()
    torch.manual_seed(0)
    if kind == "gpt2":
        shape = GPT2Config(vocab_size=d_vocab, n_positions=n_ctx, n_embd=16, n_layer=n_layers, n_head=2)
        model, name = GPT2LMHeadModel(shape), "gpt2"
    else:
        shape = LlamaConfig(
            vocab_size=d_vocab,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=n_layers,
            num_attention_heads=2,
            max_position_embeddings=n_ctx,
        )
        model, name = LlamaForCausalLM(shape), "meta-llama/Llama-2-7b-hf"
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="\n", pad_token="\n")
    return TransformerBridge.boot_transformers(name, hf_model=model, tokenizer=tokenizer, device="cpu").eval()


def test_locations_are_named_in_forward_order():
    assert locations(2) == ("embed", "0.attn", "0.mlp", "1.attn", "1.mlp")


def test_identity_bridges_give_the_plain_logits_at_every_location(tokens):
    model = SparseTransformer(SMALL)
    bridges = identity_bridges(model)
    plain = model(tokens)
    for place in locations(2):
        for start in ("dense", "sparse"):
            assert (bridges.hybrid(tokens, place, start=start) - plain).abs().max() < 1e-5
    chain = bridges.hybrid(tokens, "embed", "0.attn", "0.attn", "1.attn", start="sparse")
    assert (chain - plain).abs().max() < 1e-5


def test_identity_bridges_lose_nothing(tokens):
    model = SparseTransformer(SMALL)
    metrics = bridge_metrics(identity_bridges(model), tokens)
    for row in metrics["locations"]:
        assert row["nmse_encode"] == pytest.approx(0, abs=1e-6)
        assert row["loss_dense_to_sparse"] == pytest.approx(metrics["loss_dense"], abs=1e-5)


@pytest.mark.parametrize("kind", ["ours", "gpt2", "llama"])
def test_a_replaced_location_decides_everything_after_it(kind, tokens):
    model = SparseTransformer(replace(SMALL, bigram=False)) if kind == "ours" else hugging_face(kind)
    side = Side(model, "dense")
    assert side.locations == locations(2)
    value = torch.randn(4, 24, 16)
    plain, kept = side.run(tokens, keep=side.locations)
    for place in side.locations:
        edit = {place: lambda x: value}
        first, second = (side.run(t, replace=edit)[0] for t in (tokens, (tokens + 1) % 50))
        assert torch.allclose(first, second, atol=1e-5)
        same, _ = side.run(tokens, replace={place: lambda x, place=place: kept[place]})
        assert torch.allclose(same, plain, atol=1e-5)
    assert torch.equal(side.run(tokens)[0], model(tokens))


def test_nmse_and_kl_by_hand():
    target = torch.tensor([[1.0, 0.0], [3.0, 0.0]])
    assert nmse(target, target) == 0
    assert nmse(torch.tensor([[2.0, 0.0], [2.0, 0.0]]), target) == 1
    p = torch.tensor([[[0.5, 0.5]]])
    q = torch.tensor([[[0.25, 0.75]]])
    assert float(kl_per_token(p.log(), q.log())) == pytest.approx(
        0.5 * torch.tensor(4 / 3).log().item(), abs=1e-6
    )


def test_least_squares_finds_an_affine_map():
    x = torch.randn(50, 3)
    weight, bias = least_squares(x, x @ torch.arange(6.0).view(3, 2) + 1)
    assert torch.allclose(weight, torch.arange(6.0).view(3, 2), atol=1e-2)
    assert torch.allclose(bias, torch.ones(2), atol=1e-2)


def test_fitting_recovers_more_than_mean_ablation(bridges):
    for row in bridges.metrics["locations"]:
        assert row["nmse_encode"] < 1
        assert row["nmse_decode"] < 0.9
    assert bridges.summary()["min_recovered_sparse_to_dense"] > 0


def test_fitting_lowers_the_loss_of_random_maps(dense, sparse, text):
    config = BridgeConfig(
        init="random", steps=12, batch_size=8, lr=1e-2, n_val=4, log_every=1, hybrids_per_step=1
    )
    history = fit_bridges(dense, sparse, text, config, progress=False).history
    assert history[-1]["nmse_decode"] < 0.9 * history[0]["nmse_decode"]
    assert history[-1]["nmse_encode"] < history[0]["nmse_encode"]


def test_encoders_keep_a_fraction(dense, sparse, text):
    config = BridgeConfig(steps=1, batch_size=4, n_val=4, topk_fraction=0.25)
    _, maps = fit_bridges(dense, sparse, text, config, progress=False).at("0.mlp")
    assert maps.encode(torch.randn(5, 16)).count_nonzero(dim=-1).max() == 4


def test_the_two_models_are_left_alone(dense, sparse, text):
    before = dense.fingerprint(), sparse.fingerprint(), dense.training
    fit_bridges(dense, sparse, text, BridgeConfig(steps=2, batch_size=4, n_val=4), progress=False)
    assert (dense.fingerprint(), sparse.fingerprint(), dense.training) == before
    assert all(parameter.requires_grad for parameter in dense.parameters())


def test_same_arguments_same_bits(dense, sparse, text):
    config = BridgeConfig(steps=3, batch_size=4, n_val=4, hybrids_per_step=2)
    first, second = (fit_bridges(dense, sparse, text, config, progress=False) for _ in range(2))
    for a, b in zip(first.maps.parameters(), second.maps.parameters(), strict=True):
        assert torch.equal(a, b)
    assert first.metrics == second.metrics


@pytest.mark.slow
def test_sparse_side_trained_beside_under_its_projection(dense, text):
    before = dense.fingerprint()
    bridges = fit_bridges(
        dense, QUICK, text, BridgeConfig(n_val=16, log_every=1, hybrids_per_step=2), progress=False
    )
    again = fit_bridges(
        dense, QUICK, text, BridgeConfig(n_val=16, log_every=1, hybrids_per_step=2), progress=False
    )
    assert bridges.sparse.fingerprint() == again.sparse.fingerprint()
    assert dense.fingerprint() == before
    assert bridges.sparse.density() <= 0.3
    assert bridges.history[-1]["cross_entropy"] < bridges.history[0]["cross_entropy"]
    assert all(
        torch.isfinite(torch.tensor(row["recovered_dense_to_sparse"])) for row in bridges.metrics["locations"]
    )


def signalled(function, at_call: int):
    """`function`, sent Ctrl-C at the start of one of its calls; the step that it is part of must still be finished."""
    calls = 0

    def wrapped(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == at_call:
            os.kill(os.getpid(), signal.SIGINT)
        return function(*args, **kwargs)

    return wrapped


def with_older_names(path):
    """Write an interrupted fit as an earlier version did, where it holds the settings of a training run."""
    left = load_checkpoint(path)
    if isinstance(settings := left.meta["fit"]["sparse"], dict):
        settings["grad"], settings["gradient"] = (
            settings.pop("weight_gradient"), settings.pop("gradient_scaling")
        )  # fmt: skip
        del settings["accumulate"], settings["precision"]
        save_checkpoint(path, left.model, meta=left.meta, extra=left.extra)


# Name: who is patched, which function, at which of its calls, and whether the sparse model trains beside.
PLACES = {
    "trained beside, before a step": (fit_module._Fit, "one_step", 4, True),
    "trained beside, in a forward pass": (SparseTransformer, "forward", 21, True),  # six a step
    "trained beside, before the projection": (updates_module, "project", 4, True),
    "fixed, before a step": (fit_module._Fit, "one_step", 4, False),
    "fixed, in a forward pass": (SparseTransformer, "forward", 23, False),  # two come before the first step
}


SLOW = {name for name, (_, _, _, beside) in PLACES.items() if beside}


@pytest.mark.parametrize(
    "place", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in PLACES]
)
def test_ctrl_c_leaves_a_file_from_which_the_same_bits_follow(
    place, dense, sparse, text, tmp_path, monkeypatch
):
    owner, name, call, beside = PLACES[place]
    other = QUICK if beside else sparse
    config = BridgeConfig(steps=6, batch_size=4, n_val=4, log_every=1, hybrids_per_step=2)
    whole = fit_bridges(dense, other, text, config, progress=False)
    path, before = tmp_path / "stopped.safetensors", signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, signalled(getattr(owner, name), call))
        with pytest.raises(TrainingInterrupted, match="resume from") as stopped:
            fit_bridges(dense, other, text, config, checkpoint=path, progress=False)
    assert stopped.value.path == path
    assert load_checkpoint(path).meta["step"] == 4
    assert signal.getsignal(signal.SIGINT) is before
    with pytest.raises(ValueError, match="resume: .* is no interrupted fit of these"):
        fit_bridges(dense, other, text, replace(config, seed=1), resume=path, progress=False)
    with_older_names(path)
    again = fit_bridges(dense, other, text, config, resume=path, progress=False)
    assert again.metrics == whole.metrics
    assert again.history == whole.history
    assert again.sparse.fingerprint() == whole.sparse.fingerprint()
    for a, b in zip(again.maps.parameters(), whole.maps.parameters(), strict=True):
        assert torch.equal(a, b)


class Killed(BaseException):
    """Ends a fit as no handler sees it."""


def test_a_killed_fit_goes_on_from_its_newest_good_checkpoint(dense, sparse, text, tmp_path, monkeypatch):
    config = BridgeConfig(steps=6, batch_size=4, n_val=4, log_every=1, hybrids_per_step=2)
    whole = fit_bridges(dense, sparse, text, config, progress=False)
    numbered, one_step = Numbered(tmp_path / "kept", Keep(steps=2)), fit_module._Fit.one_step

    def killed(fit) -> None:
        if fit.step == 5:
            raise Killed
        one_step(fit)

    with monkeypatch.context() as patch:
        patch.setattr(fit_module._Fit, "one_step", killed)
        with pytest.raises(Killed):
            fit_bridges(dense, sparse, text, config, numbered=numbered, progress=False)
    first, last = numbered.files()
    assert (first.name, last.name) == ("step-000000002.safetensors", "step-000000004.safetensors")
    last.write_bytes(b"")
    with pytest.warns(UserWarning, match="step-000000004.safetensors is passed over"):
        again = fit_bridges(
            dense, sparse, text, config, resume=numbered.files(), numbered=numbered, progress=False
        )
    assert again.metrics == whole.metrics
    for a, b in zip(again.maps.parameters(), whole.maps.parameters(), strict=True):
        assert torch.equal(a, b)
    assert fit_bridges(dense, sparse, text, config, resume=[], progress=False).metrics == whole.metrics


def test_a_fit_takes_whole_batches_in_float32_only(dense, text):
    for change in ({"accumulate": 2}, {"precision": "bfloat16"}):
        (name,) = change
        with pytest.raises(ValueError, match=f"{name}: got .*all that a fit of bridges does"):
            fit_bridges(dense, replace(QUICK, **change), text, progress=False)


def test_coefficients_switch_terms_off(dense, sparse, text):
    off = dict(kl_dense_to_sparse=0.0, kl_sparse_to_dense=0.0, nmse_encode=0.0)
    config = BridgeConfig(steps=2, batch_size=4, n_val=4, init="random", **off)
    fitted = fit_bridges(dense, sparse, text, config, progress=False)
    start = fit_bridges(dense, sparse, text, replace(config, nmse_decode=0.0), progress=False)
    same = [
        torch.equal(a.encoder.weight, b.encoder.weight) for a, b in zip(fitted.maps, start.maps, strict=True)
    ]
    moved = [
        torch.equal(a.decoder.weight, b.decoder.weight) for a, b in zip(fitted.maps, start.maps, strict=True)
    ]
    assert all(same)
    assert not any(moved)


def test_unequal_depths_and_widths(dense, text, tokens):
    deep = SparseTransformer(replace(SMALL, n_layers=3, d_model=24), seed=1)
    with pytest.raises(ValueError, match=r"pairs: got None.*2\.mlp"):
        fit_bridges(dense, deep, text, progress=False)
    pairs = (Pair("embed", "embed"), Pair("0.mlp", "1.attn"), Pair("1.mlp", "2.mlp"))
    config = BridgeConfig(pairs=pairs, steps=2, batch_size=4, n_val=4)
    bridges = fit_bridges(dense, deep, text, config, progress=False)
    assert bridges.hybrid(tokens, "0.mlp~1.attn", "2.mlp").shape == (4, 24, 50)
    assert BridgeConfig.from_json(config.to_json()) == config


def test_chain_losses_fill_the_upper_triangle(bridges, tokens):
    losses = chain_losses(bridges, tokens)
    upper = torch.ones(5, 5, dtype=torch.bool).triu()
    assert losses[upper].isfinite().all()
    assert losses[~upper].isnan().all()


def test_saved_bridges_are_the_same_and_refuse_other_models(bridges, dense, sparse, tokens, tmp_path):
    path = bridges.save(tmp_path / "bridges.safetensors")
    loaded = load_bridges(path, dense=dense, sparse=sparse)
    assert torch.equal(loaded.hybrid(tokens, "0.mlp"), bridges.hybrid(tokens, "0.mlp"))
    assert loaded.metrics == bridges.metrics
    assert not list(tmp_path.glob("*.partial"))
    with pytest.raises(ValueError, match=r"dense: the bridges of .* belong to dense model"):
        load_bridges(path, dense=SparseTransformer(SMALL), sparse=sparse)
    with pytest.raises(ValueError, match="sparse: the bridges"):
        load_bridges(path, dense=dense, sparse=SparseTransformer(SMALL))
    (tmp_path / "junk").write_bytes(b"junk")
    with pytest.raises(ValueError, match="cannot be read as bridges"):
        load_bridges(tmp_path / "junk", dense=dense, sparse=sparse)


def test_hybrids_refuse_what_cannot_be(bridges, tokens):
    with pytest.raises(ValueError, match=r"location: got '7\.mlp'"):
        bridges.hybrid(tokens, "7.mlp")
    with pytest.raises(ValueError, match="before it was entered"):
        bridges.hybrid(tokens, "0.mlp", "embed")


def test_bad_input_is_refused(dense, sparse, text):
    with pytest.raises(ValueError, match=r"pairs: got '2\.mlp' for the dense model"):
        fit_bridges(dense, sparse, text, BridgeConfig(pairs=(Pair("2.mlp", "1.mlp"),)), progress=False)
    with pytest.raises(ValueError, match="sparse: got a model of 51 tokens; expected 50"):
        fit_bridges(dense, SparseTransformer(replace(SMALL, d_vocab=51)), text, progress=False)
    other = CharTokenizer(name="other", symbols=CharTokenizer().symbols[::-1])
    with pytest.raises(ValueError, match="dense: got the text .mini., of the tokenizer .mini-char"):
        fit_bridges(SparseTransformer(SMALL, tokenizer=other), sparse, text, progress=False)
    with pytest.raises(ValueError, match="dense: got a Linear; expected a SparseTransformer or a Transf"):
        fit_bridges(torch.nn.Linear(2, 2), sparse, text, progress=False)
    broken = SparseTransformer(SMALL)
    with torch.no_grad():
        broken.linear(1, "W_in").weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"dense model's activations at '1\.mlp' hold NaN"):
        fit_bridges(broken, sparse, text, progress=False)


@pytest.mark.parametrize(
    ("field", "value"), [("steps", 0), ("topk_fraction", 0.0), ("lr", -1.0), ("nmse_decode", -1.0)]
)
def test_bad_settings_are_refused(field, value):
    with pytest.raises(ValueError, match=f"{field}: got"):
        BridgeConfig(**{field: value})


def test_a_hugging_face_model_as_the_dense_side(sparse, text, tmp_path):
    dense = hugging_face()
    before = Side(dense, "dense").fingerprint()
    dense.train()
    optimizer = torch.optim.Adam(dense.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(0)
    for _ in range(10):
        loss = dense(text.windows(8, 24, split="train", generator=generator), return_type="loss")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    dense.eval()
    trained = Side(dense, "dense").fingerprint()
    assert trained != before
    bridges = fit_bridges(dense, sparse, text, BridgeConfig(steps=6, batch_size=8, n_val=16), progress=False)
    assert Side(dense, "dense").fingerprint() == trained
    assert len(bridges.pairs) == 5
    assert bridges.summary()["max_nmse_decode"] < 1
    path = bridges.save(tmp_path / "bridges.safetensors")
    load_bridges(path, dense=dense, sparse=sparse)
    with pytest.raises(ValueError, match="dense: got the text .mini., of the tokenizer .mini-char"):
        fit_bridges(hugging_face(reverse=True), sparse, text, progress=False)


def test_the_experiments_make_their_models_once(tmp_path):
    from docs.experiments.bridge_models import BridgeSetup, prepare

    shape = replace(SMALL, n_layers=1)
    setup = BridgeSetup(
        dense=TrainConfig.dense(model=shape, steps=2, batch_size=4, n_val=4),
        sparse=replace(QUICK, model=shape, steps=2, batch_size=4, n_val=4),
        bridge=BridgeConfig(steps=2, batch_size=4, n_val=4),
    )
    made = prepare(setup, tmp_path, progress=False)
    again = prepare(setup, tmp_path, progress=False)
    assert again.metrics == made.metrics
    assert again.fingerprints() == made.fingerprints()
    other = prepare(replace(setup, sparse=replace(setup.sparse, seed=3)), tmp_path, progress=False)
    assert other.fingerprints()["dense"] == made.fingerprints()["dense"]
    assert other.fingerprints()["sparse"] != made.fingerprints()["sparse"]


def test_the_commands_from_files_to_files(text, tmp_path):
    from circuits.commands.bridge_files import bridge_files, steer_files
    from circuits.model.checkpoint import save_checkpoint

    shape = replace(SMALL, n_layers=1)
    dense, sparse = tmp_path / "dense.safetensors", tmp_path / "sparse.safetensors"
    for seed, path in enumerate((dense, sparse)):
        save_checkpoint(path, SparseTransformer(shape, seed=seed))
    out = tmp_path / "bridges.safetensors"
    report = bridge_files(dense, sparse, out, config=BridgeConfig(batch_size=4, n_val=4), steps=2)
    assert report["n_pairs"] == 3
    assert "Passes that cross twice" in (tmp_path / "bridges.html").read_text()
    summary = steer_files(out, dense, sparse, tmp_path / "steering.json", location="0.attn", n=4)
    assert len(summary["channels"]) == 1
    assert (tmp_path / "steering.json").exists()
