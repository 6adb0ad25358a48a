"""Dynamically composable attention: heads mixed, position by position, before and after the softmax.

For the scores (or the pattern) a of all heads between query i and key j, as a row vector:

    a' = a (I + W_b + C_q(x_i) + C_k(x_j)),   C(x) = w1(x)^T w2(x) + diag(tanh(x dd))

W_b is a static matrix; each C(x) has a low-rank part, which mixes heads, and a gate, which scales each by itself.
Entry [n, m] of a map carries head n's value to head m: the edge n -> m. Everything is added to the identity, so a
map that is zeroed at its hook leaves plain attention, exactly. Positions are never mixed: causality is kept.
Source: "Improving Transformers with Dynamically Composable Multi-Head Attention" (arXiv 2405.08553, ICML 2024),
equations as in the authors' code.
"""

import math
from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from transformer_lens.config import TransformerLensConfig

from circuits.model.config import ComposeKind, ModelConfig
from circuits.model.hooks import HookPoint
from circuits.model.layers import Matrix
from circuits.model.mixers.past import Given
from circuits.model.mixers.softmax import SoftmaxAttention

BRANCHES = ("static", "query.mix", "query.gate", "key.mix", "key.gate")
"""The parts of a map; each has a hook of its name."""
NORM_EPS = 1e-6


