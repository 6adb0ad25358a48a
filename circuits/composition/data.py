"""Composition measured on data: what one head's output does to a later head when it is replaced on one path only."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.composition.parts import Port, Reader, Writer
from circuits.heads.weights import head_weights
from circuits.model.hooks import keep
from circuits.model.options import Says
from circuits.model.tokens import only, real_places
from circuits.statistics import spearman

Pair = tuple[Writer, Reader]
SAYS = Says(compose=None, act=None, norm=None, embed_scale=None, experts=None)
"""A change of one writer's output, added to what one reader reads before its norm: in a stream that is a sum."""


@dataclass(frozen=True, kw_only=True)
class DataComposition:
    """Effects of single writer -> reader paths on given text."""

    pairs: tuple[Pair, ...]
    effect: Float[Tensor, " pair"]
    "Relative change of the reading head's z, `||z' - z|| / ||z||` over batch and positions."
    divergence: Float[Tensor, " pair"]
    "Mean KL divergence of the patched next-token distribution from the model's own, in nats per position."

    def __getitem__(self, pair: tuple[str, str]) -> tuple[float, float]:
        """Effect and divergence by labels, such as `data["L0H0", "L1H0.K"]`."""
        names = [(str(writer), str(reader)) for writer, reader in self.pairs]
        at = names.index(pair)
        return float(self.effect[at]), float(self.divergence[at])

    def rank_correlation(self, scores: Mapping[Pair, float]) -> float:
        """Spearman correlation of `effect` with scores of the same pairs, such as those from weights."""
        missing = [pair for pair in self.pairs if pair not in scores]
        if missing:
            raise ValueError(
                f"scores: none for {missing[0][0]} -> {missing[0][1]}; expected one for every pair."
            )
        return spearman(self.effect, torch.tensor([scores[pair] for pair in self.pairs]))


def composition_on_data(
    model: Any,
    tokens: Int[Tensor, "batch pos"],
    *,
    corrupt: Int[Tensor, "batch pos"] | None = None,
    lengths: Int[Tensor, " batch"] | None = None,
    pairs: Sequence[Pair] | None = None,
) -> DataComposition:
    """Path patching between heads: replace one head's output in one later head's q, k or v input alone.

    The replacement is what the head writes on `corrupt`, or (None) its mean over batch and positions. Where
    AbsTopK acts on attn_out, only coordinates that it kept are replaced. pairs: (writer, reader) heads; default:
    all, one forward pass each. lengths: tokens of each row, of corrupt's too, that are no padding, as `batch.lengths`
    says for the prompts of a task; means and effects are over these, None: over all. Raises ValueError for pairs that
    are not heads in forward order, a corrupt of another shape and lengths that do not fit.

    Examples:
        >>> made = circuits.handmade.induction(decoy_heads=0)
        >>> prompts = made.task.batch(8, split="test", seed=0)
        >>> found = circuits.composition.composition_on_data(made.model, prompts.clean, corrupt=prompts.corrupt)
        >>> len(found.pairs) == len(found.effect)
        True
    """
    SAYS.check(model, "composition_on_data", instead="Score its weights with composition(model).")
    real = real_places(tokens, lengths)
    if corrupt is not None and corrupt.shape != tokens.shape:
        raise ValueError(
            f"corrupt: got shape {tuple(corrupt.shape)}; expected that of tokens, {tuple(tokens.shape)}. Give each row "
            "its corrupted counterpart."
        )
    pairs = _all_pairs(model) if pairs is None else list(pairs)
    _check(pairs)
    weights = head_weights(model)
    with torch.no_grad(), _split_inputs(model):
        logits, z, kept = _run(model, tokens, weights.layers)
        other = z if corrupt is None else _run(model, corrupt, weights.layers)[1]
        effects, divergences = [], []
        for writer, reader in pairs:
            own, new = (value[writer.layer][:, :, writer.number] for value in (z, other))
            new = only(real, new).mean((0, 1)) if corrupt is None else new
            W_O = weights.W_O[weights.layers.index(writer.layer), writer.number]
            delta = (new - own) @ W_O * kept[writer.layer]
            patched, seen = _patched(model, tokens, reader, delta)
            before = z[reader.layer][:, :, reader.number]
            effects.append(only(real, seen - before).norm() / only(real, before).norm().clamp_min(1e-30))
            divergences.append(_divergence(only(real, logits), only(real, patched)))
    return DataComposition(
        pairs=tuple(pairs), effect=torch.stack(effects).cpu(), divergence=torch.stack(divergences).cpu()
    )


