"""OpenAI's weight-sparse models, read and written: a folder with `beeg_config.json` and `final_model.pt`.

    model = load_openai("folder")
    save_openai("other folder", model)

The logits are those of the format's own forward pass, and every key of the file must be the one expected. Norm
weights fold into the next matrix; where AbsTopK acts between the two they cannot, and are refused unless all have one
size. The key names of the public reproduction (no `transformer.`, `blocks.`, `attn_fn`) are read as well.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from circuits.files import read_json, write_file, write_json
from circuits.interop.openai_config import SAVES, OpenAIConfig
from circuits.interop.torch_file import load_tensors
from circuits.model.kinds import of_ours
from circuits.model.sites import Site
from circuits.model.transformer import SparseTransformer
from circuits.reading import reading

CONFIG, WEIGHTS = "beeg_config.json", "final_model.pt"
"""The two files of a model."""
Weights = dict[str, Tensor]
_OUTSIDE = ("lm_head.weight", "final_logits_bias", "bigram_table")
"""Keys that do not begin with `transformer.`."""
_MASK = re.compile(r"transformer\.h\.\d+\.attn\.bias")
"""A constant that files from models without flash attention carry: the causal mask."""


def load_openai(
    folder: str | Path, *, tokenizer: Any = None, dtype: torch.dtype | None = None
) -> SparseTransformer:
    """The model of a folder, in eval mode.

    tokenizer: attached to the model; the folder holds its name alone. dtype: to run in (default: that of the file); it
    decides the epsilon of RMSNorm. A bigram table that did not train there asks for no gradient here. Raises
    UnreadableError (a ValueError) for a missing, unknown or misshapen key, an option that this model does not have, and
    a file that is more than tensors.

    Examples:
        >>> eps = torch.finfo(torch.float32).eps
        >>> shape = circuits.ModelConfig(d_vocab=9, d_model=16, n_heads=2, d_head=8, norm_eps=eps)
        >>> folder = circuits.interop.save_openai("folder", circuits.SparseTransformer(shape))
        >>> circuits.interop.load_openai(folder).config.d_model
        16
    """
    config = read_openai_config(folder)
    with reading(folder, "a model in OpenAI's format", name="folder"):
        found = _renamed(load_tensors(Path(folder) / WEIGHTS, "a state dict of tensors"))
        dtype = dtype or _type_of(found)
        ours = config.ours(dtype)
        _check_keys(found, _shapes(config))  # before anything is built of what the config claims
        with torch.inference_mode(False), torch.device("meta"):
            model = SparseTransformer(ours, tokenizer=tokenizer)
        with torch.inference_mode(False), torch.no_grad():
            for name, value in _converted(found, config, model):
                _put(model, name, value.to(dtype))
    if model.bigram is not None:
        model.bigram.requires_grad_(config.learnable_bigram_table)
    return model.eval()


@of_ours
def save_openai(folder: str | Path, model: SparseTransformer, *, tokenizer_name: str = "unknown") -> Path:
    """Write the model in the format; returns the folder, which gets two files.

    Raises ValueError for what the format has no words for, by name: composed heads, an encoder, another epsilon of the
    norm, norms that come last, scaled embeddings.

    Examples:
        >>> eps = torch.finfo(torch.float32).eps
        >>> shape = circuits.ModelConfig(d_vocab=9, d_model=16, n_heads=2, d_head=8, norm_eps=eps)
        >>> folder = circuits.interop.save_openai("folder", circuits.SparseTransformer(shape))
        >>> sorted(path.name for path in folder.iterdir())
        ['beeg_config.json', 'final_model.pt']
    """
    SAVES.check(model, "OpenAI's format", instead="Save it with save_checkpoint, which keeps everything.")
    others = [p for name, p in model.named_parameters() if name != "bigram"]
    frozen_alone = model.bigram is not None and not model.bigram.requires_grad and others[0].requires_grad
    config = OpenAIConfig.of(
        model.config, model.like.dtype, learnable=not frozen_alone, tokenizer=tokenizer_name
    )
    folder = Path(folder)
    weights = {name: value.detach().cpu().contiguous() for name, value in _exported(model)}
    write_file(folder / WEIGHTS, lambda partial: torch.save(weights, partial))
    said = {name: value for name, value in config.to_json().items() if name != "use_tied_aux_matrix"}
    write_json(folder / CONFIG, said)
    return folder


def read_openai_config(folder: str | Path) -> OpenAIConfig:
    """The options of a folder. Raises UnreadableError (a ValueError) for those that there are none of here, by name."""
    path, expected = Path(folder) / CONFIG, f"a folder with {CONFIG}"
    data = read_json(path, name="folder", expected=expected)
    with reading(path, expected, name="folder"):
        return OpenAIConfig.read(data)


def _renamed(found: Mapping[str, Any]) -> Weights:
    """By the format's own names, whichever of the two the file uses; causal masks are left out."""
    names = {name: _name(name) for name in found}
    twice = sorted(name for name, n in Counter(names.values()).items() if n > 1)
    if twice:
        raise ValueError(f"{WEIGHTS}: {twice[:4]} are there under two names; expected each key once.")
    return {names[name]: value for name, value in found.items() if not _MASK.fullmatch(names[name])}


