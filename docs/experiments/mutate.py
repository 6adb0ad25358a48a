"""Files made hostile: bytes damaged, JSON edited, tensors exchanged; from a seed, the same ones each time."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from circuits.model.stored import KEY, sealed_text
from circuits.reading import CHECKSUM, sealed

NASTY: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 3, 0.5, -0.5, 1e308, 10**7, 2**31, 2**63, 10**18, 10**30, 20_000),
    *(
        "",
        "0",
        "mini",
        "python",
        "\n",
        "x" * 300,
        "0.attn_in.0",
        "99.attn_q.1",
        "0.attn_in.-1",
        "</script>",
        "<script>alert(1)</script><img src=x onerror=alert(1)>",
        "\u0000",
    ),
    *([], {}, [[]], [None], {"": None}, [0] * 50, {"0": {"0": {"0": []}}}),
)
"""What takes the place of a value."""
RAW = (
    "NaN",
    "Infinity",
    "-Infinity",
    "1e999",
    "9" * 5000,
    "[" * 100_000,
    '{"a":' * 5_000,
    "[" * 40 + "]" * 40,
)
"""What JSON text may hold that JSON data does not."""


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Bytes with one kind of damage."""
    if not data:
        return b"\x00"
    i, j = sorted(rng.randrange(len(data)) for _ in range(2))
    kinds: tuple[Callable[[], bytes], ...] = (
        lambda: _flipped(data, rng, 1),
        lambda: _flipped(data, rng, 20),
        lambda: data[:i],
        lambda: data[i:],
        lambda: data[:i] + data[j:],
        lambda: data[:j] + data[i:],
        lambda: data + rng.randbytes(rng.randrange(1, 200)),
        lambda: data[:i] + rng.randbytes(16) + data[i + 16 :],
        lambda: rng.randbytes(8) + data[8:],
        lambda: data[:i] + bytes(j - i) + data[j:],
    )
    return rng.choice(kinds)()


def _flipped(data: bytes, rng: random.Random, n: int) -> bytes:
    changed = bytearray(data)
    for _ in range(n):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def edited(data: Any, rng: random.Random) -> Any:
    """JSON types with one value changed, gone, doubled or moved."""
    if not isinstance(data, dict | list) or not data or rng.random() < 0.05:
        return rng.choice(NASTY)
    copy: Any = dict(data) if isinstance(data, dict) else list(data)
    key = rng.choice(list(copy)) if isinstance(copy, dict) else rng.randrange(len(copy))
    how = rng.random()
    if how < 0.12:
        del copy[key]
    elif how < 0.2 and isinstance(copy, dict):
        copy[f"{key}{rng.choice('x.0 ')}"] = copy.pop(key)
    elif how < 0.2:
        copy.insert(key, copy[rng.randrange(len(copy))])
    elif how < 0.3 and isinstance(copy[key], int | float):
        copy[key] = copy[key] * rng.choice((-1, 0.5, 2, 10, 1000, 10**6))
    else:
        copy[key] = edited(copy[key], rng)
    return copy


def edited_text(text: str, rng: random.Random) -> str:
    """JSON text with what only text can hold: numbers that are none, keys twice, no end of lists."""
    places = [i for i, c in enumerate(text) if c in ":,["]
    if not places:
        return rng.choice(RAW)
    i = rng.choice(places) + 1
    if rng.random() < 0.3:
        return text[: text.index("{") + 1] + '"a": 1, "a": 2, ' + text[text.index("{") + 1 :]
    return text[:i] + rng.choice(RAW) + text[i:] if rng.random() < 0.5 else text[:i] + rng.choice(RAW) + "}"


def hostile_json(path: Path, rng: random.Random) -> bytes:
    """A JSON file made hostile, as often as not with a checksum that is right again."""
    how = rng.random()
    if how < 0.35:
        return damaged(path.read_bytes(), rng)
    data = json.loads(path.read_text())
    if how < 0.45:
        return edited_text(json.dumps(data), rng).encode()
    was_sealed = isinstance(data, dict) and data.pop(CHECKSUM, None) is not None
    for _ in range(rng.randrange(1, 4)):
        data = edited(data, rng)
    if was_sealed and isinstance(data, dict) and rng.random() < 0.9:
        data = sealed(data) if rng.random() < 0.5 else data
    return json.dumps(data).encode()


def hostile_tensors(path: Path, rng: random.Random) -> bytes:
    """A safetensors file made hostile: its bytes, its JSON, or its tensors, mostly with a checksum that fits again."""
    how = rng.random()
    if how < 0.3:
        return damaged(path.read_bytes(), rng)
    with safe_open(path, framework="pt") as file:
        text = file.metadata()[KEY]
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if how < 0.35:
        return bytes(save(tensors, metadata={KEY: edited_text(text, rng)}))
    header = json.loads(text)
    header.pop(CHECKSUM, None)
    for _ in range(rng.randrange(1, 3)):
        if how < 0.7:
            header = edited(header, rng)
        else:
            tensors = exchanged(tensors, rng)
    sealable = isinstance(header, dict) and rng.random() < 0.8
    return bytes(
        save(tensors, metadata={KEY: sealed_text(header, tensors) if sealable else json.dumps(header)})
    )


def exchanged(tensors: dict[str, Tensor], rng: random.Random) -> dict[str, Tensor]:
    """One tensor of another type, shape or content, under another name, or gone."""
    if not tensors:
        return {"stray": torch.ones(1)}
    copy = dict(tensors)
    name = rng.choice([*copy, *(n for n in copy if n.endswith("positions"))])
    value = copy.pop(name)
    kinds: tuple[Callable[[], dict[str, Tensor]], ...] = (
        dict,
        lambda: {name + rng.choice(("x", ".", ".nonzero_values")): value},
        lambda: {name: value.to(rng.choice((torch.float64, torch.int32, torch.int64, torch.float16)))},
        lambda: {name: value.to(torch.float32) > 0},
        lambda: {name: value[..., : value.shape[-1] // 2].contiguous() if value.ndim else value.reshape(1)},
        lambda: {name: value.reshape(-1).contiguous()},
        lambda: {name: value.to(torch.int64).add(rng.choice((-1, 1, 10**6))).to(value.dtype)},
        lambda: {name: value.to(torch.float64).flip(0).to(value.dtype).contiguous() if value.ndim else value},
        lambda: {name: torch.zeros_like(value)},
        lambda: {name: value.new_zeros(0)},
        lambda: {name: torch.full_like(value, torch.nan if value.is_floating_point() else 1)},
        lambda: {name: value, "stray": torch.ones(3)},
    )
    return copy | rng.choice(kinds)()
