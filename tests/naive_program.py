"""What the explorer's program says, carried out in Python loops: the page's own script is held against it in a browser.

It reads nothing but the JSON object that the page gets.
"""

import base64
import math
import struct
from functools import cache
from typing import Any

ACTIVATIONS = {"gelu": lambda x: 0.5 * x * (1 + math.erf(x / math.sqrt(2))), "relu": lambda x: max(x, 0.0)}


@cache
def numbers(text: str) -> tuple[float, ...]:
    """Little-endian float32 out of base64."""
    raw = base64.b64decode(text)
    return struct.unpack(f"<{len(raw) // 4}f", raw)


def answer_logits(p: dict[str, Any], tokens: list[int]) -> list[float]:
    """Logits of the program's answers after these tokens."""
    d, n_answers = p["d_model"], len(p["answers"])
    embed, place = numbers(p["embed"]), numbers(p["place"])
    x = [[embed[t * d + i] + place[at * d + i] for i in range(d)] for at, t in enumerate(tokens)]
    for layer in range(p["n_layers"]):
        z = _attended(p, layer, _held(p, f"{layer}.attn_in", [_normed(p, row) for row in x]))
        x = _added(x, _held(p, f"{layer}.attn_out", _affine(p, f"{layer}.attn_out", z)))
        read = _held(p, f"{layer}.mlp_in", [_normed(p, row) for row in x])
        fired = [[ACTIVATIONS[p["act"]](y) for y in r] for r in _affine(p, f"{layer}.mlp_neuron", read)]
        out = _affine(p, f"{layer}.mlp_out", _held(p, f"{layer}.mlp_neuron", fired))
        x = _added(x, _held(p, f"{layer}.mlp_out", out))
    last, unembed, offset = _normed(p, x[-1]), numbers(p["unembed"]), numbers(p["offset"])
    bigram: tuple[float, ...] = (0.0,) * n_answers
    if p["bigram"] is not None:
        bigram = numbers(p["bigram"])[tokens[-1] * n_answers : (tokens[-1] + 1) * n_answers]
    return [
        offset[a] + bigram[a] + sum(last[i] * unembed[i * n_answers + a] for i in range(d))
        for a in range(n_answers)
    ]


def _normed(p: dict[str, Any], row: list[float]) -> list[float]:
    size = math.sqrt(sum(y * y for y in row) / len(row) + p["norm_eps"])
    return [y / size for y in row]


def _added(x: list[list[float]], more: list[list[float]]) -> list[list[float]]:
    return [[a + b for a, b in zip(*rows, strict=True)] for rows in zip(x, more, strict=True)]


def _held(p: dict[str, Any], name: str, rows: list[list[float]]) -> list[list[float]]:
    """The k largest magnitudes, then everything but the nodes at its value."""
    site = p["sites"][name]
    values, out = numbers(site["values"]), []
    for row in rows:
        if site["k"] is not None:
            keep = sorted(range(len(row)), key=lambda i: -abs(row[i]))[: site["k"]]
            row = [y if i in keep else 0.0 for i, y in enumerate(row)]
        out.append([y if i in site["nodes"] else values[i] for i, y in enumerate(row)])
    return out


def _affine(p: dict[str, Any], name: str, rows: list[list[float]]) -> list[list[float]]:
    site, out = p["sites"][name], []
    for row in rows:
        made = list(numbers(site["rest"]))
        for source, target, weight in site["edges"]:
            made[target] += weight * row[source]
        out.append(made)
    return out


def _attended(p: dict[str, Any], layer: int, read: list[list[float]]) -> list[list[float]]:
    names = [f"{layer}.attn_{c}" for c in "qkv"]
    q, k, v = (_held(p, name, _affine(p, name, read)) for name in names)
    d = p["d_head"]
    out = [[0.0] * len(row) for row in v]
    for h in range(p["n_heads"]):
        own = range(h * d, (h + 1) * d)
        for i, query in enumerate(q):
            weights = [math.exp(sum(query[c] * k[j][c] for c in own) / math.sqrt(d)) for j in range(i + 1)]
            total = sum(weights) + (0.0 if p["sink"] is None else math.exp(p["sink"][layer][h]))
            for c in own:
                out[i][c] = sum(w / total * v[j][c] for j, w in enumerate(weights))
    return out
