"""The checks of one circuit on its own model: is it enough, is it needed, does it behave like the model?"""

import random
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from circuits.circuit.nodes import Node
from circuits.model.sites import Site
from circuits.trust.bench import Bench, greedy
from circuits.trust.report import Entry


def sufficiency(bench: Bench, target: float) -> Entry:
    """Task loss with only the circuit kept."""
    loss, accuracy = bench.circuit_score()
    empty = bench.best_score([], []).loss
    return Entry(
        name="sufficiency",
        meaning=f"Task loss with everything but the circuit ablated; at most {target:g} is asked for, and the "
        "baseline is the loss with everything ablated.",
        value=loss,
        baseline=empty,
        unit="nats",
        verdict="pass" if loss <= target else "fail",
        details={"accuracy": accuracy, "logit_scale": bench.scale},
    )


def necessity(bench: Bench, rng: random.Random, n_random: int) -> Entry:
    """Rise of the task loss when only the circuit is ablated."""
    full = bench.loss(bench.every)
    rise = bench.loss(bench.model_without(bench.circuit.nodes)) - full
    others = [
        bench.loss(bench.model_without(_random_like(bench, rng, outside=True))) - full
        for _ in range(n_random)
    ]
    return Entry(
        name="necessity",
        meaning="Rise of the model's task loss when only the circuit is ablated; the baseline is the greatest "
        "rise among as many nodes drawn at random outside the circuit, site by site.",
        value=rise,
        baseline=max(others),
        unit="nats",
        verdict="pass" if rise > max(0.1, max(others)) else "fail",
        details={"random": others, "full_loss": full},
    )


def agreement(bench: Bench) -> list[Entry]:
    """KL and top-1 agreement with the full model, on clean and on corrupted prompts."""
    full = bench.logits(bench.every)
    ours, empty = bench.logits(*bench.circuit_without()), bench.logits([], [])
    entries = []
    for kind, rows in (("clean", slice(0, bench.n_pairs)), ("corrupted", slice(bench.n_pairs, None))):
        p, q, z = (_two_way_probabilities(bench, x)[rows] for x in (full, ours, empty))
        kl, kl_empty = _kl(p, q), _kl(p, z)
        entries.append(
            Entry(
                name=f"KL, {kind}",
                meaning=f"KL from the model's to the circuit's answer-or-foil distribution on {kind} prompts; "
                "the baseline is that of the empty circuit.",
                value=kl,
                baseline=kl_empty,
                unit="nats",
                verdict="pass" if kl <= 0.25 * kl_empty else "fail",
                details={"kl_vocabulary": _kl(full[rows].softmax(-1), ours[rows].softmax(-1))},
            )
        )
        same, same_empty = _same(p, q), _same(p, z)
        entries.append(
            Entry(
                name=f"top-1, {kind}",
                meaning=f"Share of {kind} prompts on which circuit and model prefer the same of answer and "
                "foil; the baseline is that of the empty circuit.",
                value=same,
                baseline=same_empty,
                verdict="pass" if same >= 0.95 else "fail",
                details={"top1_vocabulary": _same(full[rows], ours[rows])},
            )
        )
    return entries


def completeness(bench: Bench, rng: random.Random, n_knockouts: int, n_greedy: int) -> list[Entry]:
    """How far circuit and model part when the same nodes of the circuit are knocked out of both."""
    gone_to_gap: dict[frozenset[Node], float] = {}

    def gap(gone: Sequence[Node]) -> float:
        key = frozenset(gone)
        if key not in gone_to_gap:
            ours = bench.circuit_margins(gone)
            theirs = bench.margins(bench.model_without(gone))
            gone_to_gap[key] = abs(_probability(ours) - _probability(theirs))
        return gone_to_gap[key]

    nodes = list(bench.circuit.nodes)
    sampled = [[n for n in nodes if rng.random() < 0.5] for _ in range(n_knockouts)]
    gaps = [gap(gone) for gone in sampled]
    pool = rng.sample(nodes, min(len(nodes), 12))
    worst = greedy(pool, gap, n_greedy)
    chance = abs(_probability(bench.margins([], [])) - _probability(bench.margins(bench.every)))
    mean, most = sum(gaps) / len(gaps), max([gap(worst), *gaps])
    return [
        Entry(
            name="completeness, sampled",
            meaning="Mean difference in P(answer) between circuit and model when the same random half of the "
            "circuit is knocked out of both; the baseline is the difference between empty circuit and model.",
            value=mean,
            baseline=chance,
            verdict="pass" if mean <= 0.5 * chance else "fail",
            details={"gaps": gaps},
        ),
        Entry(
            name="completeness, worst found",
            meaning="The greatest such difference that a greedy search could find: large where the model has "
            "another way to do the task than this circuit.",
            value=most,
            baseline=chance,
            verdict="pass" if most <= chance else "fail",
            details={"knocked_out": [str(node) for node in worst]},
        ),
    ]


