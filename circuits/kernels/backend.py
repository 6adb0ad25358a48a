"""What a kernel backend says of itself: the operations it runs, on which tensors, and the module that runs them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

_PRODUCTS = ("spmm", "spmm_t", "sddmm")
OPS: dict[str, tuple[str, ...]] = {
    "from_dense": ("from_dense",),
    "spmm": ("spmm",),
    "spmm_t": ("spmm_t",),
    "sddmm": ("sddmm",),
    "sparse_linear": _PRODUCTS,
    "trained_linear": _PRODUCTS,
    "topk_mask": ("topk_mask",),
    "topk_threshold": ("topk_threshold",),
    "slice_topk_mask": ("slice_topk_mask",),
    "abs_topk": ("abs_topk_forward", "abs_topk_backward"),
    "causal_attention": ("causal_attention",),
    "token_major": ("token_major",),
    "replace_features": ("replace_features",),
    "turbo_attention": ("turbo_attention",),
    "turbo_decode": ("turbo_decode",),
}
"""The table of operations: under each public name, the functions that the module of a backend needs to run it.

`circuits.kernels.naive` has them all, and says with them what their arguments are and what is correct.
"""

Requirement = Callable[..., str]
"""Takes the tensors that decide (see `Backend.runs`); returns why they cannot be run, or "" when they can."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Backend:
    """One way to run the operations."""

    name: str
    "What `impl=` calls it."
    module: str
    "Dotted name of the module with the functions of `OPS`. Imported on first use: compilers import slowly."
    runs: Mapping[str, Requirement]
    "Each operation of `OPS` that it has, and what that takes: told the activations, by `replace_features` all three."
    dense_from: float = 0.0
    "Density from which a product with the dense matrix, in plain PyTorch, is faster in float32; 0 to 1."
    dense_from_on_tensor_cores: Mapping[str, float] = field(default_factory=dict)
    "The same where such a product may be less exact and faster: in `tf32`, in `bfloat16`."

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.runs) - set(OPS)):
            raise ValueError(f"runs names {unknown}; expected names of OPS: add the operation there first")