def _all_pairs(model: Any) -> list[Pair]:
    weights = head_weights(model)
    ports: tuple[Port, ...] = ("Q", "K", "V")
    heads = [(layer, h) for layer in weights.layers for h in range(weights.n_heads)]
    return [
        (Writer(early, "head", a), Reader(late, "head", b, port))
        for early, a in heads
        for late, b in heads
        for port in ports
        if early < late
    ]


def _check(pairs: Sequence[Pair]) -> None:
    for writer, reader in pairs:
        if writer.kind != "head" or reader.kind != "head" or writer.layer >= reader.layer:
            raise ValueError(
                f"pairs: got {writer} -> {reader}; expected two heads, the reader in a later layer."
            )
    if not pairs:
        raise ValueError("pairs: got none; expected at least one pair of heads in different layers.")


@contextmanager
def _split_inputs(model: Any) -> Iterator[None]:
    """Give every head its own copies of its inputs, and put the setting back afterwards."""
    with model.hooks(fwd_hooks=[]):  # no other thread runs the model meanwhile
        before = bool(model.cfg.use_split_qkv_input)
        model.set_use_split_qkv_input(True)
        try:
            yield
        finally:
            model.set_use_split_qkv_input(before)


def _run(
    model: Any, tokens: Tensor, layers: Sequence[int]
) -> tuple[Tensor, dict[int, Tensor], dict[int, Tensor | float]]:
    """Logits, every layer's z, and which coordinates of attn_out AbsTopK kept (1.0: it does not act there)."""
    z: dict[int, Tensor] = {}
    out: dict[int, Tensor] = {}
    hooks = [(f"blocks.{layer}.attn.hook_z", partial(keep, z, layer)) for layer in layers]
    hooks += [(f"blocks.{layer}.hook_attn_out", partial(keep, out, layer)) for layer in layers]
    logits = model.run_with_hooks(tokens, fwd_hooks=hooks)
    kept: dict[int, Tensor | float] = {}
    for layer in layers:
        topk = getattr(model.blocks[layer], "topk_attn_out", None)
        acts = topk is not None and topk.k is not None
        kept[layer] = (out[layer] != 0).to(out[layer]) if acts else 1.0
    return logits, z, kept


def _patched(
    model: Any, tokens: Tensor, reader: Reader, delta: Float[Tensor, "batch pos d_model"]
) -> tuple[Tensor, Tensor]:
    """Logits and the reader's z when `delta` is added to one of its inputs."""
    seen: dict[int, Tensor] = {}
    name = f"blocks.{reader.layer}.attn.hook_"
    add = partial(_add_to_head, reader.number, model.cfg.n_heads, delta)
    hooks = [(f"{name}{reader.port.lower()}_input", add), (f"{name}z", partial(keep, seen, 0))]
    logits = model.run_with_hooks(tokens, fwd_hooks=hooks)
    return logits, seen[0][:, :, reader.number]


def _add_to_head(head: int, n_heads: int, delta: Tensor, value: Tensor, hook: Any) -> Tensor:
    value = value.clone()
    # Grouped key-value heads have fewer copies than there are heads.
    value[:, :, head * value.shape[2] // n_heads] += delta
    return value


def _divergence(logits: Tensor, patched: Tensor) -> Float[Tensor, ""]:
    p, q = logits.log_softmax(-1), patched.log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1).mean().clamp_min(0)
