"""How well a ranking's best parts do the task: CPR and CMD, by the evaluator that judges circuits."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import nan

import torch
from torch import Tensor

from circuits.circuit.evaluator import MaskedModel
from circuits.model.compute import resting
from circuits.model.kinds import of_subjects
from circuits.model.subject import Subject
from circuits.ranking.methods import RankConfig, rank, task_means
from circuits.ranking.ranking import Ranking
from circuits.statistics import share_of
from circuits.trust.yardsticks import SHARES, area
from tasks import Task


@dataclass(frozen=True, kw_only=True)
class Curve:
    """f(C) = (m(C) - m(empty)) / (m(full) - m(empty)) at circuit sizes; m is the mean margin."""

    method: str
    "That ranked."
    kind: str
    "What is kept of the model: nodes, or edges."
    shares: tuple[float, ...]
    "Sizes, as shares of all parts."
    faithfulness: tuple[float, ...]
    "f at each; not a number where the whole model's margin is no greater than that of its empty self."

    @property
    def cpr(self) -> float:
        """Area under f: do the best parts carry the task?"""
        return area(list(self.faithfulness))

    @property
    def cmd(self) -> float:
        """Area between f and 1: is the circuit the model; 0 is best."""
        return area([abs(1 - f) for f in self.faithfulness])


@of_subjects
def curve(model: Subject, task: Task, ranking: Ranking, *, n_pairs: int = 64) -> Curve:
    """The curve of one ranking on test prompts; what is left out is at its mean over training prompts.

    Source: Mueller et al. 2025 (arXiv 2504.13151), section 3.

    Examples:
        >>> found = circuits.load("quotes-handmade")
        >>> ranking = circuits.ranking.rank(found.model, found.task, method="attribution patching")
        >>> curve = circuits.ranking.curve(found.model, found.task, ranking, n_pairs=8)
        >>> len(curve.shares) == len(curve.faithfulness)
        True
    """
    batch = task.batch(n_pairs, split="test", seed=0)
    runs = MaskedModel(model, task_means(model, task), batch)
    sizes = [max(1, round(share * ranking.n_parts)) for share in SHARES]
    with resting(model), torch.no_grad():
        empty, full = _mean(runs, ranking, 0), float(runs.full_margins.mean())
        shares = [share_of(_mean(runs, ranking, n) - empty, full - empty) for n in sizes]
    found = tuple(nan if share is None else share for share in shares)
    return Curve(method=ranking.method, kind=ranking.kind, shares=SHARES, faithfulness=found)


def curves(
    model: Subject, task: Task, methods: Iterable[str], *, config: RankConfig | None = None, n_pairs: int = 64
) -> list[Curve]:
    """The curves of several methods on the same prompts, in their order; see `rank` for what each can rank.

    Examples:
        >>> found = circuits.load("quotes-handmade")
        >>> curves = circuits.ranking.curves(found.model, found.task, ["attribution patching", "random"], n_pairs=8)
        >>> [curve.method for curve in curves]
        ['attribution patching', 'random']
    """
    return [curve(model, task, rank(model, task, method=m, config=config), n_pairs=n_pairs) for m in methods]


def _mean(runs: MaskedModel, ranking: Ranking, n: int) -> float:
    """Mean margin with the n best parts kept, over clean and corrupted prompts."""
    like: Tensor = runs.model.like
    kept = {key: share.to(like) for key, share in ranking.kept(n).items()}
    return float(runs.margins_under(kept).mean())
