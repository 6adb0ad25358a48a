"""Every score of every head of a model in one table."""

from dataclasses import asdict, dataclass
from typing import Any

from jaxtyping import Int
from torch import Tensor

from circuits.heads.scores import (
    INSTEAD,
    SAYS,
    copying_scores,
    duplicate_scores,
    induction_scores,
    pattern_scores,
    previous_scores,
    repeated_tokens,
)
from circuits.heads.stacks import has_encoder
from circuits.heads.weights import head_weights
from circuits.model.tokens import real_places
from circuits.views import Plotted, html_table


@dataclass(frozen=True, kw_only=True)
class HeadRow:
    """One head of a report. Shares and copying have no unit; `*_nats` are nats of attention score."""

    layer: int
    head: int
    copying: float
    previous_from_weights: float | None
    duplicate_nats: float
    induction_nats: float
    partner: str | None
    previous: float | None
    duplicate: float | None
    induction: float | None
    sink: float

    @property
    def label(self) -> str:
        """`L0H0` and so on."""
        return f"L{self.layer}H{self.head}"

    @property
    def kind(self) -> str:
        """The word for what its patterns show, where one of the three shares is at least 0.4."""
        shares = {
            "previous token": self.previous or 0.0,
            "duplicate token": self.duplicate or 0.0,
            "induction": self.induction or 0.0,
        }
        known = {name: share for name, share in shares.items() if share >= 0.4}
        return max(known, key=lambda name: known[name], default="")


@dataclass(frozen=True, kw_only=True)
class HeadReport(Plotted):
    """Scores of every head of a model, from weights and on the given tokens."""

    rows: tuple[HeadRow, ...]
    "Layer by layer."
    n_tokens: int
    "Tokens that the pattern scores were measured on."

    def top(self, column: str, n: int = 5) -> tuple[HeadRow, ...]:
        """The `n` heads with the highest value in a column; unmeasured ones come last."""
        values = {row: getattr(row, column) for row in self.rows}
        known = [row for row, value in values.items() if value is not None and value == value]
        return tuple(sorted(known, key=lambda row: getattr(row, column), reverse=True)[:n])

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {"n_tokens": self.n_tokens, "rows": [asdict(row) for row in self.rows]}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "HeadReport":
        """The inverse of `to_json`."""
        return cls(rows=tuple(HeadRow(**row) for row in data["rows"]), n_tokens=data["n_tokens"])

    def __repr__(self) -> str:
        named = [f"{row.label} {row.kind}" for row in self.rows if row.kind]
        return (
            f"HeadReport({len(self.rows)} heads, {self.n_tokens} tokens: {', '.join(named) or 'none named'})"
        )

    def _repr_html_(self) -> str:
        columns = [name for name in asdict(self.rows[0]) if name not in ("layer", "head")]
        head = [name.replace("_", " ") for name in ("head", *columns, "kind")]
        return html_table(
            head, [[row.label, *(_cell(getattr(row, c)) for c in columns), row.kind] for row in self.rows]
        )


def head_report(
    model: Any,
    text: str | Int[Tensor, "batch pos"] | None = None,
    *,
    lengths: Int[Tensor, " batch"] | None = None,
    seed: int = 0,
) -> HeadReport:
    """Every score of every head in one table.

    text: a text or tokens to measure patterns on; default: random sequences written twice (`repeated_tokens`).
    lengths: tokens of each row that are no padding, as `batch.lengths` says for the prompts of a task; None: all.
    Where a model has no position embeddings, the partners of induction heads are weighted by the previous-token
    score of the patterns. Raises ValueError for a text without tokens, and for composed
    heads.

    Examples:
        >>> report = circuits.heads.head_report(circuits.load("induction").model)
        >>> len(report.rows), report.rows[0].label
        (8, 'L0H0')
    """
    instead = "stack_head_report(model, rows) is its own." if has_encoder(model) else INSTEAD
    SAYS.check(model, "head_report", instead=instead)
    if text is None:
        tokens = repeated_tokens(model, seed=seed)
    else:
        tokens = model.to_tokens(text) if isinstance(text, str) else text
    real = real_places(tokens, lengths)
    if tokens.numel() == 0:
        raise ValueError("text: got no tokens; expected a text of at least one, or None for random tokens.")
    patterns = pattern_scores(model, tokens, lengths=lengths)
    before = previous_scores(model)
    pairs = induction_scores(model, patterns.previous.nan_to_num() if before is None else before)
    copying, duplicate = copying_scores(model), duplicate_scores(model)
    heads = head_weights(model)
    rows = []
    for at, layer in enumerate(heads.layers):
        for head in range(heads.n_heads):
            given = pairs[:, :, at, head].flatten()
            rows.append(
                HeadRow(
                    layer=layer,
                    head=head,
                    copying=float(copying[at, head]),
                    previous_from_weights=None if before is None else float(before[at, head]),
                    duplicate_nats=float(duplicate[at, head]),
                    induction_nats=float(given.sum()),
                    partner=heads.labels[int(given.argmax())] if bool((given > 0).any()) else None,
                    previous=_known(patterns.previous[at, head]),
                    duplicate=_known(patterns.duplicate[at, head]),
                    induction=_known(patterns.induction[at, head]),
                    sink=float(patterns.sink[at, head]),
                )
            )
    return HeadReport(rows=tuple(rows), n_tokens=int(real.sum()))


def _known(value: Tensor) -> float | None:
    return None if bool(value.isnan()) else float(value)


def _cell(value: float | str | None) -> str:
    if isinstance(value, str):
        return value
    return "\u2013" if value is None else f"{value:.2f}".replace("-", "\u2212")
