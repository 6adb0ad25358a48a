"""What takes the place of a coordinate that is left out: its mean, zero, its mean there, or another text's value."""

from collections.abc import Callable
from typing import Any, get_args

import torch
from jaxtyping import Int
from torch import Tensor

from circuits.circuit.nodes import Ablation
from circuits.model.sites import Site
from circuits.model.subject import Subject

N_TEXTS = 16
"""Texts that resample ablation takes values from; prompt i meets text i modulo that many."""


def mean_values(
    model: Subject, tokens: Int[Tensor, "batch pos"], *, batch_size: int = 64
) -> dict[Site, Tensor]:
    """Mean of every coordinate of every site, averaged over batch and positions of a real forward pass."""
    sums = {site: torch.zeros(width, dtype=torch.float64) for site, width in model.widths.items()}

    def adder(site: Site) -> Callable[..., None]:
        def add(value: Tensor, hook: Any) -> None:
            sums[site] += value.flatten(2).double().sum(dim=(0, 1)).cpu()

        return add

    hooks: list[tuple[str, Callable]] = [(model.hook_name(site), adder(site)) for site in model.sites()]
    with torch.inference_mode(False), torch.no_grad(), model.hooks(fwd_hooks=hooks):
        for chunk in tokens.split(batch_size):
            model(chunk)
    return {site: (total / tokens.numel()).to(model.like) for site, total in sums.items()}


def ablation_values(model: Subject, tokens: Int[Tensor, "batch pos"], kind: Ablation) -> dict[Site, Tensor]:
    """Replacement values from text: what each kind of ablation is, `Ablation` says.

    mean and zero: [width] for each site; position: [pos, width]; resample: [text, pos, width], of the first texts.
    """
    if kind not in get_args(Ablation):
        raise ValueError(f"ablation: got {kind!r}; expected one of {get_args(Ablation)}.")
    if kind == "mean":
        return mean_values(model, tokens)
    if kind == "zero":
        return {site: torch.zeros(width).to(model.like) for site, width in model.widths.items()}
    found = _site_values(model, tokens[:N_TEXTS] if kind == "resample" else tokens)
    return found if kind == "resample" else {site: value.mean(dim=0) for site, value in found.items()}


def _site_values(model: Subject, tokens: Int[Tensor, "batch pos"]) -> dict[Site, Tensor]:
    """Values [batch, pos, width] of every site."""
    found: dict[Site, Tensor] = {}

    def keeper(site: Site) -> Callable[..., None]:
        def keep(value: Tensor, hook: Any) -> None:
            found[site] = value.flatten(2)

        return keep

    with torch.no_grad(), model.hooks(fwd_hooks=[(model.hook_name(s), keeper(s)) for s in model.sites()]):
        model(tokens)
    return found
