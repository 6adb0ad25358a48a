"""What every analysis asks of token ids: their shape, and which places are text and which are padding."""

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor


def check_tokens(tokens: Tensor) -> None:
    """Raise ValueError for anything but whole numbers of shape [batch, pos]."""
    shape = tuple(tokens.shape) if isinstance(tokens, Tensor) else type(tokens).__name__
    if not isinstance(tokens, Tensor) or tokens.ndim != 2:
        raise ValueError(
            f"tokens: got {shape}; expected a tensor of token ids [batch, pos]. Pass a single text as one row: "
            "tokens[None]."
        )
    if tokens.is_floating_point() or tokens.is_complex() or tokens.dtype == torch.bool:
        raise ValueError(f"tokens: got {tokens.dtype}; expected whole numbers, such as torch.int64.")


def real_places(
    tokens: Int[Tensor, "batch pos"], lengths: Int[Tensor, " batch"] | None
) -> Bool[Tensor, "batch pos"]:
    """True at the text of each row, False at the padding after it; lengths: tokens of each row; None: all.

    A causal model's activations at padding are as real as any, so a mean over positions has to leave them out. A
    batch of prompts says how long they are: `Batch.lengths`. Raises ValueError for lengths that do not fit the tokens.
    """
    check_tokens(tokens)
    rows, width = tokens.shape
    if lengths is None:
        return torch.ones(rows, width, dtype=torch.bool, device=tokens.device)
    if tuple(lengths.shape) != (rows,) or not bool(((lengths >= 1) & (lengths <= width)).all()):
        raise ValueError(
            f"lengths: got {lengths.tolist()} for tokens of shape {(rows, width)}; expected {rows} numbers from 1 to "
            f"{width}, the tokens of each row that are no padding. Of a batch of prompts: batch.lengths."
        )
    return torch.arange(width, device=tokens.device) < lengths.to(tokens.device)[:, None]


def only(
    real: Bool[Tensor, "batch pos"], value: Shaped[Tensor, "batch pos *rest"]
) -> Shaped[Tensor, "rows places *rest"]:
    """The values at real places, as one row; as they were where every place is real, so that sums keep their bits."""
    return value if bool(real.all()) else value[real][None]
