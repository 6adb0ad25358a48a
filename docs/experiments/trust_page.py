"""The page about trust: its tables and pictures, from the results files that there are.

python -m docs.experiments.trust_page
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import typer
from rich.console import Console

from circuits.files import write_text
from circuits.plots import (
    controls_figure,
    figure_to_png,
    frontier_figure,
    ground_truth_figure,
    sparse_vs_dense_figure,
)
from circuits.plots.markdown import around_marks, made_by, markdown_table
from circuits.plots.style import UNMEASURED
from docs.experiments.claims import direction

DOCS = Path("docs")
app = typer.Typer(add_completion=False, help=__doc__, pretty_exceptions_enable=False)


@app.command()
def run() -> None:
    """Rewrite what stands between the marks of the page, and the pictures beside it."""
    page = DOCS / "explanation" / "trust.md"
    for name, table in TABLES.items():
        source = DOCS / "results" / f"{name}.json"
        if source.exists():
            report = json.loads(source.read_text())
            before, after = around_marks(page, *marks(name))
            parts = [table(report), made_by(report)]
            if name in FIGURES:
                picture = page.with_name(f"trust-{name}.png")
                figure_to_png(FIGURES[name](report), picture)
                parts.insert(1, f"![]({picture.name})")
            write_text(page, "\n".join([before, "\n\n".join(parts), after]))
        Console().print(f"{name}: {'written' if source.exists() else 'no results yet'}")


def marks(name: str) -> tuple[str, str]:
    """The marks between which a table stands."""
    return f"<!-- {name} -->", f"<!-- end of {name} -->"


def ground_truth_table(report: Mapping[str, Any]) -> str:
    """Recovered circuits a model, and how well every method finds the true nodes."""
    models = [
        [
            name,
            one.get("true_situation", "unique"),
            one["n_nodes_model"],
            one["n_nodes"],
            one["n_edges"],
            *(f"{one[key]} of {one['total']}" for key in ("recovered", "situations_named", "cores_right")),
        ]
        for name, one in report["per_model"].items()
    ]
    methods = [
        [name, *(f"{one[key]:.2f}" if key in one else UNMEASURED for key in ("precision", "recall", "auroc"))]
        for name, one in report["methods"].items()
    ]
    sizes = ["model", "situation", "nodes of the model", "nodes", "edges"]
    first = markdown_table([*sizes, "recovered exactly", "situation named", "core right"], models)
    second = markdown_table(["method", "precision", "recall", "AUROC"], methods)
    return "\n\n".join([first, *_missed(report), second, _by_model(report)])


def _missed(report: Mapping[str, Any]) -> list[str]:
    """What came back with too much or too little, and what two tasks of one model have in common."""
    said = []
    for name, one in report["per_model"].items():
        for miss in one["misses"]:
            wrong = [f"{key} {_parts(miss[key])}" for key in ("missing", "extra") if miss[key]]
            told = f"called {miss['situation']}, core {'right' if miss['core_right'] else 'wrong'}"
            said.append(f"`{name}`, decoys {miss['seed']}: {'; '.join([*wrong, told])}.")
        if one["shared"]:
            found = ", ".join(str(pair["found"]) for pair in one["shared"])
            both = ", ".join(str(pair["both"]) for pair in one["shared"])
            said.append(
                f"`{name}`: its two tasks share {one['shared'][0]['true']} nodes; the circuits found share {found}, "
                f"of which true: {both}."
            )
    return said


def _parts(names: Sequence[str]) -> str:
    """Nodes by name, and how many edges."""
    nodes = [name for name in names if ">" not in name]
    return f"{', '.join(nodes) or 'no node'} and {len(names) - len(nodes)} edges"


def _by_model(report: Mapping[str, Any]) -> str:
    """Precision of every method on every model."""
    body = [
        [method, *(f"{one['methods'][method]['precision']:.2f}" for one in report["per_model"].values())]
        for method in report["methods"]
    ]
    return f"Precision, model by model:\n\n{markdown_table(['method', *report['per_model']], body)}"


def stability_table(report: Mapping[str, Any]) -> str:
    """For each model and task, what nine and more searches have in common, and whether a rival was found."""
    body = []
    for card in report["cards"]:
        sizes = card["card"]["sizes"]
        nodes, edges = (f"{min(column)} to {max(column)}" for column in zip(*sizes, strict=True))
        kinds = [card["counts"]["nodes"][kind] for kind in ("core", "contingent", "noise")]
        body.append([card["task"], card["seed"], len(sizes), nodes, edges, *kinds, card["verdict"]])
    head = ["task", "model", "circuits", "nodes", "edges", "core", "contingent", "noise", "a rival?"]
    return markdown_table(head, body)


def controls_table(report: Mapping[str, Any]) -> str:
    """Losses of the true task and of each control, by model and budget, and how many items of the report fail."""
    keys = ("true_loss", "swapped_loss", "unrelated_loss", "random_model_loss")
    body = [
        [name, *(f"{one[key]:.3f}" for key in keys), ", ".join(one["failed"]) or "none"]
        for name, one in report["cases"].items()
    ]
    return markdown_table(
        ["model, budget", "true task", "swapped", "unrelated", "random model", "items that fail"], body
    )


def sparse_vs_dense_table(report: Mapping[str, Any]) -> str:
    """Edges on both sides, and their ratio, task by task."""
    body = [
        [
            task,
            one["n_seeds"],
            f"{one['sparse_n_edges']:g}",
            f"{one['dense_n_edges']:g}",
            f"{report['tasks'][task]:.1f}",
        ]
        for task, one in report["sizes"].items()
    ]
    table = markdown_table(["task", "seeds", "edges, sparse", "edges, dense", "ratio"], body)
    return f"{table}\n\nGeometric mean of the ratios: **{report['geomean_edge_ratio']:.1f}**."


def frontier_table(report: Mapping[str, Any]) -> str:
    """Validation loss and circuit size for each width."""
    body = [
        [width, f"{nonzero:,.0f}", f"{loss:.3f}", UNMEASURED if edges is None else f"{edges:.1f}"]
        for width, nonzero, loss, edges in zip(
            report["widths"], report["n_nonzero"], report["val_loss"], report["n_edges"], strict=True
        )
    ]
    table = markdown_table(["width", "nonzero weights", "validation loss (nats)", "edges of a circuit"], body)
    return f"{table}\n\n{frontier_verdict(report)}"


def frontier_verdict(report: Mapping[str, Any]) -> str:
    """What may be said of the narrowest against the widest model, seed by seed and task by task."""
    least, most = report["widths"][0], report["widths"][-1]
    by_seed = {(run["seed"], run["width"]): run for run in report["runs"]}
    seeds = [seed for seed in report["seeds"] if {(seed, least), (seed, most)} <= by_seed.keys()]
    pairs = [(by_seed[seed, least], by_seed[seed, most]) for seed in seeds]
    solved = [
        (narrow["circuits"][task]["n_edges"], wide["circuits"][task]["n_edges"])
        for narrow, wide in pairs
        for task in narrow["circuits"]
        if narrow["circuits"][task]["solved"] and wide["circuits"][task]["solved"]
    ]
    if len(pairs) < 2 or len(solved) < 2:
        return "Too few seeds to say anything of a direction."
    edges = direction("the number of edges", [a for a, _ in solved], [b for _, b in solved])
    loss = direction(
        "the validation loss",
        *([run["val_loss"] for run in side] for side in zip(*pairs, strict=True)),
        digits=3,
    )
    return f"From {least} to {most} channels: {edges} {loss}"


def power_table(report: Mapping[str, Any]) -> str:
    """Each planted fault: how often it was caught, and by which checks."""
    n = report["draws"]
    body = [
        [fault, f"{share * n:.0f} of {n}", _counted(report["by_check"][fault])]
        for fault, share in report["caught"].items()
    ]
    alarms = f"{report['false_alarms'] * report['true_circuits']:.0f} of {report['true_circuits']}"
    body.append(["none (a true circuit)", alarms, _counted(report["alarms_by_check"])])
    return markdown_table(["planted", "a check failed in", "which, and how often"], body)


def _counted(checks: Mapping[str, int]) -> str:
    ordered = sorted(checks.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} ({n})" for name, n in ordered) or "none"


def circuits_table(report: Mapping[str, Any]) -> str:
    """Medians over models of the default circuit and the published one, with ranges, and what fails."""
    if "range" not in report:
        return _published_alone(report)
    low_high = report["range"]
    body = [
        [
            name,
            f"{report[key]:.3g} ({low_high[key][0]:.3g} to {low_high[key][1]:.3g})",
            f"{report['published'][key]:.3g}",
        ]
        for key, name in CIRCUIT_ROWS.items()
    ]
    n = report["seeds_total"]
    asked = "margins and their order" if " --order " in report["command"] else "default: margins"
    table = markdown_table(["median (range)", asked, "published: task, calibrated"], body)
    return (
        f"{table}\n\n{n} models. Circuits so found that pass every check of their own report: "
        f"{report['seeds_passing_trust_at_any_size']} of {n}; within 12 nodes and 9 edges as well: "
        f"{report['seeds_passing_trust']} of {n}. Checks that fail: {_counted(report['failed_checks'])}."
    )


def _published_alone(report: Mapping[str, Any]) -> str:
    """Where only the published objective was run: what each seed gave."""
    body = [
        [
            run["seed"],
            run["n_nodes"],
            run["n_edges"],
            *(f"{run[key]:.3f}" for key in ("task_loss", "uncalibrated_task_loss", "task_accuracy")),
        ]
        for run in report["runs"]
    ]
    head = ["seed", "nodes", "edges", "task loss, calibrated", "uncalibrated", "accuracy"]
    return f"By the published objective alone:\n\n{markdown_table(head, body)}"


CIRCUIT_ROWS = {
    "n_nodes": "nodes",
    "n_edges": "edges",
    "uncalibrated_task_loss": "task loss, uncalibrated (nats)",
    "margin_ratio": "margin over the model's",
    "margin_correlation": "correlation within an answer",
    "margin_error": "error of the margins",
    "stochastic_loss": "loss under stochastic ablation",
    "adversarial_loss": "loss under adversarial ablation",
}
"""Rows of the table over fresh models; losses under ablation are of each circuit's own objective."""


