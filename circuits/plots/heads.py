"""Heads: what a report says of each, where they look (sink included), and full circuits between tokens."""

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float
from torch import Tensor

from circuits.heads import HeadReport
from circuits.heads.stacks import GROUPS, Looks, StackHeadReport
from circuits.plots import plot
from circuits.plots.grids import heat, limit_of, panels, token_labels
from circuits.plots.style import escaped, number

__all__ = ["head_report_figure", "pattern_figure", "stack_head_report_figure", "token_map_figure"]

COLUMNS = (
    ("previous", "previous token (share)", False),
    ("duplicate", "duplicate token (share)", False),
    ("induction", "induction (share)", False),
    ("copying", "copying (eigenvalues)", True),
    ("duplicate_nats", "duplicate (nats)", True),
    ("induction_nats", "induction (nats)", True),
)
LOOKS = (*Looks._fields, "copying")
"""Columns of a report of two stacks."""
SINK = "sink"
WIDTH, LABEL = 860, 13
"""Pixels: of all panels together, and that one token on an axis takes at least."""


@plot.register
def head_report_figure(report: HeadReport, *, title: str = "Heads") -> go.Figure:
    """Six scores of a report, each as a heat map of layers and heads: above from patterns, below from weights.

    Examples:
        >>> report = circuits.heads.head_report(circuits.load("induction").model)
        >>> figure = circuits.plots.head_report_figure(report, title="Two layers")
    """
    layers = sorted({row.layer for row in report.rows})
    heads = sorted({row.head for row in report.rows})
    at = {(row.layer, row.head): row for row in report.rows}
    # One scale for both scores in nats: what is faint beside an induction head is faint.
    nats = limit_of([[row.duplicate_nats, row.induction_nats] for row in report.rows])
    traces, names = [], []
    for field, name, diverging in COLUMNS:
        grid = [
            [getattr(at[layer, h], field) if (layer, h) in at else None for h in heads] for layer in layers
        ]
        limit = nats if field.endswith("nats") else 1.0
        hover = [
            [
                f"L{layer}H{h} {escaped(at[layer, h].kind)}<br>{name}: {_said(getattr(at[layer, h], field))}"
                for h in heads
            ]
            for layer in layers
        ]
        traces.append(
            [
                heat(
                    grid,
                    [str(h) for h in heads],
                    [str(x) for x in layers],
                    limit=limit,
                    diverging=diverging,
                    hover=hover,
                )
            ]
        )
        names.append(name if not field.endswith("nats") else f"{name[:-1]}, full colour {limit:.2g})")
    named = [f"{row.label} {row.kind}" for row in report.rows if row.kind]
    return panels(
        traces,
        [[str(h) for h in heads]] * len(traces),
        [[str(x) for x in layers]] * len(traces),
        names,
        title=title,
        subtitle=" · ".join(named[:6]) or "no head looks at one kind of place for 40 % of its attention",
        per_row=3,
        height=max(420, 230 + 36 * min(len(layers), 30)),
        x_title="head",
        y_title="layer",
    )


@plot.register
def stack_head_report_figure(report: StackHeadReport, *, title: str = "Heads of two stacks") -> go.Figure:
    """Where each head looks and how far it copies: heads are rows, a panel for each kind of attention.

    Examples:
        >>> found = circuits.load("translate")
        >>> report = circuits.heads.stack_head_report(found.model, found.corpus.val[:160].view(10, 16))
        >>> figure = circuits.plots.stack_head_report_figure(report)
    """
    traces, rows, names = [], [], []
    for (stack, kind), name in zip(GROUPS, ("encoder", "decoder", "decoder to encoder"), strict=True):
        own = [row for row in report.rows if (row.stack, row.kind) == (stack, kind)]
        labels = [row.label.removeprefix("encoder.") for row in own]
        values = [[*row.looks, row.copying] for row in own]
        hover = [
            [f"{row.label}<br>{column}: {_said(value)}" for column, value in zip(LOOKS, line, strict=True)]
            for row, line in zip(own, values, strict=True)
        ]
        bar = "share" if kind == "cross" else None
        traces.append([heat(values, LOOKS, labels, limit=1.0, diverging=True, hover=hover, bar=bar)])
        rows.append(labels)
        names.append(name)
    return panels(
        traces,
        [list(LOOKS)] * len(traces),
        rows,
        names,
        title=title,
        subtitle=f"{report.n_tokens} tokens · copying from weights, the rest from patterns",
        per_row=3,
        height=220 + 22 * min(40, max(map(len, rows))),
    )