def _name(name: str) -> str:
    name = name.removeprefix("module.").replace("attn.attn_fn.", "attn.attn_imp.")
    if name in _OUTSIDE or name.startswith("transformer."):
        return name
    return "transformer." + re.sub(r"^blocks\.", "h.", name)


def _type_of(found: Weights) -> torch.dtype:
    wte = found.get("transformer.wte.weight")
    return wte.dtype if isinstance(wte, Tensor) and wte.is_floating_point() else torch.float32


def _shapes(config: OpenAIConfig) -> dict[str, tuple[int, ...]]:
    """Every key of the format and its shape."""
    d, v, h, m = config.d_model, config.vocab_size, config.n_head * config.channels, config.neurons
    norm = ["weight", "bias"] if config.ln_bias and not config.rms_norm else ["weight"]
    shapes: dict[str, tuple[int, ...]] = {
        "transformer.wte.weight": (v, d),
        "transformer.wpe.weight": (config.block_size, d),
    }
    maps = {"attn.c_attn": (3 * h, d), "attn.c_proj": (d, h), "mlp.c_fc": (m, d), "mlp.c_proj": (d, m)}
    for layer in (f"transformer.h.{i}." for i in range(config.n_layer)):
        shapes |= {f"{layer}{ln}.{part}": (d,) for ln in ("ln_1", "ln_2") for part in norm}
        shapes |= {f"{layer}{name}.weight": shape for name, shape in maps.items()}
        if config.bias:
            shapes |= {f"{layer}{name}.bias": shape[:1] for name, shape in maps.items()}
        if config.sink:
            shapes[f"{layer}attn.attn_imp.sink_logit"] = (config.n_head,)
    shapes |= {f"transformer.ln_f.{part}": (d,) for part in norm}
    shapes |= {"lm_head.weight": (v, d), "final_logits_bias": (v,)}
    return shapes | ({"bigram_table": (v, v)} if config.enable_bigram_table else {})


