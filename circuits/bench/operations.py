"""The operations that are timed: what is called, what it is checked against, and the bytes it must move."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from circuits import kernels
from circuits.kernels import SparseWeight
from circuits.training.projection import budget

NAMES = ("spmm_forward", "spmm_backward", "sddmm", "abs_topk", "project_topk")
"""The operations that are timed, by name."""
EXPANSION = 4
"""Matrices are [d_model, 4 d_model], as in an MLP."""
PRODUCT_TOLERANCE = 1e-5
"""Largest difference from naive in float64, over the largest output: float32 sums in another order."""

Run = Callable[[], Tensor]


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One operation on fixed inputs, done in three ways."""

    name: str
    "One of `NAMES`."
    d_model: int
    density: float
    "Of the weight; for `abs_topk` of the activations."
    n_bytes: int
    "Each input read once and each output written once, indices included."
    fast: Run
    "What is measured."
    naive: Run
    "`impl='naive'`: the definition of correct."
    plain: Run
    "What one would write in PyTorch: a dense product with the matrix at hand, or torch.topk."
    reference: Run
    "The correct result, in float64 where rounding counts."
    tolerance: float
    "Largest difference from the reference, over the reference's largest magnitude; 0: equal."
    prepare: Callable[[], object] = lambda: None
    "Called before every run, outside the clock: restores what a run overwrites."


def operation(
    name: str, d_model: int, density: float, *, tokens: int = 2048, impl: str = "auto", seed: int = 0
) -> Operation:
    """Random inputs for one operation, in float32 on the CPU; products are [d_model, 4 d_model] by tokens.

    Raises:
        ValueError: the name is unknown.

    Examples:
        >>> circuits.bench.operation("project_topk", 16, 0.1, tokens=8).name
        'project_topk'
    """
    if name not in NAMES:
        raise ValueError(f"name: got {name!r}; expected one of {NAMES}.")
    generator = torch.Generator().manual_seed(seed)
    if name == "abs_topk":
        return _abs_topk(torch.randn(tokens, d_model, generator=generator), density, impl)
    w = torch.randn(d_model, EXPANSION * d_model, generator=generator)
    if name == "project_topk":
        return _project_topk(w, density, impl)
    return _product(name, w, density, tokens, impl, generator)


def _product(
    name: str, w: Tensor, density: float, tokens: int, impl: str, generator: torch.Generator
) -> Operation:
    weight = _at_density(w, density, generator)
    dense = weight.to_dense()
    x = torch.randn(w.shape[0], tokens, generator=generator)
    dy = torch.randn(w.shape[1], tokens, generator=generator)
    calls: dict[str, tuple[Callable[[str], Run], Run]] = {
        "spmm_forward": (
            lambda i: lambda: kernels.spmm(_like(weight, i), _as(x, i), impl=_impl(i)),
            lambda: dense.t() @ x,
        ),
        "spmm_backward": (
            lambda i: lambda: kernels.spmm_t(_like(weight, i), _as(dy, i), impl=_impl(i)),
            lambda: dense @ dy,
        ),
        "sddmm": (
            lambda i: lambda: kernels.sddmm(_like(weight, i), _as(x, i), _as(dy, i), impl=_impl(i)),
            lambda: x @ dy.t(),
        ),
    }
    ways, plain = calls[name]
    return Operation(
        name=name,
        d_model=w.shape[0],
        density=density,
        n_bytes=_product_bytes(name, weight, tokens),
        fast=ways(impl),
        naive=ways("naive"),
        plain=plain,
        reference=ways("float64"),
        tolerance=PRODUCT_TOLERANCE,
    )


def _impl(way: str) -> str:
    return "naive" if way == "float64" else way


def _as(x: Tensor, way: str) -> Tensor:
    return x.double() if way == "float64" else x


def _like(weight: SparseWeight, way: str) -> SparseWeight:
    return weight.to(dtype=torch.float64) if way == "float64" else weight


def _product_bytes(name: str, weight: SparseWeight, tokens: int) -> int:
    """Activations on both sides once; 8 bytes a nonzero (value, index), 4 more for the forward order."""
    d_in, d_out = weight.shape
    per_nonzero = 12 if name == "spmm_forward" else 8
    return 4 * tokens * (d_in + d_out) + per_nonzero * weight.n_nonzero


def _abs_topk(x: Tensor, density: float, impl: str) -> Operation:
    k = budget(x.shape[1], density)

    def plain() -> Tensor:
        places = x.abs().topk(k, dim=-1).indices
        return torch.zeros_like(x).scatter_(-1, places, x.gather(-1, places))

    def naive() -> Tensor:
        return kernels.abs_topk(x, k, impl="naive")

    return Operation(
        name="abs_topk",
        d_model=x.shape[1],
        density=density,
        n_bytes=2 * x.nbytes,
        fast=lambda: kernels.abs_topk(x, k, impl=impl),
        naive=naive,
        plain=plain,
        reference=naive,
        tolerance=0.0,
    )


def _project_topk(w: Tensor, density: float, impl: str) -> Operation:
    k, changed = budget(w.numel(), density), w.clone()

    def project(by: str) -> Run:
        return lambda: changed.masked_fill_(~kernels.topk_mask(changed, k, impl=by), 0.0)

    def plain() -> Tensor:
        mask = torch.zeros(w.numel(), dtype=torch.bool)
        mask[changed.flatten().abs().topk(k).indices] = True
        return changed.masked_fill_(~mask.view(w.shape), 0.0)

    return Operation(
        name="project_topk",
        d_model=w.shape[0],
        density=density,
        n_bytes=2 * w.nbytes,
        fast=project(impl),
        naive=project("naive"),
        plain=plain,
        reference=project("naive"),
        tolerance=0.0,
        prepare=lambda: changed.copy_(w),
    )


def _at_density(w: Float[Tensor, "d_in d_out"], density: float, generator: torch.Generator) -> SparseWeight:
    """Exactly `budget` entries of w, at random places."""
    mask = torch.zeros(w.numel(), dtype=torch.bool)
    mask[torch.randperm(w.numel(), generator=generator)[: budget(w.numel(), density)]] = True
    return SparseWeight.from_dense(w, mask.view(w.shape))
