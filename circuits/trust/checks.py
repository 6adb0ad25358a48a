"""The checks of one circuit on its own model: is it enough, is it needed, does it behave like the model?"""

import math
import random
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from circuits.circuit.ablation import ablation_values
from circuits.circuit.nodes import Node
from circuits.circuit.score import LOSS, TARGETS, UNIT, margin_of, score_margins
from circuits.trust.report import Entry, judged
from circuits.trust.workbench import Bench, greedy

TASK_LOSS = TARGETS["task"]
"""Nats of two-way task loss that an uncalibrated circuit may have."""
KL = 0.05
"""Nats that the circuit's answer-or-foil distribution may be from the model's."""
AWAY, NOISE = 0.5, 16
"""Share of their own size, or of so many times their noise, by which ablation values may differ from other text's. One
site whose coordinates are seldom other than zero may differ by more; all of them together do not."""
MEAN_GAP, WORST_GAP = 0.15, 0.3
"""Differences in P(answer), which lies between 0 and 1, that knocking nodes out of circuit and model may leave."""


def sufficiency(bench: Bench, rng: random.Random) -> Sequence[Entry]:
    """Loss with only the circuit kept, on the very prompts that pruning reports."""
    judge = bench.judge
    loss, accuracy = judge.scored(judge.test, *bench.circuit_without(), bench.scale)
    empty = judge.held_out([], []).loss
    asked = judge.criterion
    return [
        Entry(
            name="sufficiency",
            meaning=f"The {LOSS[asked.objective]} with everything but the circuit ablated, on the criterion's "
            f"{asked.n_test} test pairs; at most {asked.target:g} is asked for, and the baseline is the loss "
            "with everything ablated.",
            value=loss,
            baseline=empty,
            unit=UNIT[asked.objective],
            verdict="pass" if loss <= asked.target else "fail",
            details={"accuracy": accuracy, "logit_scale": bench.scale, "n_pairs": asked.n_test},
        )
    ]


def right_answers(bench: Bench, rng: random.Random) -> Sequence[Entry]:
    """Task loss with only the circuit kept, without calibration, whatever the criterion asks."""
    loss, model = score_margins(bench.circuit_margins()), score_margins(bench.full_margins)
    return [
        Entry(
            name="task loss, uncalibrated",
            meaning="Two-way loss of the right answers with everything but the circuit ablated and the logits as they "
            f"are; at most {TASK_LOSS:g} nats, or the model's own. The baseline is with everything ablated.",
            value=loss.loss,
            baseline=score_margins(bench.margins([], [])).loss,
            unit="nats",
            verdict="pass" if loss.loss <= max(TASK_LOSS, model.loss) else "fail",
            details={"accuracy": loss.accuracy, "model": model.loss},
        )
    ]


def held_values(bench: Bench, rng: random.Random) -> Sequence[Entry]:
    """Whether what the circuit holds the rest at is what its ablation says, taken anew from training text."""
    kind, away = bench.circuit.ablation, math.nan
    if bench.text is not None and kind != "resample":
        halves = [ablation_values(bench.model, text, kind) for text in bench.text.chunk(2)]
        far = [_away(held, *(half[site] for half in halves)) for site, held in bench.values.items()]
        away = math.sqrt(sum(x * x for x in far) / len(far))
    return [
        Entry(
            name="ablation values",
            meaning="Root mean square difference between the values that the circuit holds everything else at and "
            f"those of the {kind} ablation taken anew from training text, over the size of the latter, or {NOISE} "
            f"times what differs between two halves of that text, a mean over sites; at most {AWAY:g}. Not run without "
            "such text, nor for values of single texts.",
            value=away,
            baseline=1.0,
            verdict=judged(away, away <= AWAY),
        )
    ]


def _away(held: Tensor, first: Tensor, second: Tensor) -> float:
    n = min(held.shape[0], first.shape[0]) if held.ndim > 1 else None
    held, anew, noise = held[:n], (first[:n] + second[:n]) / 2, (first[:n] - second[:n]) / 2
    far, size, spread = (float(x.square().mean().sqrt()) for x in (held - anew, anew, noise))
    return far / max(size, NOISE * spread, 1e-6)


