"""OpenAI's format: the same logits as a plain forward pass of it, strict keys, and what is refused by name."""

import json
import math
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import Tensor

from circuits.circuit.masked import run_circuit
from circuits.circuit.nodes import Node
from circuits.interop import load_openai, load_openai_circuit, save_openai
from circuits.model.config import ModelConfig
from circuits.model.sites import SITES, Site
from circuits.model.transformer import SparseTransformer

BASE = dict(
    block_size=9,
    vocab_size=13,
    n_layer=2,
    n_head=2,
    d_head=4,
    d_model=12,
    dropout=0.1,
    bias=True,
    ln_bias=True,
    rms_norm=True,
    residual_activation_type="identity",
    activation_type="gelu",
    afrac=0.5,
    afrac_loctypes=",".join(SITES),
    debug_nans=False,
    tied_unembed=False,
    tokenizer_name="tinypython_2k",
    grad_checkpointing=True,
    d_mlp=20,
    enable_bigram_table=True,
    learnable_bigram_table=True,
    d_pos_emb=None,
    dropout_cat_pos_emb=False,
    sinusoidal_cat_pos_emb=False,
    enable_sparse_kernels=False,
    flash=True,
    sink=True,
)
OPTIONS: dict[str, dict] = {
    "published": {},
    "no sink": {"sink": False},
    "slow attention": {"sink": False, "flash": False},
    "no bigrams": {"enable_bigram_table": False, "learnable_bigram_table": False},
    "frozen bigrams": {"learnable_bigram_table": False},
    "tied": {"tied_unembed": True},
    "dense": {"afrac": None},
    "some sites": {"afrac_loctypes": "attn_in,mlp_neuron", "afrac": 0.25},
    "no sites": {"afrac_loctypes": ""},
    "no biases": {"bias": False},
    "relu": {"activation_type": "relu"},
    "layer norm": {"rms_norm": False},
    "layer norm without bias": {"rms_norm": False, "ln_bias": False},
    "default widths": {"d_head": None, "d_mlp": None},
}
TOKENS = torch.randint(0, 13, (5, 9), generator=torch.Generator().manual_seed(4))


