"""The heads of an encoder-decoder: of the encoder, of the decoder, and those by which it looks at the encoder.

What each looks at is measured on whole rows of text, as `task.rows` or a corpus gives them; queries and keys that are
padding count nowhere.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuits.heads.weights import HeadWeights, rms_normed, weights_of
from circuits.model.kinds import of_ours
from circuits.model.sites import Stack, prefix
from circuits.model.transformer import SparseTransformer
from circuits.views import Plotted, html_table

Kind = Literal["head", "cross"]
GROUPS: tuple[tuple[Stack, Kind], ...] = (("encoder", "head"), ("decoder", "head"), ("decoder", "cross"))
"""The three kinds of attention, in forward order."""


class Looks(NamedTuple):
    """Shares of attention, averaged over the queries that each is defined for; None without any, or where it is not."""

    same: float | None
    """On the place with the query's own number."""
    before: float | None
    """On the place before that."""
    after: float | None
    """On the place after that; no decoder looks ahead in its own text."""
    mirror: float | None
    """On the place as far from the source's end as the query's from the start; for whoever looks at the source."""
    equal: float | None
    """On the query's own token elsewhere; cross-attention: on the token that is said next, where the source has it."""
    sink: float | None
    """On nothing: what the learned sink took."""


@dataclass(frozen=True, kw_only=True)
class StackHeadRow:
    """One head. Shares have no unit, and copying is from -1 to 1."""

    layer: int
    head: int
    stack: Stack
    kind: Kind
    copying: float | None
    "`copying_scores` of its path from tokens to logits; None for the encoder, and where norms leave it undefined."
    looks: Looks

    @property
    def label(self) -> str:
        """`encoder.L0H1`, `L0H1`, or `L0X1` for a head that looks at the encoder."""
        return f"{prefix(self.stack)}L{self.layer}{'X' if self.kind == 'cross' else 'H'}{self.head}"


@dataclass(frozen=True, kw_only=True)
class StackHeadReport(Plotted):
    """Every head of an encoder-decoder, on given rows."""

    rows: tuple[StackHeadRow, ...]
    "The encoder's, the decoder's own, those that look at the encoder; layer by layer."
    n_tokens: int
    "Tokens, without padding, that they were measured on."

    def __getitem__(self, label: str) -> StackHeadRow:
        """The head with this label. Raises ValueError for none."""
        for row in self.rows:
            if row.label == label:
                return row
        raise ValueError(f"label: got {label!r}; expected one of {[row.label for row in self.rows]}.")

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        rows = [{**asdict(row), "label": row.label, "looks": row.looks._asdict()} for row in self.rows]
        return {"n_tokens": self.n_tokens, "rows": rows}

    def __repr__(self) -> str:
        return f"StackHeadReport({len(self.rows)} heads, {self.n_tokens} tokens)"

    def _repr_html_(self) -> str:
        return html_table(
            ["head", "copying", *Looks._fields],
            [[row.label, *map(_cell, (row.copying, *row.looks))] for row in self.rows],
        )


@of_ours
def stack_head_report(model: SparseTransformer, rows: Int[Tensor, "batch pos"]) -> StackHeadReport:
    """Where every head looks on whole rows, and how far it copies. Raises ValueError for a model without an encoder.

    Examples:
        >>> found = circuits.load("translate")
        >>> rows = found.corpus.val[:160].view(10, 16)
        >>> circuits.heads.stack_head_report(found.model, rows).rows[0].label
        'encoder.L0H0'
    """
    _check(model)
    patterns, found = _patterns(model, rows), []
    copying = {group: _copying(model, group) for group in GROUPS}
    for (stack, kind), name in zip(GROUPS, ("attn", "attn", "cross"), strict=True):
        where = _where(model, rows, stack, kind)
        for layer in range(model.config.n_layers):
            pattern = patterns[f"{prefix(stack)}blocks.{layer}.{name}.hook_pattern"]
            for head in range(model.config.n_heads):
                score = copying[stack, kind]
                own = None if score is None else float(score[layer, head])
                looks = _looks(pattern[:, head], where)
                found.append(
                    StackHeadRow(layer=layer, head=head, stack=stack, kind=kind, copying=own, looks=looks)
                )
    return StackHeadReport(rows=tuple(found), n_tokens=int(rows.ne(_pad(model)).sum()))


def has_encoder(model: Any) -> bool:
    """Whether a model is an encoder-decoder."""
    return isinstance(model, SparseTransformer) and model.encoder is not None


@of_ours
def group_weights(model: SparseTransformer) -> dict[tuple[Stack, Kind], HeadWeights]:
    """The weights of the three kinds of heads. Keys and values of cross-attention read the encoder's output.

    Raises ValueError for a model without an encoder.

    Examples:
        >>> groups = circuits.heads.group_weights(circuits.load("translate").model)
        >>> sorted(groups)
        [('decoder', 'cross'), ('decoder', 'head'), ('encoder', 'head')]
    """
    _check(model)
    ones = torch.ones(model.config.n_layers, model.config.d_model).to(model.like)
    return {
        (stack, kind): weights_of(
            {i: _attention(block, kind) for i, block in enumerate(model.layers_of(stack))},
            model.config.n_heads,
            ones,
        )
        for stack, kind in GROUPS
    }


