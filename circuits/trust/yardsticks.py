"""The field's own measures: CPR and CMD over circuit sizes, and three hypothesis tests."""

import math
import random
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from scipy import stats
from torch import Tensor

from circuits.circuit.nodes import AllBut, Node
from circuits.model.compute import with_gradients
from circuits.statistics import share_of
from circuits.trust.report import Entry, judged
from circuits.trust.workbench import Bench

SHARES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Circuit sizes as shares of all nodes, as the Mechanistic Interpretability Benchmark sets them."""
EPSILON = 0.1
"""Tolerance of the equivalence test around one half."""
CARRIES = 0.8
"""CPR from which on a ranking's best parts carry the task."""
ALPHA = 0.05
"""Level of the other tests."""
INDEPENDENCE = 0.01
"""Level of the independence test: lower, since a report with a true circuit should not fail one time in twenty."""
N_PERMUTATIONS = 200
"""Permutations of the independence test."""


def cpr_and_cmd(bench: Bench, rng: random.Random) -> Sequence[Entry]:
    """Area under f, and between f and 1, where f(C) = (m(C) - m(empty)) / (m(full) - m(empty)).

    m is the mean margin. The circuit's nodes are ranked by their effect in it; the rest follow in random order.
    Source: Mueller et al. 2025 (arXiv 2504.13151).
    """
    ours = _curve(bench, ranked_nodes(bench, rng))
    chance = _curve(bench, rng.sample(bench.every, len(bench.every)))
    details = {"shares": list(SHARES), "faithfulness": ours, "random": chance}
    return [
        Entry(
            name="CPR",
            meaning="Area under the share of the model's margin that the best-ranked nodes recover, over circuit "
            "sizes of 0.1 to 100 %: do the circuit's nodes, the best first, carry the task? At least "
            f"{CARRIES:g} passes; the baseline is a random ranking. Not run "
            "where the whole model's margin is no greater than that of its empty self.",
            value=area(ours),
            baseline=area(chance),
            verdict=judged(area(ours), area(ours) >= max(CARRIES, area(chance))),
            details=details,
        ),
        Entry(
            name="CMD",
            meaning="Area between that share and 1: is the circuit the model; 0 is best, and the baseline is a "
            "random ranking.",
            value=area([abs(1 - f) for f in ours]),
            baseline=area([abs(1 - f) for f in chance]),
            verdict=judged(area(ours), None),
            details=details,
        ),
    ]


@with_gradients
def ranked_nodes(bench: Bench, rng: random.Random) -> list[Node]:
    """All nodes: those of the circuit by what their removal costs it, then the rest in random order.

    Whoever ranks the rest by attribution measures attribution: a circuit of inert nodes then does as well as any.
    """
    effects = {node: bench.best_score(*bench.circuit_without([node])).loss for node in bench.circuit.nodes}
    first = sorted(effects, key=lambda node: (-effects[node], node))
    rest = [node for node in bench.every if node not in effects]
    return first + rng.sample(rest, len(rest))


def equivalence(bench: Bench, rng: random.Random) -> Sequence[Entry]:
    """Does the circuit do better than the model on half of the prompts?  Sign test with a tolerance."""
    ours, theirs = bench.circuit_margins(), bench.full_margins
    wins, n = int((ours > theirs).sum()), len(ours)
    share = wins / n
    far = abs(share - 0.5) - EPSILON
    p_value = 1.0 if far <= 0 else min(1.0, 2 * _binomial_tail(max(wins, n - wins), n, 0.5 + EPSILON))
    return [
        Entry(
            name="equivalence test",
            meaning="p-value of 'circuit and model do better than one another equally often' (within "
            f"{EPSILON:g}); below {ALPHA:g} they differ, as a circuit with smaller margins always will.",
            value=p_value,
            baseline=ALPHA,
            verdict="note",
            details={"share_circuit_better": share},
        )
    ]