def weights_for(config: dict, seed: int = 0) -> dict[str, Tensor]:
    """A state dict by the description of the format, with weights far from their initial size."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return 0.5 * torch.randn(shape, generator=generator)

    d, v = config["d_model"], config["vocab_size"]
    h = config["n_head"] * (config["d_head"] or d // config["n_head"])
    m = config["d_mlp"] or 4 * d
    found = {"transformer.wte.weight": draw(v, d), "transformer.wpe.weight": draw(config["block_size"], d)}
    for i in range(config["n_layer"]):
        at = f"transformer.h.{i}."
        for name, shape in {
            "attn.c_attn": (3 * h, d),
            "attn.c_proj": (d, h),
            "mlp.c_fc": (m, d),
            "mlp.c_proj": (d, m),
        }.items():
            found[f"{at}{name}.weight"] = draw(*shape)
            if config["bias"]:
                found[f"{at}{name}.bias"] = draw(shape[0])
        if config["sink"]:
            found[at + "attn.attn_imp.sink_logit"] = draw(config["n_head"])
        if not config["flash"]:
            block = config["block_size"]
            found[at + "attn.bias"] = torch.tril(torch.ones(block, block))[None, None]
    for name in [f"h.{i}.ln_{j}" for i in range(config["n_layer"]) for j in (1, 2)] + ["ln_f"]:
        # RMSNorm's own weights fold where nothing stands between; LayerNorm's may be anything.
        found[f"transformer.{name}.weight"] = torch.ones(d) if config["rms_norm"] else 1 + draw(d)
        if not config["rms_norm"] and config["ln_bias"]:
            found[f"transformer.{name}.bias"] = draw(d)
    found["lm_head.weight"] = found["transformer.wte.weight"] if config["tied_unembed"] else draw(v, d)
    found["final_logits_bias"] = draw(v)
    if config["enable_bigram_table"]:
        found["bigram_table"] = draw(v, v)
    return found


def plain_forward(config: dict, w: dict[str, Tensor], tokens: Tensor) -> Tensor:
    """Logits by the description of the format, one head and one query at a time, in float64."""
    w = {name: value.double() for name, value in w.items()}
    n_pos, eps = tokens.shape[1], torch.finfo(torch.float32).eps
    sites = config["afrac_loctypes"].split(",")

    def topk(x: Tensor, site: str) -> Tensor:
        if config["afrac"] is None or site not in sites:
            return x
        k, out = int(config["afrac"] * x.shape[-1]), torch.zeros_like(x)
        for row, flat in zip(x.view(-1, x.shape[-1]), out.view(-1, x.shape[-1]), strict=True):
            for i in sorted(range(len(row)), key=lambda i: -abs(float(row[i])))[:k]:
                flat[i] = row[i]
        return out

    def norm(x: Tensor, name: str) -> Tensor:
        gain = w[f"transformer.{name}.weight"]
        if config["rms_norm"]:
            return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * gain
        bias = w.get(f"transformer.{name}.bias", torch.zeros(1).double())
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * gain + bias

    def affine(x: Tensor, name: str) -> Tensor:
        bias = w.get(f"transformer.h.{name}.bias", torch.zeros(1).double())
        return x @ w[f"transformer.h.{name}.weight"].T + bias

    x = w["transformer.wte.weight"][tokens] + w["transformer.wpe.weight"][:n_pos]
    for i in range(config["n_layer"]):
        read = topk(norm(x, f"h.{i}.ln_1"), "attn_in")
        qkv = affine(read, f"{i}.attn.c_attn")
        width = qkv.shape[-1] // 3
        q, k, v = (
            topk(qkv[..., j * width : (j + 1) * width].contiguous(), f"attn_{name}")
            for j, name in enumerate("qkv")
        )
        d_head, z = width // config["n_head"], torch.zeros_like(q)
        for head, at in product(range(config["n_head"]), range(n_pos)):
            own = slice(head * d_head, (head + 1) * d_head)
            scores = (q[:, at : at + 1, own] * k[:, : at + 1, own]).sum(-1) / math.sqrt(d_head)
            sink = w.get(f"transformer.h.{i}.attn.attn_imp.sink_logit")
            below = scores.exp().sum(-1) + (0 if sink is None else sink[head].exp())
            share = scores.exp() / below[:, None]
            z[:, at, own] = (share[..., None] * v[:, : at + 1, own]).sum(1)
        x = x + topk(affine(z, f"{i}.attn.c_proj"), "attn_out")
        hidden = affine(topk(norm(x, f"h.{i}.ln_2"), "mlp_in"), f"{i}.mlp.c_fc")
        gelu = hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2
        acted = gelu if config["activation_type"] == "gelu" else hidden.clamp_min(0)
        x = x + topk(affine(topk(acted, "mlp_neuron"), f"{i}.mlp.c_proj"), "mlp_out")
    logits = norm(x, "ln_f") @ w["lm_head.weight"].T + w["final_logits_bias"]
    return logits + w["bigram_table"][tokens] if config["enable_bigram_table"] else logits


def written(folder: Path, config: dict, weights: dict[str, Tensor]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "beeg_config.json").write_text(json.dumps(config))
    torch.save(weights, folder / "final_model.pt")
    return folder


@pytest.mark.parametrize("option", OPTIONS)
def test_logits_are_those_of_the_format_and_survive_saving_in_it(option, tmp_path):
    config = BASE | OPTIONS[option]
    weights = weights_for(config)
    expected = plain_forward(config, weights, TOKENS).float()
    model = load_openai(written(tmp_path, config, weights))
    torch.testing.assert_close(model(TOKENS), expected, atol=1e-4, rtol=0)
    again = load_openai(save_openai(tmp_path / "again", model, tokenizer_name="tinypython_2k"))
    assert torch.equal(again(TOKENS), model(TOKENS))
    assert again.fingerprint() == model.fingerprint()
    said = json.loads((tmp_path / "again" / "beeg_config.json").read_text())
    kept = ("tied_unembed", "learnable_bigram_table", "sink", "activation_type", "rms_norm", "tokenizer_name")
    assert {name: said[name] for name in kept} == {name: config[name] for name in kept}
    # What it writes is a file by the description as well.
    saved = torch.load(tmp_path / "again" / "final_model.pt", weights_only=True)
    torch.testing.assert_close(plain_forward(said, saved, TOKENS).float(), expected, atol=1e-4, rtol=0)


def test_epsilon_is_that_of_the_type_and_matters(tmp_path):
    """Tiny embeddings, where 1e-5 inside the norm would be seen."""
    weights = weights_for(BASE)
    for name in ("wte", "wpe"):
        weights[f"transformer.{name}.weight"] *= 1e-3
    model = load_openai(written(tmp_path, BASE, weights))
    assert model.config.norm_eps == torch.finfo(torch.float32).eps
    torch.testing.assert_close(model(TOKENS), plain_forward(BASE, weights, TOKENS).float(), atol=1e-4, rtol=0)
    half = load_openai(tmp_path, dtype=torch.bfloat16)
    assert half.config.norm_eps == torch.finfo(torch.bfloat16).eps
    assert half(TOKENS).dtype == torch.bfloat16


def test_norm_weights_fold_where_nothing_stands_between(tmp_path):
    config = BASE | {"afrac_loctypes": "attn_out,mlp_neuron"}
    weights = weights_for(config)
    for name in [*(f"h.{i}.ln_{j}" for i in range(2) for j in (1, 2)), "ln_f"]:
        weights[f"transformer.{name}.weight"] = torch.linspace(-1, 2, 12)
    model = load_openai(written(tmp_path, config, weights))
    torch.testing.assert_close(
        model(TOKENS), plain_forward(config, weights, TOKENS).float(), atol=1e-4, rtol=0
    )


def test_norm_weights_before_abstopk_fold_only_if_all_have_one_size(tmp_path):
    weights = weights_for(BASE)
    weights["transformer.h.1.ln_2.weight"] = torch.tensor([2.0, -2.0] * 6)
    model = load_openai(written(tmp_path, BASE, weights))
    torch.testing.assert_close(model(TOKENS), plain_forward(BASE, weights, TOKENS).float(), atol=1e-4, rtol=0)
    weights["transformer.h.1.ln_2.weight"] = torch.linspace(0.5, 2, 12)
    with pytest.raises(
        ValueError, match=r"h.1.ln_2.weight has weights from 0.5 to 2 before AbsTopK at 1.mlp_in"
    ):
        load_openai(written(tmp_path, BASE, weights))
    tied = BASE | {"tied_unembed": True}
    weights = weights_for(tied)
    weights["transformer.ln_f.weight"] *= 2
    with pytest.raises(ValueError, match="ln_f.weight is not 1 with tied_unembed"):
        load_openai(written(tmp_path, tied, weights))


def test_keys_of_the_public_reproduction_and_of_old_files(tmp_path):
    weights = weights_for(BASE)
    renamed = {
        name.removeprefix("transformer.").replace("h.", "blocks.", 1).replace("attn_imp", "attn_fn")
        if name.startswith("transformer.h.")
        else name.removeprefix("transformer."): value
        for name, value in weights.items()
        if name != "final_logits_bias"
    }
    assert "blocks.0.attn.attn_fn.sink_logit" in renamed
    model = load_openai(written(tmp_path, BASE, renamed))
    no_bias = weights | {"final_logits_bias": torch.zeros(13)}
    torch.testing.assert_close(model(TOKENS), plain_forward(BASE, no_bias, TOKENS).float(), atol=1e-4, rtol=0)
    old = {name: value for name, value in BASE.items() if name not in ("d_mlp", "sink")}
    old |= {"n_mlp": 20, "use_tied_aux_matrix": False}
    weights = weights_for(BASE | {"sink": False})
    model = load_openai(written(tmp_path, old, weights))
    assert (model.config.d_mlp, model.config.sink) == (20, False)
    with pytest.raises(ValueError, match=r"\['lm_head.weight'\] are there under two names|under two names"):
        load_openai(written(tmp_path, BASE, weights_for(BASE) | {"wte.weight": torch.zeros(13, 12)}))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"residual_activation_type": "relu"}, "residual_activation_type: got 'relu'; expected 'identity'"),
        ({"d_pos_emb": 4}, "d_pos_emb: got 4; expected None"),
        ({"sinusoidal_cat_pos_emb": True}, "sinusoidal_cat_pos_emb: got True; expected False"),
        ({"use_tied_aux_matrix": True}, "use_tied_aux_matrix: got True; expected False"),
        (
            {"afrac_loctypes": "attn_in,resid_post_mlp"},
            r"afrac_loctypes: .*\['resid_post_mlp'\] are none of ours",
        ),
        (
            {"afrac": 0.05},
            r"afrac: got 0.05; expected at least 1 / 12: int\(afrac \* 12\) = 0 zeroes attn_in",
        ),
        ({"afrac": 1.5}, "afrac: got 1.5; expected a share"),
        ({"flash": False}, "flash: got False; expected True along with sink"),
        ({"activation_type": "silu"}, "activation_type: got 'silu'; expected one of"),
        ({"n_experts": 4}, r"OpenAIConfig: unknown key \['n_experts'\]"),
        ({"d_model": "12"}, "d_model: got '12'; expected a whole number"),
    ],
)
def test_what_our_model_cannot_do_is_refused_by_name(change, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        load_openai(written(tmp_path, BASE | change, weights_for(BASE)))


class Code:
    """What no checkpoint should hold."""


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (
            lambda w: w.pop("transformer.h.1.mlp.c_fc.bias"),
            r"keys \['transformer.h.1.mlp.c_fc.bias'\] are missing",
        ),
        (lambda w: w.update(extra=torch.zeros(1)), r"\['transformer.extra'\] are unknown"),
        (lambda w: w.update({"bigram_table": torch.zeros(13, 12)}), r"bigram_table is \(13, 12\); expected"),
        (lambda w: w.update({"lm_head.weight": 3}), "lm_head.weight is int; expected a tensor"),
        (lambda w: w.update(code=Code()), "cannot be read .*; expected a state dict of tensors, and no code"),
    ],
)
def test_a_file_with_other_keys_or_with_code_is_refused(spoil, said, tmp_path):
    weights = weights_for(BASE)
    spoil(weights)
    with pytest.raises(ValueError, match=said):
        load_openai(written(tmp_path, BASE, weights))


def test_files_that_are_not_there_or_cut_short(tmp_path):
    with pytest.raises(ValueError, match=r"folder: .*beeg_config.json cannot be read"):
        load_openai(tmp_path)
    folder = written(tmp_path, BASE, weights_for(BASE))
    data = (folder / "final_model.pt").read_bytes()
    for part in (data[: len(data) // 2], b"", b"text"):
        (folder / "final_model.pt").write_bytes(part)
        with pytest.raises(ValueError, match=r"path: .*final_model.pt cannot be read"):
            load_openai(folder)
    torch.save([1], folder / "final_model.pt")
    with pytest.raises(ValueError, match="holds a list; expected a state dict"):
        load_openai(folder)


def test_a_frozen_bigram_table_stays_frozen_and_tying_is_checked(tmp_path):
    config = BASE | {"learnable_bigram_table": False, "tied_unembed": True}
    weights = weights_for(config)
    model = load_openai(written(tmp_path, config, weights))
    assert not model.bigram.requires_grad
    assert model.W_E.requires_grad
    assert model.config.tied
    weights["lm_head.weight"] = weights["lm_head.weight"] + 1
    with pytest.raises(ValueError, match="lm_head.weight differs from wte.weight"):
        load_openai(written(tmp_path, config, weights))


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ({}, "norm_eps: got 1e-05; expected 1.19"),
        ({"norm_position": "post"}, "it has norm_position='post'; OpenAI's format expected"),
        ({"embed_scale": True}, "it has embed_scale=True"),
        ({"attention": "compose", "compose": "static"}, "it has compose='static'"),
        (
            {"norm_eps": 1.1920928955078125e-07, "d_model": 13},
            "n_heads: got 2; expected a divisor of d_model",
        ),
    ],
)
def test_models_that_the_format_has_no_words_for_are_not_saved(option, said, tmp_path):
    shape = {"d_vocab": 13, "n_layers": 1, "d_model": 12, "n_heads": 2, "d_head": 4, "d_mlp": 20, "n_ctx": 9}
    with pytest.raises(ValueError, match=said):
        save_openai(tmp_path, SparseTransformer(ModelConfig(**(shape | option))))
    assert not list(tmp_path.iterdir())


def test_a_stored_circuit_runs_as_one_of_ours(tmp_path):
    model = load_openai(written(tmp_path, BASE, weights_for(BASE)))
    kept = {
        "0.attn.act_in": torch.tensor([3, 1]),
        "0.attn.v": torch.tensor([5]),
        "0.attn.resid_delta": torch.tensor([2]),
        "1.mlp.act_in": torch.tensor([2]),
        "1.mlp.post_act": torch.tensor([19, 0]),
        "1.mlp.resid_delta": torch.tensor([], dtype=torch.int64),
        "final_resid": torch.tensor([2, 4]),
    }
    path = tmp_path / "viz_data.pt"
    torch.save({"circuit_data": kept, "importances": {"interv_loss": torch.tensor(0.3)}}, path)
    circuit = load_openai_circuit(path, model, TOKENS)
    assert set(circuit.nodes) == {
        Node(0, "attn_in", 1),
        Node(0, "attn_in", 3),
        Node(0, "attn_v", 5),
        Node(0, "attn_out", 2),
        Node(1, "mlp_in", 2),
        Node(1, "mlp_neuron", 0),
        Node(1, "mlp_neuron", 19),
    }
    assert {(e.source.site, e.target.site) for e in circuit.edges} == {
        ("attn_in", "attn_v"),
        ("attn_v", "attn_out"),
        ("mlp_in", "mlp_neuron"),
    }
    assert circuit.metrics["stored_task_loss"] == pytest.approx(0.15)
    assert circuit.metrics["final_resid"] == [2, 4]
    assert set(circuit.values) == set(model.sites())
    assert run_circuit(model, circuit, TOKENS).isfinite().all()
    for name, said in (
        ("2.attn.q", "expected 'final_resid' or a layer below 2"),
        ("0.attn.z", "one of"),
        ("0.attn.q", "has indices 1 to 8; expected 0 to 7"),
    ):
        torch.save({"circuit_data": {name: torch.tensor([1, 8])}}, path)
        with pytest.raises(ValueError, match=said):
            load_openai_circuit(path, model, TOKENS)
    torch.save({"circuit_data": {"0.attn.q": torch.tensor([0.5])}}, path)
    with pytest.raises(ValueError, match="expected a 1-dimensional tensor of whole numbers"):
        load_openai_circuit(path, model, TOKENS)
    torch.save({"nodes": {}}, path)
    with pytest.raises(ValueError, match="has no dictionary 'circuit_data'"):
        load_openai_circuit(path, model, TOKENS)


def test_widths_of_a_loaded_model(tmp_path):
    model = load_openai(written(tmp_path, BASE, weights_for(BASE)))
    assert model.config.topk(Site(0, "mlp_neuron")) == 10
    assert not model.training
