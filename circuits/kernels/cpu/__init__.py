"""The CPU backend: compiled loops on torch's own threads. This file says what it runs; `ops` holds the operations."""

import torch
from torch import Tensor

from circuits.kernels.backend import Backend


def _floats(x: Tensor) -> str:
    fits = x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)
    return "" if fits else "takes float32 or float64 on the CPU"


def _some_floats(x: Tensor) -> str:
    return _floats(x) or ("" if x.numel() else "takes at least one entry")


def _singles(x: Tensor) -> str:
    return "" if x.device.type == "cpu" and x.dtype == torch.float32 else "takes float32 on the CPU"


def _feature_major(x: Tensor, mask: Tensor | None = None, value: Tensor | None = None) -> str:
    if misfit := _some_floats(x):
        return misfit
    if mask is not None and (mask.dtype != x.dtype or mask.device != x.device):
        return "takes a mask of the type of x, on the CPU"
    if value is not None and value.device != x.device:
        return "takes a value on the CPU"
    if value is not None and value.requires_grad:
        return "passes no gradient on to the value"
    laid = x.flatten(2).flatten(0, 1).t().is_contiguous()
    return "" if laid else "takes activations that lie feature-major"


CPU = Backend(
    name="cpu",
    module="circuits.kernels.cpu.ops",
    # Measured, forward and transpose together, 2,048 tokens, one core: dense over sparse time is 2.6 to 3.2 at density
    # 1/8, 1.4 to 2.3 at 1/4, 1.0 to 1.2 at 0.35, 0.7 to 1.0 at 1/2, at widths 128 to 1024.
    dense_from=0.35,
    runs={
        "from_dense": _floats,
        "spmm": _floats,
        "spmm_t": _floats,
        "sddmm": _floats,
        "sparse_linear": _floats,
        "trained_linear": _floats,
        "topk_mask": _floats,
        "topk_threshold": _floats,
        "slice_topk_mask": _floats,
        "abs_topk": _floats,
        "causal_attention": _some_floats,
        "token_major": _some_floats,
        "replace_features": _feature_major,
        "turbo_decode": _singles,
    },
)
"""What it runs: all but attention of whole texts in few bits."""