def _check_keys(found: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> None:
    missing = sorted(set(shapes) - set(found) - {"final_logits_bias"})
    unknown = sorted(set(found) - set(shapes))
    if missing or unknown:
        raise ValueError(
            f"{WEIGHTS}: keys {missing[:4]} are missing and {unknown[:4]} are unknown ({len(missing)} and "
            f"{len(unknown)} in all); expected just those of a model with this {CONFIG}."
        )
    for name, value in found.items():
        shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        if shape != shapes[name]:
            raise ValueError(
                f"{WEIGHTS}: {name} is {shape}; expected a tensor of shape {shapes[name]}, as {CONFIG} says."
            )


def _converted(
    found: Weights, config: OpenAIConfig, model: SparseTransformer
) -> Iterator[tuple[str, Tensor]]:
    """Every parameter of ours by its name, one at a time; matrices leave `found`, so that none is held twice."""
    yield "W_E", found["transformer.wte.weight"]
    yield "W_pos", found["transformer.wpe.weight"]
    for i in range(config.n_layer):
        yield from _layer(found, config, model, i)
    unembed, zeros = found["lm_head.weight"], torch.zeros(config.vocab_size)
    if config.tied_unembed and not torch.equal(unembed, found["transformer.wte.weight"]):
        raise ValueError(
            f"{WEIGHTS}: lm_head.weight differs from wte.weight; expected one, since tied_unembed."
        )
    if config.rms_norm:
        unembed = _last_norm_folded(unembed, found["transformer.ln_f.weight"], config.tied_unembed)
    else:
        yield from _layer_norm(found, "transformer.ln_f", "ln_final", config.d_model)
    if not config.tied_unembed:
        yield "unembed.W_U", unembed.T
    yield "unembed.b_U", found.get("final_logits_bias", zeros)
    if config.enable_bigram_table:
        yield "bigram", found.pop("bigram_table")


def _layer(
    found: Weights, config: OpenAIConfig, model: SparseTransformer, i: int
) -> Iterator[tuple[str, Tensor]]:
    """The parameters of a layer, norm weights folded into what reads through them."""
    at, ours = f"transformer.h.{i}.", f"blocks.{i}."
    into: dict[str, Tensor | None] = {"attn.c_attn": None, "mlp.c_fc": None}
    for norm, reader, site in (("ln_1", "attn.c_attn", "attn_in"), ("ln_2", "mlp.c_fc", "mlp_in")):
        if config.rms_norm:
            into[reader] = found[f"{at}{norm}.weight"]
            _check_foldable(f"{at}{norm}.weight", into[reader], model, Site(i, site))  # type: ignore[arg-type]
        else:
            yield from _layer_norm(found, at + norm, f"{ours}{norm.replace('_', '')}", config.d_model)
    whole, bias = _affine(found, at + "attn.c_attn", into["attn.c_attn"])
    parts = zip("qkv", whole.chunk(3, dim=1), bias.chunk(3), strict=True)
    for name, part, own in parts:
        yield f"{ours}attn.{name}.weight", part
        yield f"{ours}attn.{name}.bias", own
    for name, target in (("attn.c_proj", "attn.o"), ("mlp.c_fc", "mlp.up"), ("mlp.c_proj", "mlp.down")):
        weight, bias = _affine(found, at + name, into.get(name))
        yield f"{ours}{target}.weight", weight
        yield f"{ours}{target}.bias", bias
    if config.sink:
        yield f"{ours}attn.sink", found[f"{at}attn.attn_imp.sink_logit"]


def _affine(found: Weights, name: str, gain: Tensor | None) -> tuple[Tensor, Tensor]:
    """Weight [d_in, d_out], the gain of its input multiplied in, and bias; zeros where the file has none."""
    weight = found.pop(name + ".weight").T
    bias = found.pop(name + ".bias", None)
    weight = weight if gain is None or bool((gain == 1).all()) else weight * gain[:, None]
    return weight, weight.new_zeros(weight.shape[1]) if bias is None else bias


def _layer_norm(found: Weights, name: str, ours: str, width: int) -> Iterator[tuple[str, Tensor]]:
    yield f"{ours}.w", found[name + ".weight"]
    yield f"{ours}.b", found.get(name + ".bias", torch.zeros(width))


def _check_foldable(name: str, gain: Tensor, model: SparseTransformer, site: Site) -> None:
    """Raise ValueError for norm weights that AbsTopK sees and that change which coordinates are largest."""
    k, size = model.config.topk(site), gain.abs()
    between = k is not None and k < model.config.width(site)
    if between and not bool((size == size[0]).all() and size[0] > 0):
        raise ValueError(
            f"{WEIGHTS}: {name} has weights from {float(gain.min()):g} to {float(gain.max()):g} before AbsTopK at "
            f"{site}; expected weights of one size. They change what AbsTopK keeps, so no matrix can take them in."
        )


def _last_norm_folded(unembed: Tensor, gain: Tensor, tied: bool) -> Float[Tensor, "d_vocab d_model"]:
    if bool((gain == 1).all()):
        return unembed
    if tied:
        raise ValueError(
            f"{WEIGHTS}: transformer.ln_f.weight is not 1 with tied_unembed; expected 1, or an unembedding of its own, "
            "which it could fold into."
        )
    return unembed * gain


def _put(model: SparseTransformer, name: str, value: Tensor) -> None:
    """A weight in its place; what is not learned here, such as a fixed table of positions, too."""
    path, _, own = name.rpartition(".")
    module = model.get_submodule(path)
    shape = tuple(getattr(module, own).shape)
    assert shape == tuple(value.shape), f"{name}: {tuple(value.shape)} for {shape}"
    setattr(module, own, nn.Parameter(value.clone(memory_format=torch.contiguous_format)))


def _exported(model: SparseTransformer) -> Iterator[tuple[str, Tensor]]:
    """Every key of the format and its tensor."""
    config = model.config
    yield "transformer.wte.weight", model.W_E
    yield "transformer.wpe.weight", model.W_pos
    blocks: Any = model.blocks
    for i, block in enumerate(blocks):
        at, attn, mlp = f"transformer.h.{i}.", block.attn, block.mlp
        yield from _exported_norm(block.ln1, at + "ln_1", model)
        yield from _exported_norm(block.ln2, at + "ln_2", model)
        qkv = (attn.q, attn.k, attn.v)
        yield at + "attn.c_attn.weight", torch.cat([part.weight.T for part in qkv])
        yield at + "attn.c_attn.bias", torch.cat([part.bias for part in qkv])
        for name, linear in (("attn.c_proj", attn.o), ("mlp.c_fc", mlp.up), ("mlp.c_proj", mlp.down)):
            yield f"{at}{name}.weight", linear.weight.T
            yield f"{at}{name}.bias", linear.bias
        if config.sink:
            yield at + "attn.attn_imp.sink_logit", attn.sink
    yield from _exported_norm(model.ln_final, "transformer.ln_f", model)
    yield "lm_head.weight", model.W_U.T
    yield "final_logits_bias", model.b_U
    if model.bigram is not None:
        yield "bigram_table", model.bigram


def _exported_norm(norm: Any, name: str, model: SparseTransformer) -> Iterator[tuple[str, Tensor]]:
    if model.config.norm == "rms":
        yield f"{name}.weight", torch.ones(model.config.d_model).to(model.like)
    else:
        yield f"{name}.weight", norm.w
        yield f"{name}.bias", norm.b
