"""Steering: move channels of the sparse model, carry the move across a bridge, and see what the dense model says.

At a pair of locations, delta_sparse = strength * (value on the counterfactual prompt - value), on the chosen
channels only; delta_dense = delta_sparse W_d is added to the dense residual stream. The choice of channels is
made on the sparse model alone. Two controls of equal norm at every position, several draws each: the same move
on other channels, and along random directions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from circuits.bridges import BridgeSet, Pair, Side, locations
from circuits.bridges.sides import still
from circuits.circuit.circuit import Circuit
from circuits.circuit.score import margins
from circuits.model.transformer import SparseTransformer
from circuits.settings import Seed, Whole, checked
from circuits.views import Plotted
from tasks import Batch
from tasks.base import Targets

STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)
"""The default sweep."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Probabilities of the next token after each prompt, over the whole vocabulary, by strength."""

    p_answer: Float[Tensor, "*draws n_strengths n_prompts"]
    "Of the token that is right without steering."
    p_foil: Float[Tensor, "*draws n_strengths n_prompts"]
    "Of the token that is right on the counterfactual prompt."

    def between_two(self) -> Float[Tensor, "*draws n_strengths n_prompts"]:
        """P(foil) / (P(answer) + P(foil)): which of the two, whether or not either comes next."""
        return self.p_foil / (self.p_answer + self.p_foil).clamp_min(1e-30)


