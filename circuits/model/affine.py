"""Affine maps, and the three ways in which one holds its matrix: whole, beside its nonzeros, or as nonzeros alone."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from circuits.kernels import SparseWeight, chosen_impl, sparse_linear, trained_linear


class AffineMap(nn.Module):
    """`x @ W + b`, what `Linear` and `Unembed` share: its matrix may run on its nonzeros, or be nothing but them.

    While `sparse_compute` is on, both are held. In a compact map (`circuits.model.compute.compact`) the matrix is no
    parameter: reading it makes it from the nonzeros.
    """

    MATRIX, BIAS = "weight", "bias"
    "Names of the two parameters."
    sparse: SparseWeight | None = None
    "The nonzeros, while the map runs on them; else None."
    on_support: bool = False
    "Whether the gradient to the matrix is taken at the nonzeros only."

    @property
    def is_compact(self) -> bool:
        """Whether only the nonzeros are held."""
        return self.MATRIX not in self._parameters

    @property
    def trains(self) -> bool:
        """Whether the matrix wants a gradient."""
        return not self.is_compact and self._parameters[self.MATRIX].requires_grad  # type: ignore[union-attr]

    def hold_nonzeros(self, sparse: SparseWeight) -> None:
        """Make the map compact: from here on these nonzeros are its matrix."""
        self._parameters.pop(self.MATRIX, None)
        self.sparse = sparse

    def forward(self, x: Float[Tensor, "... d_in"]) -> Float[Tensor, "... d_out"]:
        """A plain affine map. On the nonzeros, activations lie feature-major in memory, whatever their shape says.

        Under autocast the product with nonzeros is in the type that `product_type` says, and so is what comes out.
        """
        bias = getattr(self, self.BIAS)
        if self.sparse is None:
            return F.linear(x, getattr(self, self.MATRIX).T, bias)
        sparse, flat = self.sparse, x.flatten(0, -2).t()
        if torch.is_autocast_enabled(x.device.type):
            kind = product_type(sparse.values)
            sparse, flat, bias = sparse.to(dtype=kind), flat.to(kind), bias.to(kind)
        if self.trains:
            matrix = getattr(self, self.MATRIX).to(sparse.values.dtype)
            y = trained_linear(sparse, flat, matrix, bias, on_support=self.on_support)
        else:
            y = sparse_linear(sparse, flat, bias=bias)
        return y.t().unflatten(0, x.shape[:-1])

    def __getattr__(self, name: str) -> Any:
        if name == self.MATRIX and self.sparse is not None and self.is_compact:
            return self.sparse.to_dense()
        return super().__getattr__(name)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "AffineMap":
        super()._apply(fn, recurse)
        if self.sparse is not None:
            self.sparse = self.sparse.map(fn)
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        """A compact map takes a matrix as its nonzeros."""
        name = prefix + self.MATRIX
        if self.is_compact:
            self._load_nonzeros(state_dict.get(name), name, *rest)
            state_dict = {key: value for key, value in state_dict.items() if key != name}
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def _load_nonzeros(
        self,
        matrix: Tensor | None,
        name: str,
        metadata: Any,
        strict: bool,
        missing: list[str],
        unexpected: list[str],
        errors: list[str],
    ) -> None:
        assert self.sparse is not None
        expected = tuple(self.sparse.shape)
        if matrix is None:
            missing.append(name)
        elif tuple(matrix.shape) != expected:
            errors.append(f"{name}: got shape {tuple(matrix.shape)}; expected {expected}.")
        else:
            self.sparse = SparseWeight.from_dense(matrix.detach().to(self.sparse.values))

    def _save_to_state_dict(self, destination: dict[str, Tensor], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.is_compact:
            destination[prefix + self.MATRIX] = getattr(self, self.MATRIX)


def product_type(values: Float[Tensor, " n_nonzero"]) -> torch.dtype:
    """The type in which a product with nonzeros is computed: theirs, but under autocast autocast's.

    That only where a compiled kernel takes it: on the CPU none takes bfloat16, and float32 is faster than plain PyTorch
    with a dense matrix would be. As elsewhere under autocast, float64 stays.
    """
    device = values.device.type
    if not torch.is_autocast_enabled(device) or values.dtype == torch.float64:
        return values.dtype
    wanted = torch.get_autocast_dtype(device)
    return values.dtype if chosen_impl(values.new_empty(1, dtype=wanted)) == "naive" else wanted
