"""What each trust check catches: faults planted in circuits whose truth is known, and false alarms on true ones.

    python -m docs.experiments.power    -> docs/results/power.json

Every draw takes the next hand-made model, with decoys of its own seed, and plants one fault. What has been run is kept
under out/power and not run again.
"""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from circuits.circuit.nodes import Edge, Node, all_nodes, is_pair
from circuits.circuit.parts import edges_between
from circuits.files import once, write_results
from circuits.handmade import MODELS, Handmade, build_hard
from circuits.trust import TrustConfig, trust_report
from circuits.trust.workbench import Bench

RESULTS, KEPT = Path("docs/results/power.json"), Path("out/power")
FIRST_SEED = 400
"""Decoy seed of the first draw; the checks' thresholds were chosen on seeds below 400."""
REFUSED = "refused"
"""What catches a circuit that the report does not accept at all."""

app = typer.Typer(add_completion=False, help=__doc__, pretty_exceptions_enable=False)

Fault = Callable[[Handmade, random.Random], Handmade]


@app.command()
def run(
    draws: Annotated[int, typer.Option(help="Circuits for each fault.")] = 10,
    true: Annotated[int, typer.Option(help="True circuits, for false alarms.")] = 24,
    results: Annotated[Path, typer.Option(help="File to write.")] = RESULTS,
    kept: Annotated[Path, typer.Option(help="Folder for what has been run.")] = KEPT,
) -> dict[str, Any]:
    """Plant every fault in as many circuits, and report on as many true ones."""
    found = {name: [_draw(name, i, kept) for i in range(draws)] for name in FAULTS}
    alarms = [_draw("none", i, kept) for i in range(true)]
    every = [one for runs in (*found.values(), alarms) for one in runs]
    numbers = {
        "caught": {name: sum(bool(one["failed"]) for one in runs) / draws for name, runs in found.items()},
        "false_alarms": sum(bool(one["failed"]) for one in alarms) / true,
        "by_check": {
            name: dict(Counter(c for one in runs for c in one["failed"])) for name, runs in found.items()
        },
        "alarms_by_check": dict(Counter(c for one in alarms for c in one["failed"])),
        "draws": draws,
        "true_circuits": true,
    }
    Console().print({key: numbers[key] for key in ("caught", "false_alarms", "alarms_by_check")})
    return write_results(
        results,
        command=f"python -m docs.experiments.power --draws {draws} --true {true}",
        seeds=range(FIRST_SEED, FIRST_SEED + max(draws, true)),
        seconds=sum(one["seconds"] for one in every),
        numbers=numbers,
    )


def _draw(fault: str, number: int, kept: Path) -> dict[str, Any]:
    """The report on one circuit: names of the checks that failed."""
    settings = {"fault": fault, "number": number, "config": _config(fault, number).to_json()}
    return once(kept / f"{fault.replace(' ', '-')}-{number}.json", settings, partial(_report, fault, number))


def _config(fault: str, number: int) -> TrustConfig:
    """Controls are about models, not circuits: they run on true circuits, where they may raise false alarms."""
    steps = TrustConfig().control_steps if fault == "none" else 0
    return TrustConfig(seed=FIRST_SEED + number, control_steps=steps)


def _report(fault: str, number: int) -> dict[str, Any]:
    made = list(MODELS.values())[number % len(MODELS)](FIRST_SEED + number)
    rng = random.Random(f"{fault}/{number}")
    planted = FAULTS[fault](made, rng) if fault != "none" else made
    try:
        report = trust_report(
            planted.model, planted.circuit, planted.task, _config(fault, number), corpus=planted.corpus
        )
    except ValueError as error:
        return {"failed": [REFUSED], "said": str(error)[:200]}
    return {
        "failed": report.failed,
        "inconclusive": [e.name for e in report.entries if e.verdict == "inconclusive"],
    }


def removed_node(made: Handmade, rng: random.Random) -> Handmade:
    """The true circuit less one node."""
    nodes = list(made.circuit.nodes)
    nodes.remove(rng.choice(nodes))
    return _of(made, nodes)


def ten_added(made: Handmade, rng: random.Random) -> Handmade:
    """The true circuit and ten nodes more, with every weight between them."""
    others = [node for node in all_nodes(made.circuit.widths) if node not in made.circuit.nodes]
    return _of(made, [*made.circuit.nodes, *rng.sample(others, 10)])


def inert(made: Handmade, rng: random.Random) -> Handmade:
    """As many random nodes at the same sites, none of the circuit's."""
    return _of(made, Bench(made.model, made.circuit, made.task).random_like(rng, outside=True))


def copied_elsewhere(made: Handmade, rng: random.Random) -> Handmade:
    """For every node another like it: of its site, with as many and as large weights."""
    return _of(made, Bench(made.model, made.circuit, made.task).alike(rng))


def full_backup(made: Handmade, rng: random.Random) -> Handmade:
    """A circuit that is enough, in a model that has what it does a second time."""
    double = build_hard("redundant", rng.randrange(10**6))
    second = max(node.index for node in double.loose) // double.model.config.d_head
    gone = {node for node in double.loose if node.index // double.model.config.d_head == second}
    return _of(double, [node for node in double.circuit.nodes if node not in gone])


def edited_weights(made: Handmade, rng: random.Random) -> Handmade:
    """The true circuit in a file that says 99 for every weight."""
    edges = tuple(edge if is_pair(edge) else edge._replace(weight=99.0) for edge in made.circuit.edges)
    return replace(made, circuit=replace(made.circuit, edges=edges))


def edited_means(made: Handmade, rng: random.Random) -> Handmade:
    """The true circuit in a file whose means are zero."""
    values = {site: torch.zeros_like(value) for site, value in made.circuit.values.items()}
    return replace(made, circuit=replace(made.circuit, values=values))


def other_model(made: Handmade, rng: random.Random) -> Handmade:
    """The true circuit in a file that names another model."""
    return replace(made, circuit=replace(made.circuit, model_hash="0" * 16))


def _of(made: Handmade, nodes: Sequence[Node]) -> Handmade:
    """With a circuit of these nodes and every weight between them."""
    edges: list[Edge] = edges_between(made.model, list(nodes))
    circuit = replace(made.circuit, nodes=tuple(nodes), edges=tuple(edges), io_edges=(), facts={})
    return replace(made, circuit=circuit)


FAULTS: dict[str, Fault] = {
    "removed node": removed_node,
    "ten added nodes": ten_added,
    "random inert circuit": inert,
    "copied elsewhere": copied_elsewhere,
    "full backup": full_backup,
    "edited weights": edited_weights,
    "edited means": edited_means,
    "of another model": other_model,
}
"""What is planted, by name."""

if __name__ == "__main__":
    app()