@dataclass(frozen=True, kw_only=True)
class Steering(Plotted):
    """A sweep over strengths, with its controls."""

    location: str
    "The pair of locations whose bridge carried the move."
    channels: tuple[int, ...]
    "Channels of the sparse residual stream that were moved."
    strengths: tuple[float, ...]
    "1: the counterfactual value, or one `amount`."
    steered: Outcome
    "The dense model with the move carried over, [strength, prompt]."
    sparse: Outcome
    "The sparse model with its own channels moved, [strength, prompt]."
    random_channel: Outcome
    "Control: other channels, equal norm, [draw, strength, prompt]."
    random_direction: Outcome
    "Control: random directions, equal norm, [draw, strength, prompt]."

    def curve(self, of: Literal["steered", "sparse", "random_channel", "random_direction"]) -> list[float]:
        """Mean share of the foil between the two tokens at each strength, over prompts and draws."""
        share = getattr(self, of).between_two()
        return share.flatten(0, -3).mean(dim=(0, -1)).tolist() if share.ndim == 3 else share.mean(-1).tolist()

    def summary(self) -> dict[str, Any]:
        """Mean share of the foil before and at the strength that moves it furthest, and what controls do there.

        control_change: mean over draws of the absolute change under the random-channel control at that strength;
        control_change_worst: the largest of the draws; direction_change: the mean for random directions.
        """
        curve = self.curve("steered")
        start = min(range(len(curve)), key=lambda i: abs(self.strengths[i]))
        best = max(range(len(curve)), key=lambda i: curve[i])
        changes = {}
        for name in ("random_channel", "random_direction"):
            mean = getattr(self, name).between_two().mean(-1)
            changes[name] = (mean[:, best] - mean[:, start]).abs()
        rising = all(
            later >= earlier - 1e-3
            for earlier, later in zip(curve[start:best], curve[start + 1 :], strict=False)
        )
        return {
            "location": self.location,
            "channels": list(self.channels),
            "p_foil_before": curve[start],
            "p_foil_after": curve[best],
            "strength": self.strengths[best],
            "monotone": rising,
            "control_change": float(changes["random_channel"].mean()),
            "control_change_worst": float(changes["random_channel"].max()),
            "direction_change": float(changes["random_direction"].mean()),
            "n_prompts": self.steered.p_foil.shape[-1],
        }

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types: the summary, every curve averaged over prompts (and draws), each draw of the control."""
        curves = {
            name: self.curve(name) for name in ("steered", "sparse", "random_channel", "random_direction")
        }
        whole = {
            "p_answer": self.steered.p_answer.mean(-1).tolist(),
            "p_foil": self.steered.p_foil.mean(-1).tolist(),
        }
        return {
            **self.summary(),
            "strengths": list(self.strengths),
            "curves": curves,
            "random_channel_draws": self.random_channel.between_two().mean(-1).tolist(),
            "whole_vocabulary": whole,
        }


def steer(
    bridges: BridgeSet,
    batch: Batch,
    location: Pair | str,
    channels: Sequence[int],
    *,
    strengths: Sequence[float] = STRENGTHS,
    amount: float | None = None,
    positions: Literal["all", "last"] = "all",
    n_controls: int = 8,
    seed: int = 0,
) -> Steering:
    """Move channels of the sparse model, carry the move to the dense one, and sweep its strength.

    Both prompts of each pair are steered, each toward the other: rows are those of `batch.tokens_and_targets()`.
    amount: move every position by this much (in units of the channel) instead of toward the counterfactual.
    positions: add the move at every position that the bridges carry, or at the last prompt token only. n_controls:
    draws of each control. Raises ValueError for a location without a bridge, or channels that do not exist.

    Examples:
        >>> bridges = circuits.load("mini-python-sparse").bridges
        >>> prompts = tasks.load_task("quotes").batch(8, split="test", seed=0)
        >>> steering = circuits.steer(bridges, prompts, "embed", [0], strengths=(0.0, 1.0), n_controls=1)
        >>> sorted(steering.summary())[:2]
        ['channels', 'control_change']
    """
    pair, maps = bridges.at(location)
    channels = checked("channels", list(channels), tuple[Whole, ...])
    strengths = checked("strengths", list(strengths), tuple[float, ...])
    amount = checked("amount", amount, float | None)
    n_controls, seed = checked("n_controls", n_controls, int), checked("seed", seed, Seed)
    _check(bridges, channels, strengths, positions, n_controls)
    targets = batch.tokens_and_targets()
    dense, sparse = bridges.sides["dense"], bridges.sides["sparse"]
    generator = torch.Generator().manual_seed(seed)
    rows = maps.decoder.weight.detach()
    chosen = torch.tensor(list(channels))
    with torch.no_grad(), still(bridges.dense, bridges.sparse):
        move = _move(sparse, pair.sparse, targets, chosen, amount, positions)
        move[:, : bridges.first] = 0
        delta = move @ rows[chosen]
        others = [_others(rows, channels, generator) for _ in range(n_controls)]
        noise = [
            torch.randn(len(chosen), rows.shape[1], generator=generator).to(rows) for _ in range(n_controls)
        ]

        def sweep(side: Side, place: str, change: Tensor) -> Outcome:
            return _sweep(side, place, targets, change, strengths)

        controls = [
            [sweep(dense, pair.dense, _like(move @ directions, delta)) for directions in draws]
            for draws in ([rows[other] for other in others], noise)
        ]
        return Steering(
            location=str(pair),
            channels=tuple(int(c) for c in channels),
            strengths=tuple(float(s) for s in strengths),
            steered=sweep(dense, pair.dense, delta),
            sparse=sweep(sparse, pair.sparse, move @ torch.eye(rows.shape[0], device=rows.device)[chosen]),
            random_channel=_stack(controls[0]),
            random_direction=_stack(controls[1]),
        )


def circuit_channels(circuit: Circuit, location: str) -> list[int]:
    """Residual channels that a circuit uses at a location: those it reads there (`embed`), else those it writes.

    Raises ValueError for a location that the circuit's model does not have.
    """
    if location not in locations(circuit.n_layers):
        raise ValueError(f"location: got {location!r}; expected one of {locations(circuit.n_layers)}.")
    layer, site = (0, "attn_in") if location == "embed" else _writes(location)
    return [node.index for node in circuit.nodes if (node.layer, node.site) == (layer, site)]


def _writes(location: str) -> tuple[int, str]:
    layer, part = location.split(".")
    return int(layer), f"{part}_out"


def channel_effects(sparse: SparseTransformer, batch: Batch, location: str) -> Float[Tensor, " d_model"]:
    """How far each channel alone moves the sparse model's answer, in nats of logit margin.

    The channel takes its counterfactual value at every position; the fall of the margin between answer and foil
    is averaged over both prompts of each pair. Raises ValueError for a location that does not exist.
    """
    side = Side(sparse, "sparse")
    if location not in side.locations:
        raise ValueError(f"location: got {location!r}; expected one of {side.locations}.")
    targets = batch.tokens_and_targets()
    effects = torch.zeros(side.d_model)
    with torch.no_grad(), still(sparse):
        difference = _difference(side, location, targets)
        plain = margins(side.run(targets.tokens)[0], targets)
        for channel in difference.abs().amax(dim=(0, 1)).nonzero().flatten().tolist():
            change = torch.zeros_like(difference)
            change[..., channel] = difference[..., channel]
            logits, _ = side.run(targets.tokens, replace={location: _adder(change)})
            effects[channel] = (plain - margins(logits, targets)).mean()
    return effects


def _difference(side: Side, place: str, targets: Targets) -> Tensor:
    """Value on the counterfactual prompt minus value, [row, pos, d_model]; zero after the prompt's end."""
    value = side.run(targets.tokens, keep=[place])[1][place]
    difference = value.roll(len(value) // 2, dims=0) - value
    within = torch.arange(value.shape[1], device=value.device) <= targets.position[:, None]
    return difference * within[..., None]


def _move(
    side: Side, place: str, targets: Targets, chosen: Tensor, amount: float | None, positions: str
) -> Tensor:
    """The move of each chosen channel at strength 1, [row, pos, channel]."""
    move = _difference(side, place, targets)[..., chosen]
    if amount is not None:
        move = torch.full_like(move, amount)
    if positions == "last":
        last = torch.arange(move.shape[1], device=move.device) == targets.position[:, None]
        move = move * last[..., None]
    return move


def _sweep(side: Side, place: str, targets: Targets, change: Tensor, strengths: Sequence[float]) -> Outcome:
    """Probabilities of answer and foil with `strength * change` added at a location."""
    rows = torch.arange(len(targets.tokens))
    found = []
    for strength in strengths:
        logits, _ = side.run(targets.tokens, replace={place: _adder(strength * change)})
        p = logits[rows, targets.position].softmax(-1)
        if not bool(p.isfinite().all()):
            raise ValueError(
                f"bridges: probabilities of the {side.role} model are NaN at strength {strength:g}; expected finite "
                "numbers. Look for NaN among the weights of the models and the maps, or take smaller strengths."
            )
        found.append((p[rows, targets.answer], p[rows, targets.foil]))
    return Outcome(p_answer=torch.stack([a for a, _ in found]), p_foil=torch.stack([f for _, f in found]))


def _adder(change: Tensor) -> Any:
    return lambda x: x + change.to(x)


def _like(change: Tensor, model: Tensor) -> Tensor:
    """`change` scaled, at every position of every row, to the norm of `model` there."""
    return change * (model.norm(dim=-1, keepdim=True) / change.norm(dim=-1, keepdim=True).clamp_min(1e-12))


def _others(rows: Tensor, channels: Sequence[int], generator: torch.Generator) -> Tensor:
    """As many other channels as were chosen, drawn from those that the decoder reads."""
    free = rows.abs().amax(dim=1) > 0
    free[list(channels)] = False
    candidates = free.nonzero().flatten()
    return candidates[torch.randperm(len(candidates), generator=generator)[: len(channels)]]


def _stack(draws: list[Outcome]) -> Outcome:
    return Outcome(
        p_answer=torch.stack([draw.p_answer for draw in draws]),
        p_foil=torch.stack([draw.p_foil for draw in draws]),
    )


def _check(
    bridges: BridgeSet, channels: Sequence[int], strengths: Sequence[float], positions: str, n_controls: int
) -> None:
    width = bridges.sparse.config.d_model
    if not channels or len(set(channels)) != len(channels) or not all(0 <= c < width for c in channels):
        raise ValueError(
            f"channels: got {list(channels)}; expected distinct channels of 0 to {width - 1}, at least one. "
            "channel_effects ranks them."
        )
    if 2 * len(channels) > width:
        raise ValueError(
            f"channels: got {len(channels)} of {width}; expected at most half, so that the control has as many others."
        )
    if not strengths or 0.0 not in strengths:
        raise ValueError(
            f"strengths: got {list(strengths)}; expected numbers with 0 among them, the comparison."
        )
    if positions not in ("all", "last"):
        raise ValueError(f"positions: got {positions!r}; expected 'all' or 'last'.")
    if n_controls < 1:
        raise ValueError(f"n_controls: got {n_controls}; expected at least 1 draw of each control.")
