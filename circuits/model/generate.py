"""How a decoder goes on with a text: greedily or at random, on remembered keys and values.

Each step runs the model's own layers, hooks included, on the new token alone. `kv_cache="fp32"` remembers keys and
values as they are, "turbo" packed in 4 and 2 bits; None remembers nothing and runs the whole text at each step.
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.model.mixers.past import Past, TurboPast
from circuits.model.mixers.turbo import TurboConfig


def generate(
    model: Any,
    tokens: Int[Tensor, "batch pos"],
    n_new: int,
    *,
    kv_cache: str | None = "fp32",
    temperature: float = 0.0,
    top_k: int | None = None,
    stop: Collection[int] = (),
    seed: int = 0,
    turbo: TurboConfig | None = None,
) -> list[list[int]]:
    """What comes after each text [batch, pos], all of one length: up to `n_new` tokens, the stop token included.

    model: a SparseTransformer with one stack. kv_cache: "fp32", "turbo" or None. temperature: 0 takes the likeliest
    token; above, one is drawn from
    `softmax(logits / temperature)`, of the `top_k` likeliest where given. stop: a text ends with the first of these.
    turbo: how a "turbo" cache stores and computes. The same seed draws the same tokens. Raises ValueError for an
    encoder-decoder, texts that would grow longer than n_ctx, or settings out of range.
    """
    _check(model, tokens, n_new, kv_cache, temperature, top_k, stop)
    past = _past(kv_cache, turbo)
    generator = torch.Generator().manual_seed(seed)
    rows: list[list[int]] = [[] for _ in tokens]
    with torch.inference_mode(False), torch.no_grad(), model.turn:
        text = tokens.clone()  # a tensor of inference mode would stay one
        for _ in range(n_new):
            logits = next_logits(model, text, past)
            new = _choose(logits.float().cpu(), temperature, top_k, generator)
            for row, token in zip(rows, new.tolist(), strict=True):
                if not (row and row[-1] in stop):
                    row.append(token)
            if all(row[-1] in stop for row in rows):
                break
            text = torch.cat([text, new[:, None].to(text)], dim=1)
    return rows


def next_logits(
    model: Any, text: Int[Tensor, "batch pos"], past: Past | None
) -> Float[Tensor, "batch d_vocab"]:
    """Logits after a text. With a past, of which the text holds at least one token more, only the new ones are run."""
    known = 0 if past is None else past.n_tokens
    with remembering(model, past):
        logits: Tensor = model.decode(text[:, known:], first=known)
    if past is not None:
        past.n_tokens = text.shape[1]
    return logits[:, -1]


@contextmanager
def remembering(model: Any, past: Past | None) -> Iterator[None]:
    """Inside, attention layers go on from what they remember, and remember what they see."""
    before = model.given.past
    try:
        model.given.past = past
        yield
    finally:
        model.given.past = before


def _past(kv_cache: str | None, turbo: TurboConfig | None) -> Past | None:
    if kv_cache is None:
        return None
    return Past() if kv_cache == "fp32" else TurboPast(turbo or TurboConfig())


def _choose(
    logits: Float[Tensor, "batch d_vocab"], temperature: float, top_k: int | None, generator: torch.Generator
) -> Int[Tensor, " batch"]:
    if temperature == 0:
        return logits.argmax(-1)
    if top_k is not None:
        least = logits.topk(min(top_k, logits.shape[-1])).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    return torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)[:, 0]


def _check(
    model: Any,
    tokens: Tensor,
    n_new: int,
    kv_cache: Any,
    temperature: float,
    top_k: int | None,
    stop: Collection[int],
) -> None:
    if model.encoder is not None:
        raise ValueError(
            "model: it has arch='encdec'; expected 'decoder'. What an encoder-decoder says to a source: "
            "circuits.model.translate."
        )
    model.check_tokens(tokens)
    if tokens.numel() == 0:
        raise ValueError(
            f"tokens: got shape {tuple(tokens.shape)}; expected at least one text of at least one token."
        )
    room = model.config.n_ctx - tokens.shape[1]
    if not 1 <= n_new <= room:
        raise ValueError(
            f"n_new: got {n_new}; expected 1 to {room}, what n_ctx leaves after {tokens.shape[1]} tokens."
        )
    if kv_cache not in ("fp32", "turbo", None):
        raise ValueError(f"kv_cache: got {kv_cache!r}; expected 'fp32', 'turbo' or None.")
    if not 0 <= temperature < torch.inf:
        raise ValueError(f"temperature: got {temperature}; expected a finite number of at least 0.")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k: got {top_k}; expected at least 1, or None.")
    wrong = [token for token in stop if not 0 <= token < model.d_vocab]
    if wrong:
        raise ValueError(f"stop: got {wrong}; expected tokens from 0 to {model.d_vocab - 1}.")
    if kv_cache == "turbo" and model.given.turbo is not None:
        raise ValueError(
            "kv_cache: got 'turbo' inside approximated(); expected 'fp32' or None there. A turbo cache says itself how "
            "to compute: pass turbo=."
        )
