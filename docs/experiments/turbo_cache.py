"""Answers read from a packed cache: accuracy against bytes, for every model of the zoo.

Half of a prompt is read at once, the rest token by token. Part of `python -m docs.experiments.turbo run`.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import product
from typing import Any

import torch

from circuits.model.generate import next_logits
from circuits.model.mixers.past import Past, TurboPast, begun
from circuits.model.mixers.turbo import TurboConfig
from circuits.model.transformer import SparseTransformer
from circuits.zoo import load
from tasks import Task
from tasks.base import Targets
from tasks.brackets import Brackets
from tasks.quotes import Quotes

N_DRAWN, N_LENGTHS = 2048, 8
"""Pairs that are drawn, and lengths of prompts, the commonest, that are read: each is read as one batch."""
SOLVED = 0.9
"""Exact accuracy from which on a model has a task to lose."""
TILES = {"mini-python": (8, 16, 64), "mini-python-long": (32, 64)}
"""Tokens of a tile, by the models' windows (40 and 96 tokens): those that prompts fill, and the default."""
SHARES = (0.0, 0.25, 0.375, 0.5)
"""Heads in 2 bits."""
LONG = (1, 4096, 8, 64)
"""Batch, tokens, heads and channels on which bytes are counted."""
TASKS: Mapping[str, tuple[Task, ...]] = {
    "mini-python": (Quotes(), Brackets()),
    "mini-python-long": (Quotes(context_lines=3), Brackets(length=16)),
}
"""Prompts of up to 26 tokens, and of up to 63."""


def cached_answers(n_drawn: int = N_DRAWN) -> dict[str, Any]:
    """`models`: exact accuracy, and the ratio at each setting. `curve`: bytes and the worst ratio, by setting."""
    models = {name: _of_task(model, task, window, n_drawn) for name, model, task, window in _cases()}
    settings = {_name(config): config for window in TILES for config in _settings(window)}
    curve = {}
    for name, config in settings.items():
        ratios = [own["ratios"][name] for own in models.values() if name in own["ratios"]]
        curve[name] = {"kv_ratio": kv_ratio(config), "accuracy_ratio": min(ratios), "n_cases": len(ratios)}
    return {"models": models, "curve": curve, "default": _name(TurboConfig())}


def kv_ratio(config: TurboConfig) -> float:
    """How many times smaller than fp16 a long cache is, all buffers counted."""
    k, v = torch.randn(2, *LONG, generator=torch.Generator().manual_seed(0))
    return 2 * (k.numel() + v.numel()) / begun(k, v, config).n_bytes


def accuracy(model: SparseTransformer, targets: Targets, cache: Callable[[], Past]) -> float:
    """Share of prompts answered rightly, the first half of each read at once and the rest token by token."""
    right = 0
    for position in targets.position.unique().tolist():
        rows = (targets.position == position).nonzero()[:, 0]
        text, past = targets.tokens[rows, : position + 1], cache()
        for n in range((position + 2) // 2, position + 2):
            logits = next_logits(model, text[:, :n], past)
        here = torch.arange(len(rows))
        right += int((logits[here, targets.answer[rows]] > logits[here, targets.foil[rows]]).sum())
    return right / len(targets.tokens)


def _settings(window: str) -> Iterator[TurboConfig]:
    for tile, share in product(TILES[window], SHARES):
        yield TurboConfig(tile=tile, low_share=share)


def _name(config: TurboConfig) -> str:
    return f"tile {config.tile}, {config.low_share:g} of heads in 2 bits"


def _cases() -> Iterator[tuple[str, SparseTransformer, Task, str]]:
    for window, tasks in TASKS.items():
        pair: Any = load(f"{window}-sparse").bridges
        models: dict[str, Any] = {"bridge, dense": pair.dense, "bridge, sparse": pair.sparse}
        if window == "mini-python":
            models["the model"] = load(window).model
        for (whose, model), task in product(models.items(), tasks):
            yield f"{window}, {whose}: {task.name}", model.eval(), task, window


def _of_task(model: SparseTransformer, task: Task, window: str, n_drawn: int) -> dict[str, Any]:
    targets = _commonest(task.batch(n_drawn, split="test", seed=0).tokens_and_targets())
    longest = int(targets.position.max()) + 1
    with torch.no_grad():
        exact = accuracy(model, targets, Past)
        found: dict[tuple[int, float], float] = {}
        for config in _settings(window) if exact >= SOLVED else ():
            if _key(config, longest) not in found:
                right = accuracy(model, targets, partial(TurboPast, config))
                found[_key(config, longest)] = right / exact
    ratios = {_name(c): found[_key(c, longest)] for c in _settings(window)} if found else {}
    return {"exact": exact, "n_prompts": len(targets.tokens), "longest": longest, "ratios": ratios}


def _key(config: TurboConfig, longest: int) -> tuple[int, float]:
    """Where no tile is ever full nothing is packed, whatever the bits."""
    return config.tile, config.low_share if longest >= config.tile else 0.0


def _commonest(targets: Targets) -> Targets:
    lengths, counts = targets.position.unique(return_counts=True)
    rows = torch.isin(targets.position, lengths[counts.argsort(descending=True)[:N_LENGTHS]])
    return Targets(*(part[rows] for part in targets))