def independence(bench: Bench, rng: random.Random) -> Sequence[Entry]:
    """Without the circuit, does the model's output still depend on what it was?  HSIC, by permutation.

    Prompts are exchanged only among those with the same two tokens to choose from, whose constant logits
    would otherwise be taken for knowledge.
    """
    answer, foil = bench.targets.answer, bench.targets.foil
    turned = (answer - foil).sign()
    full = bench.full_margins * turned
    knocked_out = bench.margins(*bench.model_without(bench.circuit.nodes)) * turned
    # Differences of less than a twentieth of the model's own are no difference to anybody.
    width = float(_distances(full).median())
    k, l_centred = _kernel(full, width), _centred(_kernel(knocked_out, 0.05 * width))
    observed = float((k * l_centred).sum())
    pairs = torch.minimum(answer, foil) * bench.model.d_vocab + torch.maximum(answer, foil)
    generator = torch.Generator().manual_seed(rng.randrange(2**31))
    above = 0
    for _ in range(N_PERMUTATIONS):
        order = _shuffled_within(pairs, generator)
        above += float((k[order][:, order] * l_centred).sum()) >= observed * (1 - 1e-6)
    p_value = (1 + above) / (1 + N_PERMUTATIONS)
    return [
        Entry(
            name="independence test",
            meaning="p-value of 'with the circuit ablated, the model's answer says nothing of what it was'; below "
            f"{INDEPENDENCE:g} some of the task is left outside the circuit.",
            value=p_value,
            baseline=INDEPENDENCE,
            verdict="pass" if p_value >= INDEPENDENCE else "fail",
        )
    ]


def minimality_test(bench: Bench, rng: random.Random) -> Sequence[Entry]:
    """Does every node of the circuit matter more than a random node added to it?"""
    nodes, _ = bench.circuit_without()
    whole = bench.margins(nodes, "all")
    outside = list(AllBut(bench.widths, nodes))
    added = rng.sample(outside, min(bench.config.n_added, len(outside)))
    reference = [_distance(bench.margins([*nodes, node], "all"), whole) for node in added]
    p_values = {}
    for node in nodes:
        effect = _distance(bench.margins([other for other in nodes if other != node], "all"), whole)
        p_values[str(node)] = (1 + sum(r >= effect for r in reference)) / (1 + len(reference))
    worst = max(p_values.values())
    return [
        Entry(
            name="minimality test",
            meaning="Greatest p-value, over the nodes, of 'this node matters no more than a random node added to the "
            f"circuit'; below {ALPHA:g} every node earns its place.",
            value=worst,
            baseline=ALPHA,
            verdict="pass" if worst <= ALPHA else "fail",
            details={"p_values": p_values},
        )
    ]


def _curve(bench: Bench, ranking: list[Node]) -> list[float]:
    ends: tuple[Sequence[Node], ...] = ([], bench.every)
    empty, full = (float(bench.margins(nodes, "all").mean()) for nodes in ends)
    kept = [ranking[: max(1, round(share * len(ranking)))] for share in SHARES]
    shares = (share_of(float(bench.margins(nodes, "all").mean()) - empty, full - empty) for nodes in kept)
    return [math.nan if share is None else share for share in shares]


def area(heights: list[float]) -> float:
    """Trapezoids over the shares, from the smallest to all nodes."""
    steps = zip(SHARES[:-1], SHARES[1:], heights[:-1], heights[1:], strict=True)
    return sum((b - a) * (f + g) / 2 for a, b, f, g in steps)


def _binomial_tail(k: int, n: int, p: float) -> float:
    """P(X >= k) for X ~ Binomial(n, p)."""
    return float(stats.binom.sf(k - 1, n, p))


def _kernel(x: Float[Tensor, " rows"], least_width: float) -> Float[Tensor, "rows rows"]:
    """Gaussian kernel whose width is the median distance, or `least_width` where that is greater."""
    distance = _distances(x)
    width = distance.median().clamp_min(max(least_width, 1e-6))
    return torch.exp(-(distance**2) / (2 * width**2))


def _distances(x: Float[Tensor, " rows"]) -> Float[Tensor, "rows rows"]:
    return (x[:, None] - x[None]).abs()


def _shuffled_within(groups: Int[Tensor, " rows"], generator: torch.Generator) -> Int[Tensor, " rows"]:
    """A permutation that exchanges rows of the same group only."""
    drawn = torch.randperm(len(groups), generator=generator).to(groups.device)
    order = torch.empty_like(groups)
    order[groups.argsort(stable=True)] = drawn[groups[drawn].argsort(stable=True)]
    return order


def _centred(kernel: Float[Tensor, "rows rows"]) -> Float[Tensor, "rows rows"]:
    return kernel - kernel.mean(0) - kernel.mean(1, keepdim=True) + kernel.mean()


def _distance(a: Float[Tensor, " rows"], b: Float[Tensor, " rows"]) -> float:
    return float((a - b).abs().mean())
