"""What bridges are worth, on held-out text: error of the maps, and the loss that hybrid passes keep."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from circuits.bridges.maps import BridgeSet, Maps, Pair, cross, put
from circuits.bridges.sides import Role, Side, still
from circuits.model.layers import wide
from circuits.model.tokens import only, real_places
from circuits.statistics import share_of
from circuits.training.losses import nmse

CHUNK = 32
"""Sequences of a pass; validation runs without gradients."""
IGNORED = -100
"""Stands for a token that is no target."""


class Text(NamedTuple):
    """Tokens, where they are text and no padding, and the position from which on bridges carry values."""

    tokens: Int[Tensor, "batch pos"]
    real: Bool[Tensor, "batch pos"]
    first: int

    def chunks(self) -> list["Text"]:
        """Rows that are run together."""
        parts = zip(self.tokens.split(CHUNK), self.real.split(CHUNK), strict=True)
        return [Text(tokens, real, self.first) for tokens, real in parts]

    def bridged(self) -> Bool[Tensor, "batch pos"]:
        """Where bridges carry values. Raises ValueError where that is nowhere."""
        found = self.real.clone()
        found[:, : self.first] = False
        if not bool(found.any()):
            raise ValueError(
                f"tokens: got texts of at most {int(self.real.sum(dim=1).max())} tokens; expected more than "
                f"{self.first}, the positions that these bridges leave alone. Give longer texts."
            )
        return found

    def n_targets(self) -> int:
        """Tokens that are foretold."""
        return int(self.real[:, 1:].sum())


class NonFiniteLossError(ValueError):
    """A pass of a model, a hybrid or an ablation has a loss that is not finite."""


def position_0_share(
    value: Float[Tensor, "batch pos d"], real: Bool[Tensor, "batch pos"]
) -> Float[Tensor, ""]:
    """Share of the sum of squares about the mean (over batch and position) that position 0 holds, in [0, 1].

    Of n positions it is 1 / n where all are alike; a value at position 0 that is always the same gets to 1 - 1 / n,
    however large it is. real: where tokens are text and no padding.
    """
    value = wide(value)
    squares = (value - only(real, value).mean(dim=(0, 1))).square().sum(-1) * real
    return squares[:, 0].sum() / squares.sum().clamp_min(1e-12)


def next_token_loss(
    logits: Float[Tensor, "batch pos d_vocab"],
    tokens: Int[Tensor, "batch pos"],
    real: Bool[Tensor, "batch pos"] | None = None,
) -> Float[Tensor, ""]:
    """Mean next-token cross-entropy in nats; real: where tokens are text and no padding, None: everywhere.

    Raises ValueError for sequences without a next token.
    """
    if tokens.shape[1] < 2:
        raise ValueError(
            f"tokens: got sequences of {tokens.shape[1]} token; expected at least 2, for a next one."
        )
    after = tokens[:, 1:] if real is None else tokens[:, 1:].masked_fill(~real[:, 1:], IGNORED)
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), after.flatten(), ignore_index=IGNORED)


def bridge_metrics(
    bridges: BridgeSet, tokens: Int[Tensor, "batch pos"], *, lengths: Int[Tensor, " batch"] | None = None
) -> dict[str, Any]:
    """Metrics on `tokens`: plain losses of both models (nats), and in `locations` a row for each pair.

    A row has nmse_encode and nmse_decode, the loss of the hybrid that changes model there in either direction,
    the loss of the model it ends in with the residual stream there held at its mean (over batch and position),
    and recovered = (ablated - hybrid) / (ablated - plain): 0 is mean ablation, 1 is the plain model; None where mean
    ablation costs next to nothing or helps, so that there is nothing to recover. Of the positions before
    `bridges.first` no error is counted and no mean taken, and none is carried over or held; losses are those of all.
    position_0_share_dense and _sparse: see `position_0_share`; they are of all positions, whatever `first` is.
    lengths: tokens of each row that are no padding, as `batch.lengths` says for the prompts of a task; None: all.
    Raises ValueError where every text ends before position `first`.

    Examples:
        >>> bridges = circuits.load("mini-python-sparse").bridges
        >>> prompts = tasks.load_task("quotes").batch(8, split="test", seed=0)
        >>> metrics = circuits.bridges.bridge_metrics(bridges, prompts.clean, lengths=prompts.lengths)
        >>> [row["location"] for row in metrics["locations"]]
        ['embed', '0.attn', '0.mlp']
    """
    text, sides = Text(tokens, real_places(tokens, lengths), bridges.first), bridges.sides
    with torch.no_grad(), still(bridges.dense, bridges.sparse):
        values = {
            role: _activations(side, tokens, list(dict.fromkeys(getattr(p, role) for p in bridges.pairs)))
            for role, side in sides.items()
        }
        plain = {role: _loss(side, text) for role, side in sides.items()}
        rows = [_row(sides, values, plain, text, *bridges.at(pair)) for pair in bridges.pairs]
    return {"loss_dense": plain["dense"], "loss_sparse": plain["sparse"], "locations": rows}


def chain_losses(
    bridges: BridgeSet,
    tokens: Int[Tensor, "batch pos"],
    *,
    start: Role = "dense",
    lengths: Int[Tensor, " batch"] | None = None,
) -> Float[Tensor, "n_pairs n_pairs"]:
    """Loss in nats of passes with two crossings: out of `start` at row, back at column; NaN where impossible.

    lengths: tokens of each row that are no padding; None: all.

    Examples:
        >>> bridges = circuits.load("mini-python-sparse").bridges
        >>> prompts = tasks.load_task("quotes").batch(8, split="test", seed=0)
        >>> circuits.bridges.chain_losses(bridges, prompts.clean, lengths=prompts.lengths).shape
        torch.Size([3, 3])
    """
    text, sides = Text(tokens, real_places(tokens, lengths), bridges.first), bridges.sides
    ties = [bridges.at(pair) for pair in bridges.pairs]
    losses = torch.full((len(ties), len(ties)), torch.nan)
    between: Role = "sparse" if start == "dense" else "dense"
    order = [sides[between].locations.index(getattr(pair, between)) for pair, _ in ties]
    with torch.no_grad(), still(bridges.dense, bridges.sparse):
        for i, out in enumerate(ties):
            for j, back in enumerate(ties):
                if order[j] >= order[i]:
                    parts = [
                        (cross(sides, chunk.tokens, [out, back], start, first=text.first), chunk)
                        for chunk in text.chunks()
                    ]
                    losses[i, j] = _mean_loss(parts)
    return losses


def _row(
    sides: dict[str, Side],
    values: dict[str, dict[str, Tensor]],
    plain: dict[str, float],
    text: Text,
    pair: Pair,
    maps: Maps,
) -> dict[str, Any]:
    dense, sparse = values["dense"][pair.dense], values["sparse"][pair.sparse]
    encoded, decoded = maps.encode(dense), maps.decode(sparse)
    bridged = text.bridged()
    row: dict[str, Any] = {"location": str(pair), "dense": pair.dense, "sparse": pair.sparse}
    row |= {
        "nmse_encode": float(nmse(only(bridged, encoded), only(bridged, sparse))),
        "nmse_decode": float(nmse(only(bridged, decoded), only(bridged, dense))),
        "position_0_share_dense": float(position_0_share(dense, text.real)),
        "position_0_share_sparse": float(position_0_share(sparse, text.real)),
    }
    for end, place, carried, own in (
        ("sparse", pair.sparse, encoded, sparse),
        ("dense", pair.dense, decoded, dense),
    ):
        name = "dense_to_sparse" if end == "sparse" else "sparse_to_dense"
        hybrid = _loss(sides[end], text, place, carried)
        ablated = _loss(sides[end], text, place, only(bridged, own).mean(dim=(0, 1)).expand_as(own))
        row[f"loss_{name}"], row[f"ablated_{name}"] = hybrid, ablated
        row[f"recovered_{name}"] = share_of(ablated - hybrid, ablated - plain[end])
    return row


def _activations(side: Side, tokens: Tensor, places: Sequence[str]) -> dict[str, Tensor]:
    chunks = [side.run(chunk, keep=places)[1] for chunk in tokens.split(CHUNK)]
    return {place: torch.cat([chunk[place] for chunk in chunks]) for place in places}


def _loss(side: Side, text: Text, place: str = "", value: Tensor | None = None) -> float:
    parts = []
    for i, chunk in enumerate(text.chunks()):
        rows = slice(i * CHUNK, i * CHUNK + len(chunk.tokens))
        edit = {} if value is None else {place: put(value[rows], text.first)}
        parts.append((side.run(chunk.tokens, replace=edit)[0], chunk))
    return _mean_loss(parts)


def _mean_loss(parts: list[tuple[Tensor, Text]]) -> float:
    """Over all targets: a part counts by how many it has."""
    losses = [
        (float(next_token_loss(logits, text.tokens, text.real)), text.n_targets()) for logits, text in parts
    ]
    if not any(n for _, n in losses):
        raise ValueError(
            "lengths: got rows of 1 token; expected at least one of 2 or more, for a next token."
        )
    total = sum(loss * n for loss, n in losses if n)
    if not math.isfinite(total):
        raise NonFiniteLossError(
            f"bridges: a pass has a loss of {total}; expected a finite one. Look for NaN among the weights of the "
            "models and the maps."
        )
    return total / sum(n for _, n in losses)