def interchange(bench: Bench) -> Entry:
    """Does a node's value from the other prompt of the pair move the answer in the model as in the circuit?"""
    n = bench.n_pairs
    ours = bench.circuit_margins()[:n]
    theirs = bench.margins(bench.every)[:n]
    moves = {}
    for node in bench.circuit.nodes:
        in_circuit = bench.patched_margins([node], in_circuit=True) - ours
        in_model = bench.patched_margins([node], in_circuit=False) - theirs
        moves[str(node)] = (float(in_circuit.mean()), float(in_model.mean()))
    table = torch.tensor(list(moves.values()))
    moved = table[table[:, 0].abs() > 0.1 * table[:, 0].abs().max()]
    agree = float((moved[:, 0].sign() == moved[:, 1].sign()).float().mean()) if len(moved) else 0.0
    return Entry(
        name="interchange",
        meaning="Share of the nodes that move the circuit's answer when they take their value from the other "
        "prompt of the pair, which move the model's answer the same way; by chance one half.",
        value=agree,
        baseline=0.5,
        verdict="pass" if agree >= 0.9 else "fail",
        details={"margin_change": moves},
    )


def minimality(bench: Bench, target: float) -> Entry:
    """Proves again that no single node and no single weight can go."""
    nodes, edges = bench.circuit_without()
    scores = {str(node): bench.best_score(*bench.circuit_without([node])) for node in nodes}
    for edge in edges:
        if edge.source.site != "attn_k":
            rest = [other for other in edges if other != edge]
            scores[f"{edge.source} > {edge.target}"] = bench.best_score(nodes, rest)
    spare = sorted(
        part
        for part, score in scores.items()
        if score.loss <= target and score.accuracy >= bench.target_accuracy
    )
    return Entry(
        name="1-minimality",
        meaning=f"Number of nodes and weights that can go, one at a time, while the loss stays within {target:g} "
        "nats; a minimal circuit has none.",
        value=float(len(spare)),
        baseline=0.0,
        verdict="pass" if not spare else "fail",
        details={"spare": spare, "loss_without": {part: score.loss for part, score in scores.items()}},
    )


def random_circuits(bench: Bench, rng: random.Random, n_random: int, target: float) -> Entry:
    """Losses of circuits with as many random nodes at each site."""
    losses = [bench.best_score(_random_like(bench, rng, outside=False)).loss for _ in range(n_random)]
    return Entry(
        name="random circuits",
        meaning="Least task loss among circuits with as many nodes at each site, drawn at random; the baseline "
        "is the loss of this circuit, and none may meet the target.",
        value=min(losses),
        baseline=bench.circuit_score().loss,
        unit="nats",
        verdict="pass" if min(losses) > target else "fail",
        details={"losses": losses},
    )


def _probability(margin: Float[Tensor, " rows"]) -> float:
    """Mean probability of the answer, out of answer and foil; bounded, where a loss is not."""
    return float(margin.sigmoid().mean())


def _random_like(bench: Bench, rng: random.Random, *, outside: bool) -> list[Node]:
    """As many nodes at each site as the circuit has; `outside`: none of the circuit's own, where possible."""
    drawn: list[Node] = []
    by_site: dict[Site, list[Node]] = {}
    for node in bench.circuit.nodes:
        by_site.setdefault(node.at, []).append(node)
    for site, own in by_site.items():
        pool = [Node.of(site, i) for i in range(bench.circuit.widths[site])]
        others = [node for node in pool if node not in own]
        pool = others if outside and len(others) >= len(own) else pool
        drawn += rng.sample(pool, len(own))
    return drawn


def _two_way_probabilities(bench: Bench, logits: Float[Tensor, "rows d_vocab"]) -> Float[Tensor, "rows 2"]:
    margin = bench.margin_of(logits)
    return torch.stack([margin, torch.zeros_like(margin)], dim=1).softmax(dim=1)


def _kl(p: Float[Tensor, "rows n"], q: Float[Tensor, "rows n"]) -> float:
    tiny = 1e-12
    return float((p * ((p + tiny).log() - (q + tiny).log())).sum(dim=1).mean())


def _same(p: Float[Tensor, "rows n"], q: Float[Tensor, "rows n"]) -> float:
    return float((p.argmax(dim=1) == q.argmax(dim=1)).float().mean())