class DynamicMap(nn.Module):
    """A map between heads, worked out at each position from what the attention layer reads there."""

    def __init__(self, d_model: int, n_heads: int, rank: int, *, mix: bool) -> None:
        super().__init__()
        self.n_heads, self.rank = n_heads, rank
        hidden = 2 * rank * n_heads
        self.dd = _normal(d_model, n_heads, std=0.05 * math.sqrt(2 / (n_heads + d_model)))
        self.dw1 = _normal(d_model, hidden, std=math.sqrt(2 / (d_model + hidden))) if mix else None
        std = 0.02 / (math.sqrt(2 * n_heads * rank) * (n_heads + rank))
        self.qkw = _normal(hidden, 2 * rank * n_heads, std=std) if mix else None
        self.hook_mix = HookPoint()  # [batch, pos, from head, to head]
        self.hook_gate = HookPoint()  # [batch, pos, from head, to head], diagonal
        self.hook_map = HookPoint()  # their sum; an entry off the diagonal is an edge between heads

    def forward(self, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos head head"]:
        """`w1^T w2 + diag(g)`."""
        total = self.hook_gate(torch.diag_embed((x @ self.dd).tanh()))
        if self.dw1 is not None and self.qkw is not None:
            w = (F.gelu(x @ self.dw1) @ self.qkw).unflatten(-1, (2 * self.rank, self.n_heads))
            w1, w2 = w.split(self.rank, dim=-2)
            # Each row of w1 is normed over heads, w2 never: the mix can be small, but not by shrinking w1.
            square = w1.to(torch.promote_types(w1.dtype, torch.float32)).square().mean(-1, keepdim=True)
            w1 = w1 / (square + NORM_EPS).sqrt().to(w1.dtype)
            total = total + self.hook_mix(w1.transpose(-2, -1) @ w2)
        return self.hook_map(total)


class Compose(nn.Module):
    """One composition of heads: of the scores (before the softmax) or of the pattern (after it)."""

    def __init__(self, kind: ComposeKind, d_model: int, n_heads: int, rank: int) -> None:
        super().__init__()
        # A forked generator, so that all other weights start as those of the plain model with the same seed.
        with torch.random.fork_rng(devices=[]):
            self.static = nn.Parameter(torch.zeros(n_heads, n_heads)) if kind == "static" else None
            both = ("query", "key")
            sides = {"gate": both, "qw": ("query",), "kw": ("key",), "full": both}.get(kind, ())
            mix = kind in ("qw", "kw", "full")
            self.query = DynamicMap(d_model, n_heads, rank, mix=mix) if "query" in sides else None
            self.key = DynamicMap(d_model, n_heads, rank, mix=mix) if "key" in sides else None
        self.hook_static = HookPoint()  # [from head, to head]
        self.hook_out = HookPoint()  # [batch, head, query, key]

    def forward(
        self, a: Float[Tensor, "batch head query key"], x: Float[Tensor, "batch pos d_model"]
    ) -> Float[Tensor, "batch head query key"]:
        """`a` with its heads mixed. Scores are composed unmasked; a pattern keeps its zeros.

        x: of all keys; queries are the last of them.
        """
        mixed = a
        if self.static is not None:
            mixed = mixed + torch.einsum("bnij,nm->bmij", a, self.hook_static(self.static))
        if self.query is not None:
            mixed = mixed + torch.einsum("bnij,binm->bmij", a, self.query(x[:, -a.shape[2] :]))
        if self.key is not None:
            mixed = mixed + torch.einsum("bnij,bjnm->bmij", a, self.key(x))
        return self.hook_out(mixed)


class ComposedAttention(SoftmaxAttention):
    """Softmax attention whose heads are composed before and after the softmax; plain where the kind is "none"."""

    def __init__(
        self, config: ModelConfig, lens: TransformerLensConfig, layer: int, given: Given | None = None
    ) -> None:
        super().__init__(config, lens, layer, given)
        self.compose_pre, self.compose_post = (_compose(config), _compose(config))

    @property
    def reads_input(self) -> bool:
        """Whether there is a composition, which depends on what the layer reads."""
        return self.compose_pre is not None

    def own_matrices(self) -> Iterator[Matrix]:
        """The parameters of both compositions."""
        for stage in ("compose_pre", "compose_post"):
            module: Compose | None = getattr(self, stage)
            if module is not None:
                for name, parameter in module.named_parameters():
                    yield Matrix(f"{stage}.{name}", parameter, "block", None)

    def before_softmax(
        self, scores: Float[Tensor, "batch head query key"], x: Float[Tensor, "batch key d_model"] | None
    ) -> Float[Tensor, "batch head query key"]:
        """Scores of composed heads."""
        return scores if self.compose_pre is None else self.compose_pre(scores, x)

    def after_softmax(
        self, pattern: Float[Tensor, "batch head query key"], x: Float[Tensor, "batch key d_model"] | None
    ) -> Float[Tensor, "batch head query key"]:
        """Patterns of composed heads."""
        return pattern if self.compose_post is None else self.compose_post(pattern, x)


def explicit_map(
    n_heads: int,
    *,
    static: Float[Tensor, "head head"] | None,
    query: Float[Tensor, "batch query head head"] | None,
    key: Float[Tensor, "batch key head head"] | None,
    like: Float[Tensor, "batch pos d_model"],
) -> Float[Tensor, "batch query key head head"]:
    """`I + W_b + C_q(x_i) + C_k(x_j)` for every pair of positions: what `Compose` multiplies by."""
    batch, pos = like.shape[:2]
    total = torch.eye(n_heads, dtype=like.dtype, device=like.device).expand(batch, pos, pos, -1, -1)
    if static is not None:
        total = total + static
    if query is not None:
        total = total + query[:, :, None]
    return total if key is None else total + key[:, None, :]


def n_parameters(kind: ComposeKind, d_model: int, n_heads: int, rank: int = 2) -> int:
    """Entries that composition adds to a layer; full at rank 2: 20 d_model n_heads + 64 n_heads^2."""
    hidden = 2 * rank * n_heads
    side = d_model * n_heads + (d_model * hidden + hidden * hidden if kind in ("qw", "kw", "full") else 0)
    sizes = {"none": 0, "static": n_heads**2, "gate": 2 * side, "qw": side, "kw": side, "full": 2 * side}
    return 2 * sizes[kind]


def _normal(d_in: int, d_out: int, *, std: float) -> nn.Parameter:
    return nn.Parameter(torch.randn(d_in, d_out) * std)


def _compose(config: ModelConfig) -> Compose | None:
    if config.compose == "none":
        return None
    return Compose(config.compose, config.d_model, config.n_heads, config.compose_rank)
