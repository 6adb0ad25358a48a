"""What an evaluation found, item by item, and how it is shown."""

import html
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from circuits.files import json_text, read_json, write_json
from circuits.reading import demand, reading, sealed, unsealed
from circuits.settings import Amount, Whole, check_keys, checked, fitted
from circuits.views import Cell, Plotted, html_table

Verdict = Literal["pass", "fail", "note", "inconclusive", "not run"]
"""`note`: a number without a threshold that everybody would agree on. `inconclusive`: a check that could not have
told a real circuit from a false one here."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One item of a report."""

    name: str
    "Short name."
    meaning: str
    "What the value says, in one sentence."
    value: float
    "What was measured (nan: not run)."
    baseline: float
    "What the value would be without a real circuit, or the threshold to beat (nan: none)."
    verdict: Verdict
    "Whether the value is as a real circuit's should be."
    unit: str = ""
    "Unit of value and baseline; empty for a share or a count."
    details: Mapping[str, Any] = field(default_factory=dict, repr=False)
    "Everything that the value was made of, as plain JSON types."

    def shown(self) -> tuple[str, str]:
        """Value and baseline as short text."""
        return _shown(self.value), _shown(self.baseline)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types; nan becomes null."""
        return {
            "name": self.name,
            "meaning": self.meaning,
            "value": _or_none(self.value),
            "baseline": _or_none(self.baseline),
            "unit": self.unit,
            "verdict": self.verdict,
            "details": json.loads(json_text(self.details)),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Entry":
        """What `to_json` wrote. Raises ValueError on an unknown or missing key, or a value that does not fit."""
        kinds = {one.name: one.type for one in fields(cls)} | dict.fromkeys(
            ("value", "baseline"), float | None
        )
        held = {name: checked(name, value, kinds[name]) for name, value in check_keys(cls, data).items()}
        numbers = {
            name: math.nan if held[name] is None else float(held[name]) for name in ("value", "baseline")
        }
        return cls(**{**held, **numbers})


@dataclass(frozen=True, kw_only=True)
class TrustReport(Plotted):
    """Whether a circuit is what the model uses: one entry for each item."""

    task: str
    "Name of the task."
    model_hash: str
    "Model that the circuit belongs to."
    n_nodes: Whole
    "Nodes of the circuit."
    n_edges: Whole
    "Edges of the circuit."
    entries: tuple[Entry, ...]
    "In the order in which they are best read."
    seconds: Amount
    "Time that the evaluation took."

    def __getitem__(self, name: str) -> Entry:
        for entry in self.entries:
            if entry.name == name:
                return entry
        raise KeyError(f"{name!r}: expected one of {[entry.name for entry in self.entries]}")

    @property
    def failed(self) -> list[str]:
        """Names of the entries whose verdict is `fail`."""
        return [entry.name for entry in self.entries if entry.verdict == "fail"]

    @property
    def verdict(self) -> str:
        """One sentence over all entries."""
        counted = sum(entry.verdict in ("pass", "fail") for entry in self.entries)
        tail = "".join(
            f" {n} {'was' if n == 1 else 'were'} {name}."
            for name in ("inconclusive", "not run")
            if (n := sum(entry.verdict == name for entry in self.entries))
        )
        if not self.failed:
            return f"All {counted} checks passed.{tail}"
        return f"{len(self.failed)} of {counted} checks failed: {', '.join(self.failed)}.{tail}"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "task": self.task,
            "model_hash": self.model_hash,
            "n_nodes": self.n_nodes,
            "n_edges": self.n_edges,
            "verdict": self.verdict,
            "failed": self.failed,
            "seconds": self.seconds,
            "entries": [entry.to_json() for entry in self.entries],
        }

    def save(self, path: str | Path) -> Path:
        """Write JSON with its checksum; returns the path. `circuits show` looks for it as CIRCUIT.trust.json."""
        return write_json(path, sealed(json.loads(json_text(self.to_json()))))

    @classmethod
    def load(cls, path: str | Path) -> "TrustReport":
        """Read what `save` wrote. Raises UnreadableError (a ValueError) for any other file."""
        expected = "a report that TrustReport.save or `circuits trust` wrote"
        data = read_json(path, name="report", expected=expected)
        with reading(path, expected, name="report"):
            said = ("verdict", "failed")  # of the entries: worked out anew
            held = {name: value for name, value in unsealed(data).items() if name not in said}
            report = cls(**fitted(cls, held))
            names = [entry.name for entry in report.entries]
            demand(len(set(names)) == len(names), f"entries: got {names}", "each name once")
            return report

    def __str__(self) -> str:
        lines = [f"{self.task}: {self.n_nodes} nodes, {self.n_edges} edges. {self.verdict}"]
        for e in self.entries:
            value, baseline = e.shown()
            numbers = f"{value} (baseline {baseline}) {e.unit}".rstrip()
            lines.append(f"  {e.verdict:<8} {e.name:<28} {numbers}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        colours = {"pass": "#0b5394", "fail": "#a8500a"}
        left = "text-align:left"
        rows: list[list[str | Cell]] = [
            [
                Cell(e.verdict, style=f"font-weight:bold;color:{colours.get(e.verdict, '#6b7680')}"),
                Cell(e.name, style=left),
                *e.shown(),
                e.unit,
                Cell(e.meaning, style=left),
            ]
            for e in self.entries
        ]
        head: list[str | Cell] = [
            "",
            Cell("item", style=left),
            "value",
            "baseline",
            "unit",
            Cell("meaning", style=left),
        ]
        return (
            f"<b>{html.escape(self.task)}</b>: {self.n_nodes} nodes, {self.n_edges} edges. "
            f"{html.escape(self.verdict)}" + html_table(head, rows)
        )


def judged(value: float, passed: bool | None) -> Verdict:
    """The verdict on a value: none where there is no value to judge. passed: None for a note."""
    if math.isnan(value):
        return "not run"
    return "note" if passed is None else "pass" if passed else "fail"


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _shown(value: float) -> str:
    return "\u2013" if math.isnan(value) else f"{value:.3g}"
