"""Products with a sparse weight on the CPU, and its nonzeros found, on the compiled loops of `csr`."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuits.kernels.cpu import csr
from circuits.kernels.cpu.layout import contiguous
from circuits.kernels.cpu.memory import empty
from circuits.kernels.cpu.team import run
from circuits.kernels.sparse_weight import SparseWeight, unchecked

SEARCHED = 65_536  # entries of a dense matrix in one chunk of work


def _product(
    start: Tensor, index: Tensor, values: Tensor, x: Tensor, bias: Tensor | None, out: Tensor | None
) -> Tensor:
    """A x + bias, with A in compressed rows, into `out` or fresh memory."""
    rows, (inner, tokens) = start.numel() - 1, x.shape
    x = contiguous(x)
    fits = out is not None and out.is_contiguous()
    y = out if out is not None and fits else empty(torch.Size((rows, tokens)), x.dtype)
    step = max(1, csr.OUTPUTS // max(1, min(tokens, csr.TOKENS)))
    n_chunks = -(-tokens // csr.TOKENS) * -(-rows // step)
    shift = values if bias is None else bias.contiguous()
    arrays = (start, index, values, x, shift, y)
    sizes = (rows, inner, tokens, step, int(bias is not None))
    run(csr.product_task(x.element_size()), n_chunks, *(a.data_ptr() for a in arrays), *sizes)
    return y if out is None or fits else out.copy_(y)


def spmm(
    weight: SparseWeight,
    x: Float[Tensor, "d_in tokens"],
    bias: Float[Tensor, " d_out"] | None = None,
    out: Float[Tensor, "d_out tokens"] | None = None,
) -> Float[Tensor, "d_out tokens"]:
    """W^T x + bias; see `circuits.kernels.spmm`."""
    values = weight.values.detach()[weight.order]
    return _product(weight.column_start, weight.row, values, x, bias, out)


def spmm_t(
    weight: SparseWeight, dy: Float[Tensor, "d_out tokens"], out: Float[Tensor, "d_in tokens"] | None = None
) -> Float[Tensor, "d_in tokens"]:
    """W dy; see `circuits.kernels.spmm_t`."""
    values = weight.values.detach().contiguous()
    return _product(weight.row_start, weight.column, values, dy, None, out)


def sddmm(
    weight: SparseWeight, x: Float[Tensor, "d_in tokens"], dy: Float[Tensor, "d_out tokens"]
) -> Float[Tensor, " n_nonzero"]:
    """x dy^T on the support; see `circuits.kernels.sddmm`."""
    by_rows = (weight.row_start, weight.column, contiguous(x), contiguous(dy))
    if weight.shape[0] >= weight.shape[1]:
        return _sampled(*by_rows)
    # The activations on the narrow side are read in no order: better the few that fit into a cache.
    out = torch.empty(weight.n_nonzero, dtype=x.dtype)
    out[weight.order] = _sampled(weight.column_start, weight.row, by_rows[3], by_rows[2])
    return out


def _sampled(start: Tensor, index: Tensor, x: Tensor, dy: Tensor) -> Tensor:
    """x[i] . dy[j] for each (i, j) of a support in compressed rows."""
    n_nonzero = index.numel()
    out = torch.empty(n_nonzero, dtype=x.dtype)
    (rows, tokens), columns = x.shape, dy.shape[0]
    # Rows enough for a few thousand products of a run each: small beside the whole, large beside claiming a chunk.
    step = max(1, csr.SAMPLES * rows // max(1, n_nonzero))
    work = csr.sampled_task(x.element_size())
    addresses = (a.data_ptr() for a in (start, index, x, dy, out))
    run(work, -(-rows // step), *addresses, rows, columns, tokens, step)
    return out


def from_dense(
    w: Float[Tensor, "d_in d_out"], mask: Bool[Tensor, "d_in d_out"] | None = None
) -> SparseWeight:
    """The nonzeros of a dense matrix, or the entries that `mask` marks; see `SparseWeight.from_dense`."""
    w = w.contiguous()
    support = w if mask is None else mask.contiguous()
    (rows, columns), masked = w.shape, mask is not None
    step = max(1, SEARCHED // max(1, columns))
    n_chunks, size = -(-rows // step), w.element_size()
    row_start = torch.zeros(rows + 1, dtype=torch.int32)
    addresses = (support.data_ptr(), row_start[1:].data_ptr())
    run(csr.count_task(size, masked), n_chunks, *addresses, rows, columns, step)
    torch.cumsum(row_start, 0, out=row_start)
    n_nonzero = int(row_start[-1])
    column, values = torch.empty(n_nonzero, dtype=torch.int32), torch.empty(n_nonzero, dtype=w.dtype)
    arrays = (support, w, row_start, column, values)
    run(csr.fill_task(size, masked), n_chunks, *(a.data_ptr() for a in arrays), rows, columns, step)
    column_start = torch.zeros(columns + 1, dtype=torch.int32)
    column_start[1:] = torch.bincount(column, minlength=columns).cumsum(0)
    row, order = torch.empty_like(column), torch.empty_like(column)
    csr.transpose_order()(*(a.numpy() for a in (row_start, column, column_start, row, order)))
    return unchecked(
        shape=(rows, columns),
        values=values,
        row_start=row_start,
        column=column,
        column_start=column_start,
        row=row,
        order=order,
    )
