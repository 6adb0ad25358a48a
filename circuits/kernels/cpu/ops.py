"""Every operation on the CPU: the functions that the dispatcher calls. Importing it imports numba."""

from circuits.kernels.cpu.attention import causal_attention
from circuits.kernels.cpu.layout import token_major
from circuits.kernels.cpu.masking import replace_features
from circuits.kernels.cpu.products import from_dense, sddmm, spmm, spmm_t
from circuits.kernels.cpu.selection import (
    abs_topk_backward,
    abs_topk_forward,
    slice_topk_mask,
    topk_mask,
    topk_threshold,
)
from circuits.kernels.cpu.turbo import turbo_decode

__all__ = [
    "abs_topk_backward",
    "abs_topk_forward",
    "causal_attention",
    "from_dense",
    "replace_features",
    "sddmm",
    "slice_topk_mask",
    "spmm",
    "spmm_t",
    "token_major",
    "topk_mask",
    "topk_threshold",
    "turbo_decode",
]
