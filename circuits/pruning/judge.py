"""Whether a part of a model solves a task: its loss and accuracy on fixed prompts, against the targets."""

import itertools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from circuits.circuit.masked import run_masked
from circuits.circuit.nodes import Edge, Node, edge_masks, node_masks
from circuits.circuit.score import Score, fitted_scale, margins, score_against, score_margins
from circuits.model.sites import Site, WeightAt, weights_among
from circuits.model.transformer import SparseTransformer
from tasks import Batch


class Judge:
    """Prompts, ablation values and targets; runs the model with some nodes and edges kept, and says if that will do.

    reference: the whole model's margins on the prompts, clean ones first, where it is the model that counts and not
    the right answers.
    """

    def __init__(
        self,
        model: SparseTransformer,
        batch: Batch,
        values: dict[Site, Tensor],
        *,
        target_loss: float,
        target_accuracy: float,
        calibrate: bool,
        reference: Tensor | None = None,
    ) -> None:
        self.model, self.values = model, values
        self.target_loss, self.target_accuracy, self.calibrate = target_loss, target_accuracy, calibrate
        self.n_pairs = n = len(batch)
        self.parts = [batch.rows(slice(*bounds)).tokens_and_targets() for bounds in _slices(n)]
        # Parts hold their clean prompts, then their corrupted ones; so must what they are compared with.
        order = torch.cat([torch.arange(a, b) + half for a, b in _slices(n) for half in (0, n)])
        self.reference = None if reference is None else reference[order]

    def score(self, nodes: Sequence[Node], edges: Sequence[Edge] | None = None) -> Score:
        """Validation score of `margins`, after calibration if the config asks for it."""
        return self._score(self.margins(nodes, edges))

    def solved(self, nodes: Sequence[Node], edges: Sequence[Edge] | None = None) -> Score | None:
        """The validation score if it meets both targets, else None.

        Most of what is tried fails on the first few prompts: reading stops as soon as no outcome on the
        remaining ones could meet the targets, which changes no answer.
        """
        read: list[Tensor] = []
        for margin in self._margins(nodes, edges):
            read.append(margin)
            if self._out_of_reach(torch.cat(read)):
                return None
        score = self._score(torch.cat(read))
        return score if self.meets(score) else None

    def _out_of_reach(self, read: Tensor) -> bool:
        share = len(read) / (2 * self.n_pairs)
        score = self._score(read)
        wrong = (1 - score.accuracy) * share
        return score.loss * share > self.target_loss or wrong > 1 - self.target_accuracy + 1e-9

    def _score(self, margin: Tensor) -> Score:
        """Of the first margins, as many as there are: against the right answers, or against the model's."""
        if self.reference is not None:
            return score_against(margin, self.reference[: len(margin)])
        return score_margins(margin * self.scale(margin))

    def meets(self, score: Score) -> bool:
        """Whether a score is within both targets."""
        return score.loss <= self.target_loss and score.accuracy >= self.target_accuracy

    def scale(self, margin: Tensor) -> float:
        """The calibration factor for these margins; 1 without calibration."""
        return fitted_scale(margin) if self.calibrate else 1.0

    def margins(self, nodes: Sequence[Node], edges: Sequence[Edge] | None = None) -> Tensor:
        """Validation margins with only these nodes kept, and only these edges (default: all between the nodes)."""
        return torch.cat(list(self._margins(nodes, edges)))

    def _margins(self, nodes: Sequence[Node], edges: Sequence[Edge] | None) -> Iterator[Tensor]:
        """The margins of the validation prompts, a few rows, then many, at a time.

        Weights that lead out of the circuit are cut as well: what is left out must not steer what is kept,
        not even by competing with it in AbsTopK.
        """
        masks = self.node_masks(nodes)
        cut = _all_between(masks) if edges is None else self.edge_masks(edges)
        for part in self.parts:
            with torch.no_grad():
                logits = run_masked(self.model, part.tokens, masks, self.values, cut)
            yield margins(logits, part)

    def node_masks(self, nodes: Sequence[Node]) -> dict[Site, Tensor]:
        """1 = keep, for these nodes, at every site."""
        config = self.model.config
        return node_masks(nodes, config.widths, self.model.W_E)

    def edge_masks(self, edges: Sequence[Edge]) -> dict[WeightAt, Tensor]:
        """1 = keep, for these edges, in every weight matrix."""
        config = self.model.config
        return edge_masks(edges, config.widths, self.model.W_E)


def _slices(n: int, first: int = 16, most: int = 64) -> list[tuple[int, int]]:
    """Bounds of consecutive parts of n rows: a small one, then larger ones that still fit the processor's cache."""
    bounds = [0, *range(first, n, most), n]
    return list(itertools.pairwise(bounds))


def _all_between(masks: dict[Site, Tensor]) -> dict[WeightAt, Tensor]:
    return {at: torch.outer(masks[at.source], masks[at.target]) for at in weights_among(masks)}
