"""What takes the place of a coordinate that is left out: its mean, zero, its mean there, or another text's value."""

from collections.abc import Callable
from functools import partial
from typing import Any, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuits.circuit.nodes import HOSTILE, Ablation
from circuits.model.sites import Site
from circuits.model.subject import Subject
from circuits.model.tokens import only, real_places

N_TEXTS = 16
"""Texts that resample ablation takes values from; prompt i meets text i modulo that many."""


def mean_values(
    model: Subject,
    tokens: Int[Tensor, "batch pos"],
    *,
    lengths: Int[Tensor, " batch"] | None = None,
    batch_size: int = 64,
) -> dict[Site, Tensor]:
    """Mean of every coordinate of every site, averaged over batch and positions of a real forward pass.

    lengths: tokens of each row that count, where the rest is padding, as `batch.lengths` says for the prompts of a
    task; None: all of them. Raises ValueError for lengths that do not fit the tokens.
    """
    real = real_places(tokens, lengths)
    sums = {site: torch.zeros(width, dtype=torch.float64) for site, width in model.widths.items()}
    for chunk, places in zip(tokens.split(batch_size), real.split(batch_size), strict=True):
        found = _site_values(model, chunk, partial(_total, places))
        sums = {site: total + found[site] for site, total in sums.items()}
    return {site: (total / int(real.sum())).to(model.like) for site, total in sums.items()}


def ablation_values(
    model: Subject,
    tokens: Int[Tensor, "batch pos"],
    kind: Ablation,
    *,
    lengths: Int[Tensor, " batch"] | None = None,
) -> dict[Site, Tensor]:
    """Replacement values from text: what each kind of ablation is, `Ablation` says.

    mean and zero: [width] for each site; position: [pos, width]; resample: [text, pos, width], of the first texts;
    stochastic and adversarial: the mean, from which they start.
    lengths: as in `mean_values`; pos is then the longest, a position's mean is over the rows that reach it, and
    resample takes the first of the longest rows.
    """
    if kind not in get_args(Ablation):
        raise ValueError(f"ablation: got {kind!r}; expected one of {get_args(Ablation)}.")
    if kind == "mean" or kind in HOSTILE:
        return mean_values(model, tokens, lengths=lengths)
    real = real_places(tokens, lengths)
    if kind == "zero":
        return {site: torch.zeros(width).to(model.like) for site, width in model.widths.items()}
    if lengths is not None:
        width = int(lengths.max())
        tokens, real = tokens[:, :width], real[:, :width]
    if kind == "resample":
        return _site_values(model, tokens[real.all(dim=1)][:N_TEXTS])
    if bool(real.all()):
        return _site_values(model, tokens, lambda value: value.mean(dim=0))
    rows = real.sum(dim=0)[:, None]
    return _site_values(model, tokens, lambda value: value.masked_fill(~real[..., None], 0).sum(dim=0) / rows)


def _total(real: Bool[Tensor, "batch pos"], value: Float[Tensor, "batch pos width"]) -> Tensor:
    return only(real, value.double()).sum(dim=(0, 1)).cpu()


def _site_values(
    model: Subject, tokens: Int[Tensor, "batch pos"], take: Callable[[Tensor], Tensor] = lambda value: value
) -> dict[Site, Tensor]:
    """What is taken of the values [batch, pos, width] of every site: all of them, or say their mean."""
    found: dict[Site, Tensor] = {}

    hooks = [(model.hook_name(site), partial(_take, found, site, take)) for site in model.sites()]
    with torch.inference_mode(False), torch.no_grad(), model.hooks(fwd_hooks=hooks):
        model(tokens)
    return found


def _take(
    found: dict[Site, Tensor], site: Site, take: Callable[[Tensor], Tensor], value: Tensor, hook: Any
) -> None:
    found[site] = take(value.flatten(2))
