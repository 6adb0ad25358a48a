"""The operations that cost time, each as one function with `impl="naive" | "cpu" | "triton" | "auto"`.

`naive` is plain PyTorch and defines correct; `cpu` is compiled loops for float32 and float64; `triton` is for
NVIDIA GPUs. Each says itself what it runs (`circuits.kernels.backend`); `auto` picks by device, type and density,
and `chosen_impl` says what it picks. All implementations agree on every choice they make: which entry survives a
tie, what NaN means. Nothing is compiled, and no compiler imported, before an operation needs it.
"""

from circuits.kernels.activations import causal_attention, replace_features, token_major
from circuits.kernels.cpu.memory import keep_pages
from circuits.kernels.dispatch import DENSE_FROM, transformed
from circuits.kernels.products import chosen_impl, sddmm, sparse_linear, spmm, spmm_t, trained_linear
from circuits.kernels.selection import abs_topk, slice_topk_mask, topk_mask, topk_threshold
from circuits.kernels.sparse_weight import SparseWeight
from circuits.kernels.turbo import turbo_attention, turbo_decode

__all__ = [
    "DENSE_FROM",
    "SparseWeight",
    "abs_topk",
    "causal_attention",
    "chosen_impl",
    "keep_pages",
    "replace_features",
    "sddmm",
    "slice_topk_mask",
    "sparse_linear",
    "spmm",
    "spmm_t",
    "token_major",
    "topk_mask",
    "topk_threshold",
    "trained_linear",
    "transformed",
    "turbo_attention",
    "turbo_decode",
]
