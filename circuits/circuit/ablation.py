"""What takes the place of a coordinate that is left out: its mean, zero, its mean there, or another text's value."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuits.circuit.nodes import HOSTILE, Ablation
from circuits.model.kinds import of_subjects
from circuits.model.sites import Site
from circuits.model.subject import Subject
from circuits.model.tokens import only, real_places
from circuits.model.transformer import SparseTransformer
from tasks.near import unknown

N_TEXTS = 16
"""Texts that resample ablation takes values from; prompt i meets text i modulo that many."""


@of_subjects
def mean_values(
    model: Subject,
    tokens: Int[Tensor, "batch pos"],
    *,
    lengths: Int[Tensor, " batch"] | None = None,
    batch_size: int = 64,
) -> dict[Site, Tensor]:
    """Mean of every coordinate of every site, averaged over batch and positions of a real forward pass.

    [width] a site; where nodes are whole heads, all their channels, head after head.

    lengths: tokens of each row that count, where the rest is padding, as `batch.lengths` says for the prompts of a
    task; None: all of them. Raises ValueError for lengths that do not fit the tokens.

    Examples:
        >>> found = circuits.load("quotes-128")
        >>> values = circuits.mean_values(found.model, found.corpus.val[:400].view(10, 40))
        >>> values[circuits.Site(0, "attn_v")].shape
        torch.Size([128])
    """
    real = real_places(tokens, lengths)
    sums: dict[Site, Any] = dict.fromkeys(model.widths, 0)
    counts = dict.fromkeys(sums, 0)
    for chunk, places in zip(tokens.split(batch_size), real.split(batch_size), strict=True):
        at = {site: _places(model, site, chunk, places) for site in sums}
        found = site_values(model, chunk, partial(_total, at))
        sums = {site: total + found[site] for site, total in sums.items()}
        counts = {site: count + int(at[site].sum()) for site, count in counts.items()}
    return {site: (total / counts[site]).to(model.like) for site, total in sums.items()}


@of_subjects
def ablation_values(
    model: Subject,
    tokens: Int[Tensor, "batch pos"],
    kind: Ablation,
    *,
    lengths: Int[Tensor, " batch"] | None = None,
) -> dict[Site, Tensor]:
    """Replacement values from text: what each kind of ablation is, `Ablation` says.

    mean and zero: [width] for each site; position: [pos, width]; resample: [text, pos, width], of the first texts
    (where nodes are whole heads, width is that of all their channels, head after head); stochastic and adversarial: the
    mean, from which they start. lengths: as in `mean_values`; pos is then the longest, a position's mean is over the
    rows that reach it, and resample takes the first of the longest rows.

    Examples:
        >>> found = circuits.load("quotes-128")
        >>> text = found.corpus.val[:400].view(10, 40)
        >>> zeros = circuits.circuit.ablation_values(found.model, text, "zero")
        >>> zeros[circuits.Site(0, "attn_v")].any().item()
        False
    """
    if kind not in get_args(Ablation):
        raise ValueError(unknown("ablation", kind, get_args(Ablation)))
    _check_places(model, kind)
    if kind == "mean" or kind in HOSTILE:
        return mean_values(model, tokens, lengths=lengths)
    real = real_places(tokens, lengths)
    if kind == "zero":
        found = site_values(model, tokens[:1], _nothing)
        return {site: found[site] for site in model.widths}
    if lengths is not None:
        width = int(lengths.max())
        tokens, real = tokens[:, :width], real[:, :width]
    if kind == "resample":
        return site_values(model, tokens[real.all(dim=1)][:N_TEXTS])
    return site_values(model, tokens, partial(_mean_there, real))


def _places(
    model: Subject, site: Site, tokens: Int[Tensor, "batch pos"], real: Bool[Tensor, "batch pos"]
) -> Bool[Tensor, "batch place"]:
    """True where the values of a site count: of text, whichever of a row's two texts the site has the places of."""
    return model.places(tokens, real, site) if isinstance(model, SparseTransformer) else real


def _mean_there(
    real: Bool[Tensor, "batch pos"], site: Site, value: Float[Tensor, "batch pos width"]
) -> Tensor:
    """Mean at each position over the rows that reach it."""
    if bool(real.all()):
        return value.mean(dim=0)
    return value.masked_fill(~real[..., None], 0).sum(dim=0) / real.sum(dim=0)[:, None]


def _check_places(model: Subject, kind: Ablation) -> None:
    two_stacks = isinstance(model, SparseTransformer) and model.encoder is not None
    if two_stacks and kind not in ("mean", "zero"):
        raise ValueError(
            f"ablation: got {kind!r} for a model with arch='encdec'; expected 'mean' or 'zero'. What is carried over "
            "from a position of the source has no position in the target, and another text may have padding there."
        )


def _total(real: Mapping[Site, Tensor], site: Site, value: Float[Tensor, "batch pos width"]) -> Tensor:
    return only(real[site], value.double()).sum(dim=(0, 1)).cpu()


def _nothing(site: Site, value: Float[Tensor, "batch pos width"]) -> Float[Tensor, " width"]:
    return torch.zeros_like(value[0, 0])


def _whole(site: Site, value: Tensor) -> Tensor:
    return value


def site_values(
    model: Subject,
    tokens: Int[Tensor, "batch pos"],
    take: Callable[[Site, Tensor], Tensor] = _whole,
) -> dict[Site, Tensor]:
    """What is taken of the values [batch, pos, width] of every site: all of them, or say their mean."""
    found: dict[Site, Tensor] = {}
    hooks = [(model.hook_name(site), partial(_take, found, site, take)) for site in model.sites()]
    with torch.inference_mode(False), torch.no_grad(), model.hooks(fwd_hooks=hooks):
        model(tokens)
    return found


def _take(
    found: dict[Site, Tensor], site: Site, take: Callable[[Site, Tensor], Tensor], value: Tensor, hook: Any
) -> None:
    found[site] = take(site, value.flatten(2))