def under_attack(bench: Bench, rng: random.Random) -> Sequence[Entry]:
    """The criterion's loss while what is left out takes the worst values, or random ones, between mean and its own."""
    judge, parts = bench.judge, bench.circuit_without()
    asked = judge.criterion
    plain = judge.score_of(bench, bench.circuit_margins(), bench.scale).loss
    worst, drawn = (find(bench, *parts, bench.scale).loss for find in (judge.under_attack, judge.at_random))
    return [
        Entry(
            name=f"{kind} ablation",
            meaning=f"The {LOSS[asked.objective]} while what is left out takes {values} between its mean and its own "
            "value; the baseline is the loss with its mean. Far above it, the circuit leans on what it leaves out.",
            value=loss,
            baseline=plain,
            unit=UNIT[asked.objective],
            verdict="note" if asked.ablation != kind else "pass" if loss <= asked.target else "fail",
        )
        for kind, values, loss in (
            ("adversarial", "the worst values found", worst),
            ("stochastic", "random values", drawn),
        )
    ]


def necessity(bench: Bench, rng: random.Random) -> Sequence[Entry]:
    """Rise of the loss when only the circuit is ablated."""
    full = bench.score(bench.every, "all").loss
    rise = bench.score(*bench.model_without(bench.circuit.nodes)).loss - full
    others = [
        bench.score(*bench.model_without(bench.random_like(rng, outside=True))).loss - full
        for _ in range(bench.config.n_random)
    ]
    return [
        Entry(
            name="necessity",
            meaning=f"Rise of the model's {LOSS[bench.judge.criterion.objective]} when only the circuit is ablated; "
            "the baseline is the greatest rise among as many nodes drawn at random outside the circuit, site by site.",
            value=rise,
            baseline=max(others),
            unit=UNIT[bench.judge.criterion.objective],
            verdict="pass" if rise > max(0.1, max(others)) else "fail",
            details={"random": others, "full_loss": full},
        )
    ]


def agreement(bench: Bench, rng: random.Random) -> Sequence[Entry]:
    """KL and top-1 agreement with the full model, on clean and on corrupted prompts."""
    clean, corrupted = slice(0, bench.n_pairs), slice(bench.n_pairs, None)
    return [*_agreement(bench, "clean", clean), *_agreement(bench, "corrupted", corrupted)]


def _agreement(bench: Bench, kind: str, rows: slice) -> list[Entry]:
    full, ours, empty = (
        logits[rows] for logits in (bench.full_logits, bench.circuit_logits, bench.empty_logits)
    )
    p, q, z = (
        _two_way_probabilities(bench, x)[rows]
        for x in (bench.full_logits, bench.circuit_logits, bench.empty_logits)
    )
    kl, kl_empty = _kl(p, q), _kl(p, z)
    same, same_empty = _same(p, q), _same(p, z)
    return [
        Entry(
            name=f"KL, {kind}",
            meaning=f"KL from the model's to the circuit's answer-or-foil distribution on {kind} prompts; "
            f"at most {KL:g}, and a quarter of the baseline, which is that of the empty circuit.",
            value=kl,
            baseline=kl_empty,
            unit="nats",
            verdict="pass" if kl <= min(KL, 0.25 * kl_empty) else "fail",
            details={"kl_vocabulary": _kl(full.softmax(-1), ours.softmax(-1))},
        ),
        Entry(
            name=f"top-1, {kind}",
            meaning=f"Share of {kind} prompts on which circuit and model prefer the same of answer and "
            "foil; the baseline is that of the empty circuit.",
            value=same,
            baseline=same_empty,
            verdict="pass" if same >= 0.95 else "fail",
            details={"top1_vocabulary": _same(full, ours), "top1_vocabulary_empty": _same(full, empty)},
        ),
    ]


def completeness(bench: Bench, rng: random.Random) -> Sequence[Entry]:
    """How far circuit and model part when the same nodes of the circuit are knocked out of both."""
    gone_to_gap: dict[frozenset[Node], float] = {}

    def gap(gone: Sequence[Node]) -> float:
        key = frozenset(gone)
        if key not in gone_to_gap:
            ours = bench.circuit_margins(gone)
            theirs = bench.margins(*bench.model_without(gone))
            gone_to_gap[key] = abs(_probability(ours) - _probability(theirs))
        return gone_to_gap[key]

    nodes = list(bench.circuit.nodes)
    sampled = [[n for n in nodes if rng.random() < 0.5] for _ in range(bench.config.n_knockouts)]
    gaps = [gap(gone) for gone in sampled]
    pool = rng.sample(nodes, min(len(nodes), 12))
    worst = greedy(pool, gap, bench.config.n_greedy)
    chance = abs(_probability(bench.margins([], [])) - _probability(bench.full_margins))
    mean, most = sum(gaps) / len(gaps), max([gap(worst), *gaps])
    return [
        Entry(
            name="completeness, sampled",
            meaning="Mean difference in P(answer) between circuit and model when the same random half of the "
            f"circuit is knocked out of both; at most {MEAN_GAP:g}. The baseline is the difference between empty "
            "circuit and model.",
            value=mean,
            baseline=chance,
            verdict="pass" if mean <= MEAN_GAP else "fail",
            details={"gaps": gaps},
        ),
        Entry(
            name="completeness, worst found",
            meaning="The greatest such difference that a greedy search could find: large where the model has "
            f"another way to do the task than this circuit. At most {WORST_GAP:g}.",
            value=most,
            baseline=chance,
            verdict="pass" if most <= WORST_GAP else "fail",
            details={"knocked_out": [str(node) for node in worst]},
        ),
    ]