def pattern_figure(
    pattern: Float[Tensor, "head query key"],
    tokens: Sequence[str],
    *,
    heads: Sequence[int] | None = None,
    title: str = "Attention patterns",
    per_row: int | None = None,
) -> go.Figure:
    """Where each head looks, a panel a head; the first column is what the learned sink took.

    pattern: `hook_pattern` of one prompt. heads: their numbers in the titles (default: 0, 1, ...). per_row: panels
    side by side (default: as many, up to four, as leave the tokens on the axes room).
    Raises ValueError when tokens and pattern differ in length.

    Examples:
        >>> figure = circuits.plots.pattern_figure(torch.eye(3)[None], ["a", "b", "c"])
    """
    if len(tokens) != pattern.shape[-1]:
        raise ValueError(
            f"tokens: got {len(tokens)}; expected one for each of {pattern.shape[-1]} positions."
        )
    values = pattern.detach().float().cpu().numpy()
    labels = token_labels(tokens)
    rest = np.clip(1 - values.sum(-1, keepdims=True), 0, None)
    # Positions that a causal head cannot see are left blank; composed patterns may dip below zero.
    seen = np.tril(np.ones(values.shape[-2:], dtype=bool))
    grids = np.concatenate([rest, np.where(seen, values, np.nan)], axis=-1)
    numbers = list(range(len(grids))) if heads is None else list(heads)
    fitting = max(1, min(4, WIDTH // (LABEL * (len(labels) + 1))))
    # As many rows as are needed, evenly filled.
    columns, per_row = [SINK, *labels], per_row or -(-len(grids) // -(-len(grids) // fitting))
    per_row = min(per_row, len(grids))
    traces = [
        [heat(grid, columns, labels, limit=1.0, diverging=False, hover=_where(grid, columns, labels),
              bar="share of attention" if i == 0 else None)]
        for i, grid in enumerate(grids)
    ]  # fmt: skip
    n_rows = -(-len(grids) // per_row)
    size = WIDTH / per_row
    sinks = ", ".join(f"{share:.0%}" for share in rest.mean((1, 2)))
    figure = panels(
        traces,
        [columns] * len(grids),
        [labels] * len(grids),
        [f"head {n}" for n in numbers],
        title=title,
        subtitle=f"rows attend to columns · taken by the sink: {sinks}",
        per_row=per_row,
        height=round(180 + n_rows * (size + 50)),
    )
    for i in range(len(grids)):
        axis = "" if i == 0 else str(i + 1)
        figure.add_shape(
            type="line", x0=0.5, x1=0.5, y0=-0.5, y1=len(labels) - 0.5, xref=f"x{axis}", yref=f"y{axis}",
            line={"width": 2, "color": "#1f2933"},
        )  # fmt: skip
    return figure


def token_map_figure(
    values: Float[Tensor, "row column"],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    title: str,
    subtitle: str = "",
    unit: str = "nats",
    row_name: str = "query",
    column_name: str = "key",
) -> go.Figure:
    """A full QK or OV circuit between tokens, such as `full_qk(model, tokens, layer=0, head=1).AB`.

    Raises ValueError when the labels do not fit the values.

    Examples:
        >>> figure = circuits.plots.token_map_figure(torch.eye(2), ["a", "b"], ["a", "b"], title="QK")
    """
    if tuple(values.shape) != (len(rows), len(columns)):
        raise ValueError(
            f"values: got shape {tuple(values.shape)}; expected {(len(rows), len(columns))}, a row and a column "
            "for every token."
        )
    grid = values.detach().float().cpu().numpy()
    row_labels, column_labels = token_labels(rows), token_labels(columns)
    hover = [
        [
            f"{row_name} {escaped(r)} · {column_name} {escaped(c)}<br>{number(float(v))} {unit}"
            for c, v in zip(column_labels, line, strict=True)
        ]
        for r, line in zip(row_labels, grid, strict=True)
    ]
    trace = heat(grid, column_labels, row_labels, limit=limit_of(grid), diverging=True, hover=hover, bar=unit)
    return panels(
        [[trace]],
        [column_labels],
        [row_labels],
        [""],
        title=title,
        subtitle=subtitle,
        per_row=1,
        height=round(190 + min(760, max(220, 26 * len(rows)))),
        x_title=column_name,
        y_title=row_name,
    )


def _where(grid: np.ndarray, columns: Sequence[str], rows: Sequence[str]) -> list[list[str]]:
    return [
        [
            f"from {i} {escaped(row)} to {escaped(column) if j == 0 else f'{j - 1} {escaped(column)}'}<br>{v:.3f}"
            for j, (column, v) in enumerate(zip(columns, line, strict=True))
        ]
        for i, (row, line) in enumerate(zip(rows, grid, strict=True))
    ]


def _said(value: float | None) -> str:
    return number(float("nan") if value is None else value)
