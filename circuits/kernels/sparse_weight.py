"""A sparse weight matrix: where its nonzeros are, in the two orders the products need, and their values."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Int32
from torch import Tensor

from circuits.kernels.dispatch import implementation


@dataclass(frozen=True, kw_only=True, eq=False)
class SparseWeight:
    """The support of a weight W [d_in, d_out] and its values; y = x @ W.

    `values[p]` belongs to the p-th entry of the support in row-major order, as in `W[mask]`. Index arrays are
    int32: 4 bytes per nonzero for the rows, 8 for the columns, 4 (float32) for the value. The values are
    stored once, and gathered into column order for each forward product: that costs one element per nonzero,
    the product one per nonzero *and token*.
    """

    shape: tuple[int, int]
    """(d_in, d_out)."""
    values: Float[Tensor, " n_nonzero"]
    """The entries on the support, row-major; some may be zero."""
    row_start: Int32[Tensor, " d_in_plus_1"]
    """Row i holds entries row_start[i] to row_start[i + 1]."""
    column: Int32[Tensor, " n_nonzero"]
    """Column of each entry, ascending within a row."""
    column_start: Int32[Tensor, " d_out_plus_1"]
    """The same support by columns: column j holds places column_start[j] to column_start[j + 1]."""
    row: Int32[Tensor, " n_nonzero"]
    """Row of each entry in column order, ascending within a column."""
    order: Int32[Tensor, " n_nonzero"]
    """`values[order]` are the values in column order."""

    def __post_init__(self) -> None:
        """The kernels follow the index arrays wherever they lead, so what comes from outside is checked, once.

        Raises:
            ValueError: arrays of another type, length or device, with gaps, or that are not the two orders of one
                support inside `shape`.
        """
        _check_arrays(self)
        _check_support(self)

    @property
    def n_nonzero(self) -> int:
        """Size of the support."""
        return self.values.numel()

    @property
    def density(self) -> float:
        """Size of the support over size of the matrix; 0 for a matrix without entries."""
        return self.n_nonzero / max(1, self.shape[0] * self.shape[1])

    def rows_of_values(self) -> Int[Tensor, " n_nonzero"]:
        """Row of each entry of `values`."""
        counts = self.row_start.diff()
        return torch.repeat_interleave(counts, output_size=self.n_nonzero)

    def to_dense(self) -> Float[Tensor, "d_in d_out"]:
        """The matrix with its zeros; differentiable with respect to `values`."""
        zeros = self.values.new_zeros(self.shape)
        return zeros.index_put((self.rows_of_values(), self.column.long()), self.values)

    def with_values(self, values: Float[Tensor, " n_nonzero"]) -> "SparseWeight":
        """The same support with other values.

        Raises:
            ValueError: not as many values as the support has entries.
        """
        if values.shape != self.values.shape:
            got, expected = tuple(values.shape), tuple(self.values.shape)
            raise ValueError(
                f"values has shape {got}; expected {expected}, one per nonzero: give one for each"
            )
        return unchecked(**vars(self) | {"values": values})

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> "SparseWeight":
        """On another device, or with values of another type."""
        return self.map(lambda t: t.to(device, dtype if t.is_floating_point() else None))

    def map(self, fn: Callable[[Tensor], Tensor]) -> "SparseWeight":
        """With `fn` applied to the values and to every index array, as `nn.Module.to` does to parameters."""
        mapped: dict[str, Any] = {name: fn(getattr(self, name)) for name in _TENSORS}
        return unchecked(shape=self.shape, **mapped)

    @classmethod
    def from_entries(
        cls,
        rows: Int[Tensor, " n_nonzero"],
        columns: Int[Tensor, " n_nonzero"],
        values: Float[Tensor, " n_nonzero"],
        shape: tuple[int, int],
    ) -> "SparseWeight":
        """From the positions and values of the nonzeros, in any order; never makes a dense copy.

        Raises:
            ValueError: a position outside `shape`, or twice.
        """
        if not len(rows) == len(columns) == len(values):
            got = f"{len(rows)}, {len(columns)} and {len(values)}"
            raise ValueError(f"rows, columns and values have {got} entries; expected as many of each")
        d_in, d_out = shape
        flat = rows.long() * d_out + columns
        inside = (rows >= 0) & (rows < d_in) & (columns >= 0) & (columns < d_out)
        if not inside.all():
            limits = f"0 to {d_in - 1} and 0 to {d_out - 1}"
            raise ValueError(
                f"rows and columns reach outside {shape}; expected {limits}: check which is which"
            )
        by_row = flat.argsort()
        if rows.numel() and (flat[by_row].diff() == 0).any():
            raise ValueError(
                "rows and columns name a position twice; expected each once: add the values up first"
            )
        return from_sorted(rows[by_row], columns[by_row], values[by_row], shape)

    @classmethod
    def from_dense(
        cls,
        w: Float[Tensor, "d_in d_out"],
        mask: Bool[Tensor, "d_in d_out"] | None = None,
        impl: str = "auto",
    ) -> "SparseWeight":
        """From a dense matrix: its nonzeros, or the entries that `mask` marks, zero or not.

        Not differentiable: for gradients to the values use `sparse_linear`. impl: see `chosen_impl`; there is no
        `triton`.

        Raises:
            ValueError: a mask of another shape, or an impl that cannot run it.
        """
        if mask is not None and mask.shape != w.shape:
            got, expected = tuple(mask.shape), tuple(w.shape)
            raise ValueError(
                f"mask has shape {got}; expected {expected}, the shape of w: give one for each entry"
            )
        w = w.detach()
        weight: SparseWeight = implementation("from_dense", impl, w).from_dense(w, mask)
        return weight


_TENSORS = ("values", "row_start", "column", "column_start", "row", "order")


def unchecked(**parts: Any) -> SparseWeight:
    """Of parts that are right by construction: training makes many in each step, and looks at none."""
    weight = object.__new__(SparseWeight)
    for name, part in parts.items():
        object.__setattr__(weight, name, part)
    return weight


def _check_arrays(weight: SparseWeight) -> None:
    (d_in, d_out), n = weight.shape, weight.values.numel()
    lengths = {"row_start": d_in + 1, "column_start": d_out + 1}
    for name in _TENSORS:
        array, length = getattr(weight, name), lengths.get(name, n)
        right = array.dtype.is_floating_point if name == "values" else array.dtype == torch.int32
        if not (
            right
            and array.shape == (length,)
            and array.is_contiguous()
            and array.device == weight.values.device
        ):
            kind = "floating-point numbers" if name == "values" else "torch.int32"
            raise ValueError(
                f"{name}: got {array.dtype} of shape {tuple(array.shape)}, strides {array.stride()} on {array.device} "
                f"for a weight of shape {weight.shape}; expected {length} {kind}, contiguous, on "
                f"{weight.values.device}. Let SparseWeight.from_entries or from_dense make the arrays."
            )


def _check_support(weight: SparseWeight) -> None:
    (_, d_out), n, starts = weight.shape, weight.n_nonzero, weight.row_start
    rising = int(starts[0]) == 0 and int(starts[-1]) == n and bool((starts.diff() >= 0).all())
    inside = bool(((weight.column >= 0) & (weight.column < d_out)).all())
    if not rising or not inside:
        name, expected = (
            ("column", f"numbers from 0 to {d_out - 1}")
            if rising
            else ("row_start", f"numbers that rise from 0 to {n}, the number of values")
        )
        raise ValueError(
            f"{name}: got {_shown(getattr(weight, name))} for a weight of shape {weight.shape}; expected {expected}. "
            "Let SparseWeight.from_entries or from_dense make the arrays."
        )
    rows, columns = weight.rows_of_values(), weight.column.long()
    if n > 1 and not bool(((rows * d_out + columns).diff() > 0).all()):
        raise ValueError(
            f"column: got {_shown(weight.column)}; expected columns that ascend within each row, each once. Sort the "
            "entries, or let SparseWeight.from_entries do it."
        )
    by_column = from_sorted(rows, columns, weight.values, weight.shape)
    for name in ("column_start", "row", "order"):
        if not torch.equal(getattr(weight, name), getattr(by_column, name)):
            raise ValueError(
                f"{name}: got {_shown(getattr(weight, name))}; expected {_shown(getattr(by_column, name))}, the order "
                "by columns of what row_start and column say. Let SparseWeight.from_entries make both."
            )


def _shown(array: Tensor) -> str:
    few = array[:6].tolist()
    return f"{few}" if len(array) <= 6 else f"{few}".replace("]", ", ...]")


def _starts(of: Tensor, n: int) -> Tensor:
    """Where each of n groups begins, given the group of every entry."""
    counts = torch.bincount(of, minlength=n)
    return torch.nn.functional.pad(counts.cumsum(0), (1, 0)).int()


def from_sorted(rows: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, int]) -> SparseWeight:
    """From entries in row-major order, each position once; not checked."""
    order = columns.long().argsort(stable=True)
    return unchecked(
        shape=shape,
        values=values,
        row_start=_starts(rows.long(), shape[0]),
        column=columns.int(),
        column_start=_starts(columns.long(), shape[1]),
        row=rows[order].int(),
        order=order.int(),
    )