def sizes_table(report: Mapping[str, Any]) -> str:
    """Size and likeness by what was asked, and what fails."""
    body = []
    for target, one in report["medians"].items():
        failed = sorted(
            {name for run in report["runs"] if str(run["target"]) == target for name in run["failed"]}
        )
        body.append(
            [
                target,
                *(f"{one[key]:.0f}" for key in ("n_nodes", "n_edges")),
                *(f"{one[key]:.3f}" for key in ("margin_error", "margin_ratio", "margin_correlation")),
                ", ".join(failed) or "none",
            ]
        )
    head = ["error asked for", "nodes", "edges", "error", "ratio", "correlation", "checks that fail"]
    smallest = ", ".join(
        f"seed {seed}: {'none' if size is None else f'{size[0]} nodes, {size[1]} edges'}"
        for seed, size in report["smallest_passing"].items()
    )
    return f"{markdown_table(head, body)}\n\nThe smallest that passes every check: {smallest}."


def attack_table(report: Mapping[str, Any]) -> str:
    """Sizes, and errors of the margins under each ablation."""
    keys = ("mean", "stochastic", "adversarial")
    body = [
        [kind, f"{one['n_nodes']:.0f}", f"{one['n_edges']:.0f}", *(f"{one[key]:.3f}" for key in keys)]
        for kind, one in report["medians"].items()
    ]
    return markdown_table(["pruned under", "nodes", "edges", *(f"error, {key}" for key in keys)], body)


