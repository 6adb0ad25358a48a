"""The page about bridges: its tables and pictures, drawn from the results files."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from circuits.plots import bridge_figure, dilution_figure, figure_to_png, steering_figure
from circuits.plots.markdown import made_by, markdown_table, write_between

BEGIN, END = "<!-- results of the bridge experiments: begin -->", "<!-- end -->"
NAMES = ("bridges", "steering", "dilution")


def markdown(results: Path) -> str:
    """The tables of the three results files in Markdown, each with the command and machine that made it."""
    parts = [_section(name, json.loads((results / f"{name}.json").read_text())) for name in NAMES]
    return "\n\n".join(parts)


def write_bridge_page(docs: Path) -> Path:
    """Rewrite the tables and pictures of explanation/bridges.md from results/; returns the page.

    Raises ValueError when the page lacks the two marks between which the tables go.
    """
    page = docs / "explanation" / "bridges.md"
    write_between(page, BEGIN, END, markdown(docs / "results"))
    for name in NAMES:
        run = json.loads((docs / "results" / f"{name}.json").read_text())["runs"][0]
        figure = bridge_figure(run["locations"]) if name == "bridges" else _FIGURES[name](run)
        figure_to_png(figure, page.with_name(f"bridges-{name}.png"), width=900, scale=1.5)
    return page


_FIGURES: Mapping[str, Callable[[Mapping[str, Any]], Any]] = {
    "steering": steering_figure,
    "dilution": dilution_figure,
}


def _section(name: str, report: Mapping[str, Any]) -> str:
    rows = [row for run in report["runs"] for row in _ROWS[name](run)]
    table = markdown_table(list(rows[0]), [list(row.values()) for row in rows])
    return f"### {_TITLES[name]}\n\n{table}\n\n{made_by(report)}\n\n![{_TITLES[name]}](bridges-{name}.png)"


_TITLES = {
    "bridges": "Loss recovered at each location",
    "steering": "Steering the closing quote",
    "dilution": "Context dilution",
}


def _share(value: float | None) -> str:
    return "nothing to recover" if value is None else f"{value:.3f}"


def _bridge_rows(run: Mapping[str, Any]) -> list[dict[str, str]]:
    return [
        {
            "seed": f"{run['seed']}",
            "location": f"`{row['location']}`",
            "recovered, dense → sparse": _share(row["recovered_dense_to_sparse"]),
            "recovered, sparse → dense": _share(row["recovered_sparse_to_dense"]),
            "NMSE encoder": f"{row['nmse_encode']:.3f}",
            "NMSE decoder": f"{row['nmse_decode']:.3f}",
            "loss dense, sparse": f"{run['loss_dense']:.3f}, {run['loss_sparse']:.3f}",
        }
        for row in run["locations"]
    ]


def _steering_rows(run: Mapping[str, Any]) -> list[dict[str, str]]:
    return [
        {
            "seed": f"{run['seed']}",
            "location": f"`{run['location']}`",
            "channels": f"{len(run['channels'])}",
            "P(wrong quote) before": f"{run['p_foil_before']:.3f}",
            "after": f"{run['p_foil_after']:.3f}",
            "strength": f"{run['strength']:g}",
            "rises throughout": "yes" if run["monotone"] else "no",
            "random channel moves it by": f"{run['control_change']:.3f}",
            "random direction": f"{run['direction_change']:.3f}",
        }
    ]


def _dilution_rows(run: Mapping[str, Any]) -> list[dict[str, str]]:
    return [
        {
            "seed": f"{run['seed']}",
            "rank correlation": f"{run['spearman']:.3f}",
            "cells": f"{run['n_cells']}",
            "dense errors, least to most": f"{run['dense_error_min']:.1%} to {run['dense_error_max']:.1%}",
            "found over random": f"{run['adversarial_ratio']:.1f}",
            "found over random deep": f"{run['adversarial_ratio_deep']:.1f}",
        }
    ]


_ROWS: Mapping[str, Callable[[Mapping[str, Any]], list[dict[str, str]]]] = {
    "bridges": _bridge_rows,
    "steering": _steering_rows,
    "dilution": _dilution_rows,
}
