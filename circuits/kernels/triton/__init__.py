"""The backend for NVIDIA GPUs, in Triton. This file says what it runs; `ops` holds the operations.

Importing `ops` needs triton, not a GPU. With `TRITON_INTERPRET=1` in the environment the kernels run on the CPU,
slowly: that is how they are tested without a GPU.
"""

import importlib.util
import os

import torch
from torch import Tensor

from circuits.kernels.backend import Backend


def interpreted() -> bool:
    """Whether the kernels run under triton's interpreter, on the CPU."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def _floats(x: Tensor) -> str:
    if not (x.is_cuda or interpreted()) or x.dtype not in (torch.float32, torch.bfloat16):
        return "takes float32 or bfloat16 on a CUDA device"
    if importlib.util.find_spec("triton") is None:
        return "needs the package triton, which is not installed"
    return ""


TRITON = Backend(
    name="triton",
    module="circuits.kernels.triton.ops",
    # Measured on an H200 at widths from 512 to 4,096, forward and both backward products together: docs/benchmarks.md.
    dense_from=0.07,
    dense_from_on_tensor_cores={"tf32": 0.011, "bfloat16": 0.002},
    runs={
        "spmm": _floats,
        "spmm_t": _floats,
        "sddmm": _floats,
        "sparse_linear": _floats,
        "trained_linear": _floats,
        "topk_mask": _floats,
        "topk_threshold": _floats,
        "slice_topk_mask": _floats,
        "abs_topk": _floats,
        "turbo_attention": _floats,
        "turbo_decode": _floats,
    },
)
"""What it runs: products, selections, and attention in few bits."""