def _attention(block: Any, kind: Kind) -> Any:
    return block.cross if kind == "cross" else block.attn


def _check(model: Any) -> None:
    if not has_encoder(model):
        raise ValueError(
            f"model: got a {type(model).__name__} without an encoder; expected one with arch='encdec'. Of a decoder "
            "alone: head_report(model)."
        )


def _pad(model: SparseTransformer) -> int:
    assert model.config.pad is not None, "an encoder-decoder has a token that fills rows up"
    return model.config.pad


def _patterns(model: SparseTransformer, rows: Tensor) -> dict[str, Tensor]:
    kept: dict[str, Tensor] = {}
    names = [name for name in model.hook_dict if name.endswith("hook_pattern")]
    with torch.inference_mode(False), torch.no_grad():
        model.run_with_hooks(rows, fwd_hooks=[(name, partial(_keep, kept)) for name in names])
    return kept


def _keep(kept: dict[str, Tensor], value: Tensor, hook: Any) -> None:
    kept[hook.name] = value


class _Where(NamedTuple):
    """For each share the keys that count [batch, query, key], and the queries that are text [batch, query]."""

    masks: Mapping[str, Tensor | None]
    real: Tensor


def _where(model: SparseTransformer, rows: Tensor, stack: Stack, kind: Kind) -> _Where:
    n, pad = model.config.n_source, _pad(model)
    source, target = rows[:, :n], rows[:, n:]
    queries = source if stack == "encoder" else target
    keys = target if (stack, kind) == ("decoder", "head") else source
    real = queries.ne(pad)
    if kind == "cross":  # a query at the last token says nothing more
        said = torch.cat([target[:, 1:], torch.full_like(target[:, :1], pad)], dim=1)
        real = real & said.ne(pad)
        equal = said[:, :, None] == keys[:, None]
    else:
        equal = (queries[:, :, None] == keys[:, None]) & ~_at(queries, keys, 0)
    if keys is target:
        equal = equal & _earlier(target)
    mirror = _mirror(queries, source, pad) if keys is source else None
    own = stack == "decoder" and kind == "head"
    masks = {
        "same": _at(queries, keys, 0),
        "before": _at(queries, keys, -1),
        "after": None if own else _at(queries, keys, 1),
        "mirror": mirror,
        "equal": equal,
    }
    text = keys.ne(pad)[:, None]
    return _Where(
        {name: None if m is None else m & text & real[:, :, None] for name, m in masks.items()}, real
    )


def _at(queries: Tensor, keys: Tensor, shift: int) -> Bool[Tensor, "batch query key"]:
    """Keys whose place is that of the query, moved."""
    q, k = torch.arange(queries.shape[1]), torch.arange(keys.shape[1])
    return (k == q[:, None] + shift).to(keys.device).expand(len(keys), -1, -1)


def _earlier(target: Tensor) -> Bool[Tensor, "query key"]:
    return torch.ones(target.shape[1], target.shape[1], dtype=torch.bool, device=target.device).tril(-1)


def _mirror(queries: Tensor, source: Tensor, pad: int) -> Bool[Tensor, "batch query key"]:
    last = source.ne(pad).sum(1)[:, None, None] - 1
    q = torch.arange(queries.shape[1], device=source.device)[:, None]
    return last - q == torch.arange(source.shape[1], device=source.device)


def _looks(pattern: Float[Tensor, "batch query key"], where: _Where) -> Looks:
    shares = {name: None if m is None else _share(pattern, m) for name, m in where.masks.items()}
    sink = (1 - pattern.sum(-1))[where.real]
    return Looks(**shares, sink=float(sink.mean().clamp_min(0)) if len(sink) else None)


def _share(pattern: Tensor, mask: Tensor) -> float | None:
    """Mean over the queries that have such a key."""
    asked = mask.any(-1)
    return float((pattern * mask).sum(-1)[asked].mean()) if bool(asked.any()) else None


def _copying(model: SparseTransformer, group: tuple[Stack, Kind]) -> Float[Tensor, "layer head"] | None:
    """`sum Re(x) / sum |x|` over the eigenvalues of `E W_V W_O W_U`; None where there is no such path."""
    config = model.config
    if group[0] == "encoder" or config.norm != "rms" or config.norm_position != "pre":
        return None
    weights = group_weights(model)[group]
    W_E = model.embedding("encoder" if group[1] == "cross" else "decoder").detach().float()
    scale = config.d_model if config.embed_scale else 1
    E = rms_normed(W_E, config.norm_eps / scale)
    small = weights.W_O @ (model.W_U.detach().float() @ E) @ weights.W_V
    values = torch.linalg.eigvals(small)
    size = values.abs().sum(-1)
    return torch.where(size > 0, values.real.sum(-1) / size.clamp_min(1e-30), torch.zeros_like(size))


def _cell(value: float | None) -> str:
    return "\u2013" if value is None else f"{value:.2f}".replace("-", "\u2212")
