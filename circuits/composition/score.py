"""Composition scores of every pair of a writer and a later reader, and their significance."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuits.composition.nulls import Null, NullSummary, benjamini_hochberg, null_summary
from circuits.composition.parts import Parts, Port, Reader, Writer, divided, norms, parts_of, product_norms
from circuits.settings import Seed, checked
from circuits.views import PlottedAsGraph, html_table


class CompositionEdge(NamedTuple):
    """One pair of a writer and a later reader."""

    writer: Writer
    reader: Reader
    score: float
    """`||M_w M_r|| / (||M_w|| ||M_r||)`, 0 to 1."""
    null_mean: float
    z: float
    """(score - mean of the null model) / its standard deviation; 0 where the null model does not vary."""
    p: float
    q: float
    """Smallest false-discovery rate, over all pairs, at which the edge is significant."""

    def __str__(self) -> str:
        return f"{self.writer} -> {self.reader}"


@dataclass(frozen=True, kw_only=True)
class Composition(PlottedAsGraph):
    """Composition of every writer with every later reader, against one null model."""

    writers: tuple[Writer, ...]
    readers: tuple[Reader, ...]
    later: Bool[Tensor, "writer reader"]
    "True for the pairs that were compared: readers that come after the writer."
    scores: Float[Tensor, "writer reader"]
    "0 for a matrix of zeros and for pairs that were not compared."
    null_mean: Float[Tensor, "writer reader"]
    null_std: Float[Tensor, "writer reader"]
    null_rms: Float[Tensor, "writer reader"]
    "Root mean square; 1 / sqrt(d_model) for random rotations."
    p: Float[Tensor, "writer reader"]
    q: Float[Tensor, "writer reader"]
    "Benjamini-Hochberg over all compared pairs."
    null: Null
    n_null: int
    seed: int

    @property
    def z(self) -> Float[Tensor, "writer reader"]:
        """(score - null mean) / null standard deviation."""
        distance = torch.where(self.later, self.scores - self.null_mean, 0.0)
        return torch.where(self.null_std > 1e-7, distance / self.null_std.clamp_min(1e-7), 0.0)

    @property
    def edges(self) -> list[CompositionEdge]:
        """All compared pairs, the most significant first (then by z)."""
        z = self.z
        found = [
            CompositionEdge(
                self.writers[w],
                self.readers[r],
                *(float(x[w, r]) for x in (self.scores, self.null_mean, z, self.p, self.q)),
            )
            for w, r in self.later.nonzero().tolist()
        ]
        return sorted(found, key=lambda edge: (edge.q, edge.p, -edge.z))

    def significant(self, rate: float = 0.05) -> list[CompositionEdge]:
        """Edges found at a false-discovery rate of at most `rate`."""
        return [edge for edge in self.edges if edge.q <= rate]

    def edge(self, writer: str, reader: str) -> CompositionEdge:
        """The pair with these labels, such as `edge("L0H0", "L1H0.K")`. Raises ValueError for others."""
        for found in self.edges:
            if (str(found.writer), str(found.reader)) == (writer, reader):
                return found
        raise ValueError(
            f"edge: no pair {writer} -> {reader}; expected a writer such as {self.writers[0]} and a later reader "
            f"such as {self.readers[-1]}."
        )

    def matrix(self, port: Port, field: str = "scores") -> Float[Tensor, "writer reader"]:
        """One port's columns of `scores`, `z`, `p`, `q` or `null_mean`."""
        columns = [i for i, reader in enumerate(self.readers) if reader.port == port]
        if not columns:
            raise ValueError(f"port: got {port!r}; expected one of {sorted({r.port for r in self.readers})}.")
        return getattr(self, field)[:, columns]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types: the compared pairs as rows."""
        rows = [[str(e.writer), str(e.reader), *e[2:]] for e in self.edges]
        columns = ["writer", "reader", *CompositionEdge._fields[2:]]
        return {
            "null": self.null,
            "n_null": self.n_null,
            "seed": self.seed,
            "columns": columns,
            "edges": rows,
        }

    def __repr__(self) -> str:
        found = self.significant()
        names = ", ".join(str(edge) for edge in found[:5]) + (", ..." if len(found) > 5 else "")
        return (
            f"Composition({int(self.later.sum())} pairs against {self.n_null} x {self.null}; "
            f"{len(found)} at 5 % false discovery{': ' if found else ''}{names})"
        )

    def _repr_html_(self) -> str:
        rows = [
            [str(e), f"{e.score:.3f}", f"{e.null_mean:.3f}", f"{e.z:+.1f}", f"{e.p:.2g}", f"{e.q:.2g}"]
            for e in self.edges[:20]
        ]
        return f"<p>{escape(repr(self))}</p>" + html_table(["edge", "score", "null", "z", "p", "q"], rows)


def composition_scores(
    model: Any,
    *,
    neurons: bool | Sequence[tuple[int, int]] = False,
    layers: Collection[int] | None = None,
) -> tuple[Parts, Float[Tensor, "writer reader"]]:
    """Scores of all pairs of a writer and a later reader, without null model; 0 elsewhere, never NaN.

    neurons, layers: as in `composition`.

    Equal to `transformer_lens.utilities.composition_scores` where that is defined. Source: Elhage et al. 2021,
    "A Mathematical Framework for Transformer Circuits".

    Examples:
        >>> model = circuits.handmade.induction().model
        >>> parts, scores = circuits.composition.composition_scores(model)
        >>> scores.shape
        torch.Size([16, 48])
    """
    parts = parts_of(model, neurons, layers)
    written, read = [m.factors for m in parts.written], [m.factors for m in parts.read]
    sizes = norms(written)[:, None] * norms(read)
    scores = divided(product_norms(written, read), sizes)
    return parts, torch.where(parts.later, scores, 0.0)


def composition(
    model: Any,
    *,
    null: Null = "permute",
    neurons: bool | Sequence[tuple[int, int]] = False,
    layers: Collection[int] | None = None,
    n_null: int = 1000,
    max_null: int = 20_000,
    seed: int = 0,
    progress: bool | None = None,
) -> Composition:
    """Score every pair of a writer and a later reader against a null model.

    null: "permute" (residual channels permuted; the default), "redraw" (nonzeros redrawn in each matrix) or
    "rotate" (random rotations; for dense models). neurons: MLP neurons on both ends, all or as (layer, index).
    layers: only heads and neurons of these. n_null draws serve all pairs, up to `max_null` those with small p-values.
    progress: a bar on standard error, with an estimate of what is left; None: where that is long. Raises ValueError for
    another null model, a bad number of draws, or a neuron or a layer that the model does not have.

    Examples:
        >>> model = circuits.handmade.induction(decoys=0, decoy_heads=0).model
        >>> found = circuits.composition.composition(model, n_null=50, max_null=50)
        >>> print(found.edges[0])
        L0H0 -> L1H0.K
    """
    n_null, max_null = checked("n_null", n_null, int), checked("max_null", max_null, int)
    seed = checked("seed", seed, Seed)
    parts, scores = composition_scores(model, neurons=neurons, layers=layers)
    summary: NullSummary = null_summary(
        parts, scores, null=null, n_null=n_null, max_null=max(n_null, max_null), seed=seed, progress=progress
    )
    q = torch.ones_like(summary.p)
    q[parts.later] = benjamini_hochberg(summary.p[parts.later])
    return Composition(
        writers=parts.writers,
        readers=parts.readers,
        later=parts.later,
        scores=scores,
        null_mean=summary.mean,
        null_std=summary.std,
        null_rms=summary.rms,
        p=summary.p.float(),
        q=q.float(),
        null=null,
        n_null=n_null,
        seed=seed,
    )
