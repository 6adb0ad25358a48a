"""The parts that layers are made of: AbsTopK, RMSNorm, affine maps, products of them, and what training projects."""

import math
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from circuits.kernels import abs_topk, token_major, transformed
from circuits.model.affine import AffineMap
from circuits.model.hooks import HookPoint


class Matrix(NamedTuple):
    """One tensor that training projects onto its top-k, and how."""

    name: str
    parameter: Tensor
    """In a compact map, made from its nonzeros."""
    group: Literal["block", "embed"]
    unit_axis: int | None
    """Axis that enumerates the units that must each keep `min_alive` weights; None where there are none."""


class AbsTopK(nn.Module):
    """Keep the k largest magnitudes along the last axis, sign kept; k = None passes everything."""

    def __init__(self, k: int | None) -> None:
        super().__init__()
        self.k = k

    def forward(self, x: Float[Tensor, "... width"]) -> Float[Tensor, "... width"]:
        """At most k nonzeros per row."""
        return x if self.k is None or self.k >= x.shape[-1] else abs_topk(x, self.k)

    def extra_repr(self) -> str:
        """Shown in `print(model)`."""
        return f"k={self.k}"


class Linear(AffineMap):
    """`x @ weight + bias` with weight [d_in, d_out]: the right-multiplying convention of TransformerLens."""

    weight: Float[Tensor, "d_in d_out"]

    def __init__(self, d_in: int, d_out: int, std: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(d_in, d_out) * std)
        self.bias = nn.Parameter(torch.zeros(d_out))


class Factored(nn.Module):
    """`(x A + a) B + b`: a weight matrix as the product of two, with a hook at the coordinates between them.

    a is 0 unless somebody sets it: with it, a cut entry of A can pass a constant as any other weight does. What reads
    `weight` and `bias` reads those of the product, worked out anew each time.
    """

    def __init__(self, d_in: int, d_inner: int, d_out: int, std: float) -> None:
        super().__init__()
        each = math.sqrt(std) * d_inner**-0.25  # so that entries of the product have deviation std
        self.first, self.second = Linear(d_in, d_inner, each), Linear(d_inner, d_out, each)
        self.hook_inner = HookPoint()  # [batch, pos, d_inner]

    def forward(self, x: Float[Tensor, "... d_in"]) -> Float[Tensor, "... d_out"]:
        """Through one factor, then through the other."""
        return self.second(self.hook_inner(self.first(x)))

    @property
    def weight(self) -> Float[Tensor, "d_in d_out"]:
        """A B."""
        return self.first.weight @ self.second.weight

    @property
    def bias(self) -> Float[Tensor, " d_out"]:
        """a B + b."""
        return self.first.bias @ self.second.weight + self.second.bias


def new_map(d_in: int, d_out: int, std: float, d_inner: int) -> Linear | Factored:
    """An affine map with weights of this deviation: a product of two, or (d_inner 0) a whole one."""
    return Factored(d_in, d_inner, d_out, std) if d_inner else Linear(d_in, d_out, std)


def wide(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """x itself, or in float32 where it is of half precision: what sums over many entries are worked out in."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


class _MeanSquare(torch.autograd.Function):
    """`x.square().mean(-1, keepdim=True)`, the very bits; backward in the memory layout of x, whatever it is."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.square().mean(dim=-1, keepdim=True)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return x * (2 * (grads[0] / x.shape[-1]))


class RMSNorm(nn.Module):
    """`x / sqrt(mean(x^2) + eps)`, without weights."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.hook_scale = HookPoint()  # [batch, pos, 1]
        self.hook_normalized = HookPoint()  # [batch, pos, d_model]

    def forward(self, x: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        """Root mean square 1 along the last axis."""
        y = wide(x)  # 256 squared is no float16
        square = y.square().mean(-1, keepdim=True) if transformed() else _MeanSquare.apply(y)
        scale = self.hook_scale((square + self.eps).sqrt().to(x.dtype))
        return self.hook_normalized(x / scale)


class Unembed(AffineMap):
    """`x W_U + b_U`."""

    MATRIX, BIAS = "W_U", "b_U"
    W_U: Float[Tensor, "d_model d_vocab"]

    def __init__(self, d_model: int, d_vocab: int) -> None:
        super().__init__()
        self.W_U = nn.Parameter(torch.randn(d_model, d_vocab) * 0.02)
        self.b_U = nn.Parameter(torch.zeros(d_vocab))

    def forward(self, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_vocab"]:
        """Logits, without the bigram term."""
        return token_major(super().forward(x))

    @property
    def weight(self) -> Float[Tensor, "d_model d_vocab"]:
        """W_U, by the name it has in every affine map."""
        return self.W_U

    @property
    def bias(self) -> Float[Tensor, " d_vocab"]:
        """b_U."""
        return self.b_U
