"""Scores of attention heads, from their weights and from their patterns.

From weights, in units that can be compared between heads: how far the OV circuit copies (eigenvalues, -1 to 1),
what share of attention an average token pays to its predecessor, and by how many nats the attention score prefers
an equal token (duplicate) or the token after an equal one (induction). From patterns: the same as shares of
attention on given text. AbsTopK is not in the weights, so on a sparse model trust the patterns where both disagree.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens import FactoredMatrix

from circuits.heads.weights import EmbeddingWeights, HeadWeights, embedding_weights, head_weights, rms_normed
from circuits.model.mixers import sink_softmax
from circuits.model.options import Says
from circuits.model.tokens import real_places

SAYS = Says(act=None, experts=None, factor_ratio=None)
"""Scores from weights: of heads that are not composed, whose score is one product of a query and a key."""
THROUGH = Says(compose=None, act=None, experts=None, factor_ratio=None)
"""Products through values and outputs, which composed heads have too."""
INSTEAD = "Measure where its heads look with pattern_scores(model, tokens), or how they mix with head_mixing."
MAX_POSITIONS = 64
"""Positions that the previous-token score from weights looks at."""


def full_qk(
    model: Any, tokens: Int[Tensor, " token"], *, layer: int, head: int, normed: bool = True
) -> FactoredMatrix:
    """Attention scores between tokens, `E W_Q W_K^T E^T / sqrt(d_head)` [query token, key token], in nats.

    E holds the embeddings of `tokens`: as the norm passes them on, its weights included, or raw
    (`normed=False`). Raises ValueError for a head or a token that the model does not have, and for composed heads.

    Examples:
        >>> model = circuits.load("induction").model
        >>> letters = torch.tensor(model.tokenizer.encode("a b c"))
        >>> circuits.heads.full_qk(model, letters, layer=1, head=0).AB.shape
        torch.Size([3, 3])
    """
    SAYS.check(model, "full_qk", instead=INSTEAD)
    heads, at, E = _read(model, tokens, layer, head, normed)
    scale = 1 / math.sqrt(heads.W_Q.shape[-1])
    return FactoredMatrix(E @ heads.W_Q[at, head] * scale, (E @ heads.W_K[at, head]).T)


def full_ov(
    model: Any, tokens: Int[Tensor, " token"], *, layer: int, head: int, normed: bool = True
) -> FactoredMatrix:
    """What attending to a token adds to each token's logit, `E W_V W_O W_U` [attended token, logit].

    Rows and columns are `tokens`; the final norm's division is left out. Composed heads attend by their pattern after
    composition. Raises ValueError for a head or a token that the model does not have.

    Examples:
        >>> model = circuits.load("induction").model
        >>> letters = torch.tensor(model.tokenizer.encode("a b c"))
        >>> circuits.heads.full_ov(model, letters, layer=1, head=0).AB.shape
        torch.Size([3, 3])
    """
    THROUGH.check(model, "full_ov", instead=INSTEAD)
    heads, at, E = _read(model, tokens, layer, head, normed)
    W_U = embedding_weights(model).W_U[:, tokens] if normed else model.W_U.detach()[:, tokens]
    return FactoredMatrix(E @ heads.W_V[at, head], heads.W_O[at, head] @ W_U)


def copying_scores(model: Any) -> Float[Tensor, "layer head"]:
    """`sum Re(x) / sum |x|` over the eigenvalues x of `E W_V W_O W_U`, all tokens: 1 copies, -1 suppresses.

    The eigenvalues are those of the d_head x d_head product taken the other way round. A head without
    eigenvalues scores 0. Source: Elhage et al. 2021, "Summarizing OV/QK matrices".

    Examples:
        >>> circuits.heads.copying_scores(circuits.load("induction").model).shape
        torch.Size([2, 4])
    """
    THROUGH.check(model, "copying_scores", instead=INSTEAD)
    heads, embeddings = head_weights(model), embedding_weights(model)
    through = embeddings.W_U @ embeddings.normed
    read = heads.norm[:, None, :, None] * heads.W_V
    small = torch.stack([W_O @ through @ W_V for W_O, W_V in zip(heads.W_O, read, strict=True)])
    values = torch.linalg.eigvals(small)
    size = values.abs().sum(-1)
    return torch.where(size > 0, values.real.sum(-1) / size.clamp_min(1e-30), torch.zeros_like(size))


def previous_scores(model: Any) -> Float[Tensor, "layer head"] | None:
    """Share of attention that an average token at a position pays to the position before, from weights alone.

    Mean over the first 64 positions, the first left out. None where positions are not embedded (rotary). Raises
    ValueError for composed heads.

    Examples:
        >>> circuits.heads.previous_scores(circuits.load("induction").model).shape
        torch.Size([2, 4])
    """
    SAYS.check(model, "previous_scores", instead=INSTEAD)
    heads, embeddings = head_weights(model), embedding_weights(model)
    if embeddings.W_pos is None:
        return None
    n = min(len(embeddings.W_pos), MAX_POSITIONS)
    if n < 2:
        return torch.zeros(heads.W_Q.shape[:2])
    x = rms_normed(embeddings.W_E.mean(0) + embeddings.W_pos[:n], embeddings.eps)
    read = x * heads.norm[:, None]
    q = torch.einsum("lpd,lhde->lhpe", read, heads.W_Q) + heads.b_Q[:, :, None]
    k = torch.einsum("lpd,lhde->lhpe", read, heads.W_K) + heads.b_K[:, :, None]
    scores = q @ k.transpose(-2, -1) / math.sqrt(heads.W_Q.shape[-1])
    scores = scores.masked_fill(torch.ones(n, n, dtype=torch.bool, device=x.device).triu(1), -torch.inf)
    sinks = [getattr(model.blocks[layer].attn, "sink", None) for layer in heads.layers]
    patterns = [
        sink_softmax(s[None], None if sink is None else sink.detach())[0]
        for s, sink in zip(scores, sinks, strict=True)
    ]
    return torch.stack([p.diagonal(-1, -2, -1).mean(-1) for p in patterns])


def duplicate_scores(model: Any) -> Float[Tensor, "layer head"]:
    """By how many nats the score for an equal token exceeds that for an average one, through the embeddings.

    The mean of the diagonal of `full_qk` minus the mean of all its entries, over all tokens. Raises ValueError for
    composed heads.

    Examples:
        >>> circuits.heads.duplicate_scores(circuits.load("induction").model).shape
        torch.Size([2, 4])
    """
    SAYS.check(model, "duplicate_scores", instead=INSTEAD)
    heads = head_weights(model)
    spread = _covariance(embedding_weights(model))
    return torch.stack(
        [_duplicate(heads, at, spread) / math.sqrt(heads.W_Q.shape[-1]) for at in range(len(heads.layers))]
    )


def induction_scores(
    model: Any, previous: Float[Tensor, "layer head"] | None = None
) -> Float[Tensor, "layer head layer head"]:
    """By how many nats an earlier head makes a later one prefer the token after an equal one [earlier, later].

    The later head's queries read tokens, its keys the earlier head's output for the token before; weighted by
    the earlier head's previous-token score (`previous`; default: `previous_scores`). Summed over the earlier
    heads it is the later head's induction score; the largest entry names its partner. Raises ValueError when
    the model's positions are rotary and `previous` is not given, and for composed heads.

    Examples:
        >>> circuits.heads.induction_scores(circuits.load("induction").model).shape
        torch.Size([2, 4, 2, 4])
    """
    SAYS.check(model, "induction_scores", instead=INSTEAD)
    previous = previous_scores(model) if previous is None else previous
    if previous is None:
        raise ValueError(
            "previous: got None, and this model has no position embeddings to work it out from; expected "
            "scores [layer, head]. Measure them: pattern_scores(model, tokens).previous."
        )
    heads = head_weights(model)
    spread = _covariance(embedding_weights(model))
    n_layers, n_heads = previous.shape
    out = torch.zeros(n_layers, n_heads, n_layers, n_heads, device=spread.device)
    for early in range(n_layers):
        moved = spread @ (heads.norm[early, :, None] * heads.W_V[early])
        for late in range(early + 1, n_layers):
            nats = _induction(heads, late, moved, heads.W_O[early])
            out[early, :, late] = previous[early, :, None] * nats
    return out / math.sqrt(heads.W_Q.shape[-1])


@dataclass(frozen=True, kw_only=True)
class PatternScores:
    """Shares of attention, averaged over the queries that each of them is defined for; NaN without any."""

    previous: Float[Tensor, "layer head"]
    "On the position before."
    duplicate: Float[Tensor, "layer head"]
    "On earlier equal tokens, where there are some."
    induction: Float[Tensor, "layer head"]
    "On the positions after earlier equal tokens, where there are some."
    sink: Float[Tensor, "layer head"]
    "On nothing: what the learned sink took."


def pattern_scores(
    model: Any,
    tokens: Int[Tensor, "batch pos"],
    *,
    lengths: Int[Tensor, " batch"] | None = None,
    batch_size: int = 8,
) -> PatternScores:
    """Run the model on `tokens` and measure where each head looks; composed heads: before patterns are composed.

    lengths: tokens of each row that are no padding, as `batch.lengths` says for the prompts of a task; only their
    queries count. None: all. Raises ValueError for lengths that do not fit the tokens.

    Examples:
        >>> model = circuits.load("induction").model
        >>> tokens = circuits.heads.repeated_tokens(model, n=4, length=12)
        >>> circuits.heads.pattern_scores(model, tokens).previous.shape
        torch.Size([2, 4])
    """
    places = real_places(tokens, lengths)
    layers = head_weights(model).layers
    sums: dict[int, Tensor] = {}
    counts = torch.zeros(4)
    for chunk, real in zip(tokens.split(batch_size), places.split(batch_size), strict=True):
        where = [mask & real[:, :, None] for mask in _where(chunk)]
        counts += torch.stack([_queries(mask).sum() for mask in where] + [real.sum()]).cpu()

        def add(pattern: Tensor, hook: Any, where: Sequence[Tensor] = where, real: Tensor = real) -> None:
            layer = int(hook.name.split(".")[1])
            parts = [(pattern * mask[:, None]).sum((0, 2, 3)) for mask in where]
            parts.append(((1 - pattern.sum(-1)) * real[:, None]).sum((0, 2)))
            sums[layer] = sums.get(layer, 0) + torch.stack(parts).float().cpu()

        with torch.no_grad():
            model.run_with_hooks(
                chunk, fwd_hooks=[(f"blocks.{layer}.attn.hook_pattern", add) for layer in layers]
            )
    shares = torch.stack([sums[layer] for layer in layers]) / counts[:, None]
    previous, duplicate, induction, sink = shares.unbind(1)
    return PatternScores(
        previous=previous, duplicate=duplicate, induction=induction, sink=sink.clamp_min(0).round(decimals=6)
    )


def repeated_tokens(model: Any, *, n: int = 16, length: int = 24, seed: int = 0) -> Int[Tensor, "batch pos"]:
    """`n` random sequences of tokens, each written twice: nothing but induction can predict the second half.

    Examples:
        >>> tokens = circuits.heads.repeated_tokens(circuits.load("induction").model, n=2, length=5)
        >>> torch.equal(tokens[:, -5:], tokens[:, -10:-5])
        True
    """
    length = max(1, min(length, model.cfg.n_ctx // 2))
    generator = torch.Generator().manual_seed(seed)
    half = torch.randint(model.W_E.shape[0], (n, length), generator=generator)
    return torch.cat([half, half], dim=1).to(model.W_E.device)


def _read(
    model: Any, tokens: Tensor, layer: int, head: int, normed: bool
) -> tuple[HeadWeights, int, Float[Tensor, "token d_model"]]:
    heads, embeddings = head_weights(model), embedding_weights(model)
    if layer not in heads.layers or not 0 <= head < heads.n_heads:
        raise ValueError(
            f"layer, head: got {layer}, {head}; expected an attention layer out of {list(heads.layers)} and a "
            f"head below {heads.n_heads}."
        )
    d_vocab = len(embeddings.W_E)
    if tokens.numel() == 0 or int(tokens.min()) < 0 or int(tokens.max()) >= d_vocab:
        raise ValueError(
            f"tokens: got {tokens.tolist()[:8]}; expected at least one id from 0 to {d_vocab - 1}."
        )
    at = heads.layers.index(layer)
    if not normed:
        return heads, at, model.W_E.detach()[tokens].to(embeddings.W_E)
    return heads, at, rms_normed(embeddings.W_E[tokens], embeddings.eps) * heads.norm[at]


def _covariance(embeddings: EmbeddingWeights) -> Float[Tensor, "d_model d_model"]:
    """Of token embeddings as the norm passes them on: turns 'equal minus average' into one trace."""
    E = embeddings.normed
    centred = E - E.mean(0)
    return centred.T @ centred / len(E)


def _duplicate(heads: HeadWeights, at: int, spread: Tensor) -> Float[Tensor, " head"]:
    q, k = (heads.norm[at, :, None] * W[at] for W in (heads.W_Q, heads.W_K))
    return (q * (spread @ k)).sum((-2, -1))


def _induction(
    heads: HeadWeights, late: int, moved: Float[Tensor, "early d_model d_v"], W_O: Tensor
) -> Float[Tensor, "early late"]:
    """`tr(W_Q^T Cov W_V W_O W_K)` of every pair of an earlier and a later layer's heads."""
    q, k = (heads.norm[late, :, None] * W[late] for W in (heads.W_Q, heads.W_K))
    asked = torch.einsum("hdq,nde->nhqe", q, moved)
    answered = torch.einsum("ned,hdq->nhqe", W_O, k)
    return (asked * answered).sum((-2, -1))


def _where(tokens: Int[Tensor, "batch pos"]) -> list[Bool[Tensor, "... query key"]]:
    """Where a previous-token, a duplicate-token and an induction head look."""
    n = tokens.shape[1]
    earlier = torch.ones(n, n, dtype=torch.bool, device=tokens.device).tril(-1)
    equal = (tokens[:, :, None] == tokens[:, None, :]) & earlier
    after = equal.roll(1, dims=2) & earlier
    after[:, :, 0] = False
    before = torch.diag_embed(torch.ones(n - 1, dtype=torch.bool, device=tokens.device), -1)
    return [before.expand_as(equal), equal, after]


def _queries(mask: Bool[Tensor, "batch query key"]) -> Bool[Tensor, "batch query"]:
    return mask.any(-1)
