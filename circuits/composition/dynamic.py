"""Dynamically composed heads taken apart: maps between heads, QK head -> OV head strengths, folding.

Composition within a layer: with maps C, head m's scores are made of all QK circuits (before the softmax) and head n's
pattern moves what all OV circuits carry (after it). Static maps fold into the weights exactly; dynamic ones depend on
the text, so everything about them here is a mean over given tokens and says so.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens import FactoredMatrix

from circuits.composition.parts import with_static_maps
from circuits.heads.weights import STACKS_INSTEAD, head_weights
from circuits.model.kinds import of_ours
from circuits.model.mixers.compose import BRANCHES, explicit_map
from circuits.model.options import ONE_STACK
from circuits.model.tokens import only, real_places
from circuits.model.transformer import SparseTransformer

Stage = Literal["pre", "post"]
STAGES: tuple[Stage, ...] = ("pre", "post")


@dataclass(frozen=True, kw_only=True)
class CompositionMaps:
    """Maps between the heads of one layer at every pair of positions; entry [..., n, m] is the edge n -> m."""

    layer: int
    pre: Float[Tensor, "batch query key head head"]
    "Of scores, identity included."
    post: Float[Tensor, "batch query key head head"]
    "Of patterns, identity included."
    branches: Mapping[str, Float[Tensor, "batch query key head head"]]
    "What each branch adds, such as `pre.query.mix`; views, without identity."


@of_ours
def composition_maps(
    model: SparseTransformer, tokens: Int[Tensor, "batch pos"], *, layer: int = 0
) -> CompositionMaps:
    """The pre and post maps of a layer on given tokens, whole and by branch.

    Identity for a model with compose="none". Raises ValueError for a layer that the model does not have.

    Examples:
        >>> options = {"attention": "compose", "compose": "full"}
        >>> shape = circuits.ModelConfig(d_vocab=9, d_model=16, n_heads=2, d_head=4, **options)
        >>> model = circuits.SparseTransformer(shape)
        >>> circuits.composition.composition_maps(model, torch.zeros(1, 5).long(), layer=1).pre.shape
        torch.Size([1, 5, 5, 2, 2])
    """
    ONE_STACK.check(model, "composition_maps", instead=STACKS_INSTEAD)
    _check_layer(model, layer)
    seen = _run_keeping(model, tokens, layer)
    whole, branches = {}, {}
    for stage in STAGES:
        parts = {name.split(".", 1)[1]: value for name, value in seen.items() if name.startswith(stage)}
        whole[stage] = explicit_map(
            model.config.n_heads,
            static=parts.get("static"),
            query=parts.get("query.map"),
            key=parts.get("key.map"),
            like=seen["x"],
        )
        for name, value in parts.items():
            if name in BRANCHES:
                branches[f"{stage}.{name}"] = _spread(name, value, whole[stage])
    return CompositionMaps(layer=layer, pre=whole["pre"], post=whole["post"], branches=branches)


@of_ours
def head_mixing(
    model: SparseTransformer,
    tokens: Int[Tensor, "batch pos"],
    *,
    layer: int = 0,
    lengths: Int[Tensor, " batch"] | None = None,
) -> Float[Tensor, "qk_head ov_head"]:
    """How much of QK head n's pattern is carried by OV head m: `E |P_n C_post[n, m]| * ||W_V^m W_O^m||`.

    Mean over queries of the sum over keys; a plain model gives a diagonal matrix. Depends on the tokens.
    lengths: tokens of each row that are no padding, as `batch.lengths` says for the prompts of a task; None: all.

    Examples:
        >>> options = {"attention": "compose", "compose": "full"}
        >>> shape = circuits.ModelConfig(d_vocab=9, d_model=16, n_heads=2, d_head=4, **options)
        >>> model = circuits.SparseTransformer(shape)
        >>> circuits.composition.head_mixing(model, torch.zeros(1, 5).long(), layer=1).shape
        torch.Size([2, 2])
    """
    real = real_places(tokens, lengths)
    maps = composition_maps(model, tokens, layer=layer)
    with torch.no_grad():
        _, cache = model.run_with_cache(tokens, names_filter=f"blocks.{layer}.attn.hook_pattern")
    pattern = cache[f"blocks.{layer}.attn.hook_pattern"]
    moved = torch.einsum("bnij,bijnm->bnmi", pattern, maps.post.abs())
    moved = only(real, moved.permute(0, 3, 1, 2)).mean((0, 1))
    attn: Any = model.blocks[layer].attn
    return moved * FactoredMatrix(attn.W_V.detach(), attn.W_O.detach()).norm()


@of_ours
def folded_circuits(model: SparseTransformer, *, layer: int) -> tuple[FactoredMatrix, FactoredMatrix]:
    """QK and OV circuits of each head with the static maps multiplied in; exact, of rank n_heads * d_head.

    QK'_m = sum_n (I + W_pre)[n, m] W_QK^n and OV'_n = sum_m (I + W_post)[n, m] W_OV^m. Raises ValueError for a
    model with dynamic maps, which have no such form.

    Examples:
        >>> options = {"attention": "compose", "compose": "static"}
        >>> shape = circuits.ModelConfig(d_vocab=9, d_model=16, n_heads=2, d_head=4, **options)
        >>> qk, ov = circuits.composition.folded_circuits(circuits.SparseTransformer(shape), layer=0)
        >>> qk.AB.shape, ov.AB.shape
        (torch.Size([2, 16, 16]), torch.Size([2, 16, 16]))
    """
    if model.config.compose not in ("none", "static"):
        raise ValueError(
            f"model: got compose={model.config.compose!r}; expected 'none' or 'static'. Dynamic maps depend on "
            "the text: use composition_maps(model, tokens)."
        )
    _check_layer(model, layer)
    heads = with_static_maps(model, head_weights(model))
    QK = FactoredMatrix(heads.W_Q[layer], heads.W_K[layer].transpose(-2, -1))
    return QK, FactoredMatrix(heads.W_V[layer], heads.W_O[layer])


def _run_keeping(model: SparseTransformer, tokens: Tensor, layer: int) -> dict[str, Tensor]:
    """`x` and each map by stage and name, such as `pre.query.map`."""
    prefix = f"blocks.{layer}.attn."
    seen: dict[str, Tensor] = {}

    def keep(value: Tensor, hook: Any) -> None:
        name = hook.name.removeprefix(prefix)
        seen["x" if name == "hook_in" else name.removeprefix("compose_").replace("hook_", "")] = value

    kept = ("hook_static", "hook_mix", "hook_gate", "hook_map")
    hooks: list[tuple[Any, Callable]] = [
        (lambda name: name.startswith(f"{prefix}compose_") and name.endswith(kept), keep),
        (f"{prefix}hook_in", keep),
    ]
    with torch.no_grad():
        model.run_with_hooks(tokens, fwd_hooks=hooks)
    return seen


def _spread(branch: str, value: Tensor, like: Tensor) -> Tensor:
    """A branch's map at every pair of positions, without copying it."""
    if branch == "static":
        return value.expand_as(like)
    return (value[:, :, None] if branch.startswith("query") else value[:, None]).expand_as(like)


def _check_layer(model: SparseTransformer, layer: int) -> None:
    if not 0 <= layer < model.config.n_layers:
        raise ValueError(f"layer: got {layer}; expected 0 to {model.config.n_layers - 1}.")
