"""What bridges are worth, on held-out text: error of the maps, and the loss that hybrid passes keep."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from circuits.bridges.maps import BridgeSet, Maps, Pair, cross, put
from circuits.bridges.sides import Role, Side, still
from circuits.statistics import share_of

CHUNK = 32
"""Sequences of a pass; validation runs without gradients."""


class NonFiniteLossError(ValueError):
    """A pass of a model, a hybrid or an ablation has a loss that is not finite."""


def nmse(prediction: Float[Tensor, "*batch d"], target: Float[Tensor, "*batch d"]) -> Float[Tensor, ""]:
    """`||prediction - target||^2 / ||target - mean(target)||^2`, the mean over all but the last axis.

    0: exact; 1: no better than the mean. Source: Gao et al. 2025 (arXiv 2511.13653), bridges.
    """
    spread = (target - target.flatten(0, -2).mean(dim=0)).square().sum()
    return (prediction - target).square().sum() / spread.clamp_min(1e-12)


def kl_per_token(
    reference: Float[Tensor, "batch pos d_vocab"], logits: Float[Tensor, "batch pos d_vocab"]
) -> Float[Tensor, ""]:
    """KL(reference || other) between next-token distributions, in nats, averaged over tokens."""
    p, q = reference.flatten(0, 1).log_softmax(-1), logits.flatten(0, 1).log_softmax(-1)
    return F.kl_div(q, p, reduction="batchmean", log_target=True)


def next_token_loss(
    logits: Float[Tensor, "batch pos d_vocab"], tokens: Int[Tensor, "batch pos"]
) -> Float[Tensor, ""]:
    """Mean next-token cross-entropy in nats. Raises ValueError for sequences without a next token."""
    if tokens.shape[1] < 2:
        raise ValueError(
            f"tokens: got sequences of {tokens.shape[1]} token; expected at least 2, for a next one."
        )
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


def bridge_metrics(bridges: BridgeSet, tokens: Int[Tensor, "batch pos"]) -> dict[str, Any]:
    """Metrics on `tokens`: plain losses of both models (nats), and in `locations` a row for each pair.

    A row has nmse_encode and nmse_decode, the loss of the hybrid that changes model there in either direction,
    the loss of the model it ends in with the residual stream there held at its mean (over batch and position),
    and recovered = (ablated - hybrid) / (ablated - plain): 0 is mean ablation, 1 is the plain model; None where mean
    ablation costs next to nothing or helps, so that there is nothing to recover.
    """
    sides = {"dense": Side(bridges.dense, "dense"), "sparse": Side(bridges.sparse, "sparse")}
    with torch.no_grad(), still(bridges.dense, bridges.sparse):
        values = {
            role: _activations(side, tokens, list(dict.fromkeys(getattr(p, role) for p in bridges.pairs)))
            for role, side in sides.items()
        }
        plain = {role: _loss(side, tokens) for role, side in sides.items()}
        rows = [_row(sides, values, plain, tokens, *bridges.at(pair)) for pair in bridges.pairs]
    return {"loss_dense": plain["dense"], "loss_sparse": plain["sparse"], "locations": rows}


def chain_losses(
    bridges: BridgeSet, tokens: Int[Tensor, "batch pos"], *, start: Role = "dense"
) -> Float[Tensor, "n_pairs n_pairs"]:
    """Loss in nats of passes with two crossings: out of `start` at row, back at column; NaN where impossible."""
    sides = {"dense": Side(bridges.dense, "dense"), "sparse": Side(bridges.sparse, "sparse")}
    ties = [bridges.at(pair) for pair in bridges.pairs]
    losses = torch.full((len(ties), len(ties)), torch.nan)
    between: Role = "sparse" if start == "dense" else "dense"
    order = [sides[between].locations.index(getattr(pair, between)) for pair, _ in ties]
    with torch.no_grad(), still(bridges.dense, bridges.sparse):
        for i, out in enumerate(ties):
            for j, back in enumerate(ties):
                if order[j] >= order[i]:
                    parts = [
                        (cross(sides, chunk, [out, back], start), chunk) for chunk in tokens.split(CHUNK)
                    ]
                    losses[i, j] = _mean_loss(parts)
    return losses


def _row(
    sides: dict[str, Side],
    values: dict[str, dict[str, Tensor]],
    plain: dict[str, float],
    tokens: Tensor,
    pair: Pair,
    maps: Maps,
) -> dict[str, Any]:
    dense, sparse = values["dense"][pair.dense], values["sparse"][pair.sparse]
    encoded, decoded = maps.encode(dense), maps.decode(sparse)
    row: dict[str, Any] = {"location": str(pair), "dense": pair.dense, "sparse": pair.sparse}
    row |= {"nmse_encode": float(nmse(encoded, sparse)), "nmse_decode": float(nmse(decoded, dense))}
    for end, place, carried, own in (
        ("sparse", pair.sparse, encoded, sparse),
        ("dense", pair.dense, decoded, dense),
    ):
        name = "dense_to_sparse" if end == "sparse" else "sparse_to_dense"
        hybrid = _loss(sides[end], tokens, place, carried)
        ablated = _loss(sides[end], tokens, place, own.mean(dim=(0, 1)).expand_as(own))
        row[f"loss_{name}"], row[f"ablated_{name}"] = hybrid, ablated
        row[f"recovered_{name}"] = share_of(ablated - hybrid, ablated - plain[end])
    return row


def _activations(side: Side, tokens: Tensor, places: Sequence[str]) -> dict[str, Tensor]:
    chunks = [side.run(chunk, keep=places)[1] for chunk in tokens.split(CHUNK)]
    return {place: torch.cat([chunk[place] for chunk in chunks]) for place in places}


def _loss(side: Side, tokens: Tensor, place: str = "", value: Tensor | None = None) -> float:
    parts = []
    for i, chunk in enumerate(tokens.split(CHUNK)):
        edit = {} if value is None else {place: put(value[i * CHUNK : i * CHUNK + len(chunk)])}
        parts.append((side.run(chunk, replace=edit)[0], chunk))
    return _mean_loss(parts)


def _mean_loss(parts: list[tuple[Tensor, Tensor]]) -> float:
    total = sum(float(next_token_loss(logits, chunk)) * len(chunk) for logits, chunk in parts)
    if not math.isfinite(total):
        raise NonFiniteLossError(
            f"bridges: a pass has a loss of {total}; expected a finite one. Look for NaN among the weights of the "
            "models and the maps."
        )
    return total / sum(len(chunk) for _, chunk in parts)