def interchange(bench: Bench, rng: random.Random) -> Sequence[Entry]:
    """Does a node's value from the other prompt of the pair move the answer in the model as in the circuit?"""
    n = bench.n_pairs
    ours, theirs = bench.circuit_margins()[:n], bench.full_margins[:n]
    moves = {}
    for node in bench.circuit.nodes:
        in_circuit = bench.patched_margins([node], in_circuit=True) - ours
        in_model = bench.patched_margins([node], in_circuit=False) - theirs
        moves[str(node)] = (float(in_circuit.mean()), float(in_model.mean()))
    table = torch.tensor(list(moves.values()))
    moved = table[table[:, 0].abs() > 0.1 * table[:, 0].abs().max()]
    agree = float((moved[:, 0].sign() == moved[:, 1].sign()).float().mean()) if len(moved) else 0.0
    return [
        Entry(
            name="interchange",
            meaning="Share of the nodes that move the circuit's answer when they take their value from the other "
            "prompt of the pair, which move the model's answer the same way; by chance one half.",
            value=agree,
            baseline=0.5,
            verdict="pass" if agree >= 0.9 else "fail",
            details={"margin_change": moves},
        )
    ]


def minimality(bench: Bench, rng: random.Random) -> Sequence[Entry]:
    """Proves again, as pruning does and on its prompts, that no single node and no single weight can go."""
    parts = bench.circuit_without()
    spare = sorted(_named(part) for part in bench.judge.spare(*parts))
    enough = bench.judge.solved(*parts) is not None
    return [
        Entry(
            name="1-minimality",
            meaning="Number of nodes and weights that can go, one at a time, while the criterion is met on the prompts "
            f"that pruning decided by (at most {bench.target:g}); a minimal circuit has none, and meets it itself.",
            value=float(len(spare)),
            baseline=0.0,
            verdict="pass" if enough and not spare else "fail",
            details={"spare": spare, "meets_criterion": enough},
        )
    ]


def random_circuits(bench: Bench, rng: random.Random) -> Sequence[Entry]:
    """Losses of circuits whose nodes are random but like this one's: site, degree, sizes of weights."""
    objective = bench.judge.criterion.objective
    losses = [bench.best_score(bench.alike(rng), "between").loss for _ in range(bench.config.n_random)]
    ours = bench.best_score(*bench.circuit_without()).loss
    return [
        Entry(
            name="random circuits",
            meaning=f"Least {LOSS[objective]} among circuits of other nodes that are drawn at random, each like one of "
            "this circuit's: of its site, with about as many and as large weights. None may meet the target or come "
            "near the loss of this circuit, which is the baseline.",
            value=min(losses),
            baseline=ours,
            unit=UNIT[objective],
            verdict="pass" if min(losses) > max(bench.target, ours) else "fail",
            details={"losses": losses},
        )
    ]


def _named(part: object) -> str:
    return str(part) if isinstance(part, Node) else f"{part.source} > {part.target}"  # type: ignore[attr-defined]


def _probability(margin: Float[Tensor, " rows"]) -> float:
    """Mean probability of the answer, out of answer and foil; bounded, where a loss is not."""
    return float(margin.sigmoid().mean())


def _two_way_probabilities(bench: Bench, logits: Float[Tensor, "rows d_vocab"]) -> Float[Tensor, "rows 2"]:
    margin = margin_of(logits, bench.targets)
    return torch.stack([margin, torch.zeros_like(margin)], dim=1).softmax(dim=1)


def _kl(p: Float[Tensor, "rows n"], q: Float[Tensor, "rows n"]) -> float:
    tiny = 1e-12
    return float((p * ((p + tiny).log() - (q + tiny).log())).sum(dim=1).mean())


def _same(p: Float[Tensor, "rows n"], q: Float[Tensor, "rows n"]) -> float:
    return float((p.argmax(dim=1) == q.argmax(dim=1)).float().mean())
