"""Whether a circuit explains how sure the model is, and not only what it prefers."""

import random
from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from circuits.circuit.evaluator import MaskedModel
from circuits.circuit.score import ORDER, margin_correlation, margin_correlations, margin_ratio
from circuits.trust.report import Entry, judged
from circuits.trust.workbench import Bench

SURE = (0.8, 1.25)
"""Margin ratios between which a circuit is about as sure as the model."""
N_OTHERS = 5
"""Circuits of random nodes that the order is compared with."""


def margin_agreement(bench: Bench, rng: random.Random) -> Sequence[Entry]:
    """Size of the circuit's margins against the model's, and their order among prompts of the same answer.

    On the prompts that pruning reports: a correlation on the report's own few is off by a twentieth.
    """
    runs = bench.judge.test
    ours, theirs = runs.margins(*bench.circuit_without()), runs.full_margins
    others = [runs.margins(bench.random_like(rng, outside=False), "between") for _ in range(N_OTHERS)]
    order, ratio = _order(runs, ours), margin_ratio(ours, theirs)
    return [
        Entry(
            name="margin ratio",
            meaning="Mean margin of the circuit, without calibration, over that of the model; 1 is as sure as the "
            f"model, {SURE[0]:g} to {SURE[1]:g} pass, the baseline is that of the empty circuit, and there is none for "
            "a model that is not sure at all.",
            value=ratio,
            baseline=margin_ratio(runs.margins([], []), theirs),
            verdict=judged(ratio, SURE[0] <= ratio <= SURE[1]),
        ),
        Entry(
            name="margin correlation",
            meaning="Correlation of the circuit's margins with the model's among prompts of the same answer (each "
            "answer's mean taken off): does it say where the model is surer? At least "
            f"{ORDER:g} passes; the baseline is the best of five random circuits.",
            value=order,
            baseline=max(_order(runs, other) for other in others),
            verdict=judged(order, order >= ORDER),
            details={"by_answer": _by_answer(bench, ours)},
        ),
    ]


def _order(runs: MaskedModel, margin: Float[Tensor, " rows"]) -> float:
    return margin_correlation(margin, runs.full_margins, runs.targets.answer)


def _by_answer(bench: Bench, margin: Float[Tensor, " rows"]) -> dict[str, float]:
    """The correlation with the model's margins, by answer."""
    runs = bench.judge.test
    found = margin_correlations(margin, runs.full_margins, runs.targets.answer)
    return {bench.task.tokenizer.token(answer): value for answer, value in found.items()}
