"""What every analysis asks of token ids: their shape, and which places are text and which are padding."""

from typing import Any

import torch
from jaxtyping import Bool, Shaped
from torch import Tensor


def check_tokens(tokens: Any) -> None:
    """Raise ValueError for anything but whole numbers of shape [batch, pos]."""
    if not isinstance(tokens, Tensor) or tokens.ndim != 2:
        got = f"shape {tuple(tokens.shape)}" if isinstance(tokens, Tensor) else f"a {type(tokens).__name__}"
        raise ValueError(
            f"tokens: got {got}; expected a tensor of token ids [batch, pos]. Pass a single text as one row: "
            "tokens[None]."
        )
    if tokens.is_floating_point() or tokens.is_complex() or tokens.dtype == torch.bool:
        raise ValueError(f"tokens: got {tokens.dtype}; expected whole numbers, such as torch.int64.")


def check_ids(tokens: Shaped[Tensor, "batch pos"], *, n_ctx: int, d_vocab: int) -> None:
    """Raise ValueError for texts that are too long for a model, or that hold ids which it has no token for."""
    if tokens.shape[1] > n_ctx:
        raise ValueError(
            f"tokens: got a sequence of {tokens.shape[1]} tokens; expected at most n_ctx = {n_ctx}. Shorten it, or "
            "train a model with a larger n_ctx."
        )
    if tokens.numel() and not (int(tokens.min()) >= 0 and int(tokens.max()) < d_vocab):
        raise ValueError(
            f"tokens: got ids from {int(tokens.min())} to {int(tokens.max())}; expected 0 to {d_vocab - 1}. Was the "
            "text encoded with another tokenizer?"
        )


def real_places(tokens: Any, lengths: Any) -> Bool[Tensor, "batch pos"]:
    """True at the text of each row of tokens [batch, pos], False at the padding after it.

    lengths: [batch], tokens of each row that are text; None: all. A causal model's activations at padding are as real
    as any, so a mean over positions has to leave them out. A batch of prompts says how long they are: `Batch.lengths`.
    Raises ValueError for tokens of another shape and for lengths that do not fit them.
    """
    check_tokens(tokens)
    rows, width = tokens.shape
    if lengths is None:
        return torch.ones(rows, width, dtype=torch.bool, device=tokens.device)
    given = torch.as_tensor(lengths, device=tokens.device)
    if tuple(given.shape) != (rows,) or not bool(((given >= 1) & (given <= width)).all()):
        raise ValueError(
            f"lengths: got {given.tolist()} for tokens of shape {(rows, width)}; expected {rows} numbers from 1 to "
            f"{width}, the tokens of each row that are no padding. Of a batch of prompts: batch.lengths."
        )
    return torch.arange(width, device=tokens.device) < given[:, None]


def only(
    real: Bool[Tensor, "batch pos"], value: Shaped[Tensor, "batch pos *rest"]
) -> Shaped[Tensor, "rows places *rest"]:
    """The values at real places, as one row; as they were where every place is real, so that sums keep their bits."""
    return value if bool(real.all()) else value[real][None]


def is_text(given: Any) -> bool:
    """Whether it is a text, or a list of them, rather than token ids."""
    return isinstance(given, str) or (isinstance(given, list) and all(isinstance(one, str) for one in given))
