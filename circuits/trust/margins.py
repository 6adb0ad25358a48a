"""Whether a circuit explains how sure the model is, and not only what it prefers."""

import math
import random
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from circuits.statistics import share_of
from circuits.trust.report import Entry, judged
from circuits.trust.workbench import Bench

N_OTHERS = 5
"""Circuits of random nodes that the order is compared with."""
LEAST = 8
"""Prompts of an answer below which their order says nothing."""


def margin_agreement(bench: Bench, rng: random.Random) -> Sequence[Entry]:
    """Size of the circuit's margins against the model's, and their order among prompts of the same answer."""
    ours, theirs = bench.circuit_margins(), bench.full_margins
    others = [bench.margins(bench.random_like(rng, outside=False), "between") for _ in range(N_OTHERS)]
    by_answer, ratio = _correlations(bench, ours), _ratio(ours, theirs)
    return [
        Entry(
            name="margin ratio",
            meaning="Mean margin of the circuit, without calibration, over that of the model; 1 is as sure as the "
            "model, the baseline is that of the empty circuit, and there is none for a model that is not sure at all.",
            value=ratio,
            baseline=_ratio(bench.margins([], []), theirs),
            verdict=judged(ratio, None),
        ),
        Entry(
            name="margin correlation",
            meaning="Correlation of the circuit's margins with the model's among prompts of the same answer, a mean "
            "over answers: does it say where the model is surer? The baseline is the best of five random circuits.",
            value=_mean(by_answer),
            baseline=max(_mean(_correlations(bench, other)) for other in others),
            verdict="note",
            details={"by_answer": by_answer},
        ),
    ]


def _ratio(margin: Float[Tensor, " rows"], reference: Float[Tensor, " rows"]) -> float:
    share = share_of(float(margin.mean()), float(reference.mean()))
    return math.nan if share is None else share


def _correlations(bench: Bench, margin: Float[Tensor, " rows"]) -> dict[str, float]:
    """Pearson's correlation with the model's margins by answer; 0 where either does not vary."""
    found = {}
    for answer in bench.targets.answer.unique().tolist():
        rows = bench.targets.answer == answer
        if int(rows.sum()) >= LEAST:
            pair = torch.stack([margin[rows], bench.full_margins[rows]]).double()
            varies = bool((pair.std(dim=1) > 1e-6).all())
            found[bench.task.tokenizer.token(answer)] = float(torch.corrcoef(pair)[0, 1]) if varies else 0.0
    return found


def _mean(values: dict[str, float]) -> float:
    return sum(values.values()) / len(values) if values else float("nan")