def objectives_table(report: Mapping[str, Any]) -> str:
    """Nodes and edges for each task, under each objective and ablation."""
    tasks = report["tasks"]
    cases = list(dict.fromkeys(case for cases in tasks.values() for case in cases))
    body = [[case, *(_size(tasks[task].get(case, {"solved": False})) for task in tasks)] for case in cases]
    return markdown_table(["objective, ablation", *(f"{task}: nodes / edges" for task in tasks)], body)


def _size(one: Mapping[str, Any]) -> str:
    if not one["solved"]:
        return UNMEASURED
    return f"{one['n_nodes']} / {one['n_edges']} (KL from the model {one['kl_to_model']:.2f} nats)"


TABLES: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "power": power_table,
    "quotes_margins": circuits_table,
    "quotes_order": circuits_table,
    "quotes": circuits_table,
    "brackets": circuits_table,
    "size_faithfulness": sizes_table,
    "adversarial": attack_table,
    "stability": stability_table,
    "ground_truth": ground_truth_table,
    "controls": controls_table,
    "objectives": objectives_table,
    "sparse_vs_dense": sparse_vs_dense_table,
    "frontier": frontier_table,
}
FIGURES: dict[str, Callable[[Mapping[str, Any]], Any]] = {
    "ground_truth": ground_truth_figure,
    "controls": controls_figure,
    "sparse_vs_dense": sparse_vs_dense_figure,
    "frontier": frontier_figure,
}


if __name__ == "__main__":
    app()
