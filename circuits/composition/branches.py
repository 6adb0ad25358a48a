"""Gates on compositions of heads: the model under masks of them, and the fewest that a task needs.

A gate stands for a branch of a stage (`pre` or `post` softmax; static, mix or gate; query or key side), or for one
edge from head to head. What closes is replaced by zero, so that with all of one level closed the heads are plain.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.circuit.score import Score, check_task, margins, score_margins, two_way_loss
from circuits.model.compute import check_learnable, with_gradients
from circuits.model.kinds import of_ours
from circuits.model.mixers import Compose
from circuits.model.transformer import SparseTransformer
from circuits.pruning.learn import GateLearner, GateSettings, rising
from circuits.settings import Amount, Count, Positive, Seed, Settings
from tasks import Task
from tasks.base import Targets

Level = Literal["branch", "edge", "both"]
Entry = tuple[str, tuple[int, ...]]
"""A hook, and the place of one gate in its mask."""


@dataclass(frozen=True, kw_only=True)
class ComposePruneConfig(Settings):
    """Everything that decides which compositions are kept."""

    level: Literal["branch", "edge"] = "branch"
    "Gates on whole branches of a stage, or on every edge from head to head."
    tolerance: Positive = 0.05
    "Nats of two-way task loss, on validation prompts, that may be lost against the whole model."
    steps: Count = 100
    "Steps of gate training."
    batch_size: Count = 32
    "Prompt pairs per step."
    lr: Positive = 3e-2
    "Peak learning rate of the gates; falls linearly to 0."
    penalty: Amount = 3e-3
    "Nats that one open gate is worth; rises from 0 over the first half."
    n_eval: Count = 256
    "Validation prompt pairs that decide what is dropped, and test prompt pairs that the result is measured on."
    seed: Seed = 0
    "Decides gates and prompts."


@dataclass(frozen=True, kw_only=True)
class ComposeCircuit:
    """The compositions that a task needs in a model; dropping any one more exceeds the tolerance."""

    masks: Mapping[str, Tensor]
    "By hook, as `run_composed` takes them; 1 = keep."
    n_gates: int
    "Gates that there were."
    score: Score
    "On test prompts with the kept compositions."
    full: Score
    "With all of them."
    plain: Score
    "With none: plain attention, the other weights as they are."

    @property
    def kept(self) -> tuple[str, ...]:
        """Names of open gates, such as `0.pre.query.mix`, or `0.pre.query.map 2 -> 3` for an edge."""
        return tuple(_named(entry) for entry in _entries(self.masks))

    def __repr__(self) -> str:
        return (
            f"ComposeCircuit({len(self.kept)} of {self.n_gates} gates; loss {self.score.loss:.3f} nats, all "
            f"{self.full.loss:.3f}, none {self.plain.loss:.3f}: {', '.join(self.kept[:6]) or 'plain attention'})"
        )


@of_ours
def compose_gates(model: SparseTransformer, level: Level = "both") -> dict[str, tuple[int, ...]]:
    """Gates on compositions, by hook name, with the shape of each mask (1 = keep).

    `()`: one number for a branch of a stage. `[n_heads, n_heads]`: an entry for each edge between heads and, on the
    diagonal, for each head's gate on itself. All of one level at 0 give back plain attention exactly.

    Examples:
        >>> options = {"attention": "compose", "compose": "full"}
        >>> shape = circuits.ModelConfig(d_vocab=9, d_model=16, n_heads=2, d_head=4, **options)
        >>> model = circuits.SparseTransformer(shape)
        >>> gates = circuits.composition.compose_gates(model, level="edge")
        >>> set(gates.values())
        {(2, 2)}
    """
    n = model.config.n_heads
    found: dict[str, tuple[int, ...]] = {}
    for name, module in model.named_modules():
        if isinstance(module, Compose):
            branches: dict[str, tuple[int, ...]] = {}
            edges: dict[str, tuple[int, ...]] = {}
            if module.static is not None:
                branches["hook_static"], edges["hook_static"] = (), (n, n)
            for side in ("query", "key"):
                part = getattr(module, side)
                if part is not None:
                    branches[f"{side}.hook_gate"], edges[f"{side}.hook_map"] = (), (n, n)
                    if part.dw1 is not None:
                        branches[f"{side}.hook_mix"] = ()
            chosen = {"branch": branches, "edge": edges, "both": branches | edges}[level]
            found |= {f"{name}.{hook}": shape for hook, shape in chosen.items()}
    return found


@of_ours
def run_composed(
    model: SparseTransformer, tokens: Int[Tensor, "batch pos"], masks: Mapping[str, Tensor]
) -> Float[Tensor, "batch pos d_vocab"]:
    """Logits with compositions multiplied by masks, by hook name as in `compose_gates`; differentiable in them.

    Zero ablation: what a map adds to the identity is removed. Raises ValueError for a hook that is none of them.

    Examples:
        >>> options = {"attention": "compose", "compose": "full"}
        >>> shape = circuits.ModelConfig(d_vocab=9, d_model=16, n_heads=2, d_head=4, **options)
        >>> model = circuits.SparseTransformer(shape)
        >>> gates = circuits.composition.compose_gates(model)
        >>> closed = {name: torch.zeros(shape) for name, shape in gates.items()}
        >>> circuits.composition.run_composed(model, torch.zeros(1, 5).long(), closed).shape
        torch.Size([1, 5, 9])
    """
    known = compose_gates(model)
    unknown = sorted(set(masks) - set(known))
    if unknown:
        raise ValueError(f"masks: unknown hook {unknown[0]!r}; expected some of {list(known)}.")
    hooks: list[tuple[str, Callable]] = [(name, partial(_multiply, mask)) for name, mask in masks.items()]
    with model.hooks(fwd_hooks=hooks):
        return model(tokens)


@of_ours
@with_gradients
def prune_compositions(
    model: SparseTransformer, task: Task, config: ComposePruneConfig | None = None
) -> ComposeCircuit:
    """The fewest compositions found that keep the task: gates are learned, then dropped one by one.

    Everything else of the model stays. Raises ValueError for a model without compositions, or one that the task's
    tokens do not fit.

    Examples:
        >>> task = tasks.load_task("composition")
        >>> options = {"n_ctx": 28, "attention": "compose", "compose": "static"}
        >>> shape = circuits.ModelConfig(d_vocab=task.tokenizer.d_vocab, d_model=16, **options)
        >>> model = circuits.SparseTransformer(shape)
        >>> quick = circuits.composition.ComposePruneConfig(level="branch", steps=2, n_eval=8)
        >>> kept = circuits.composition.prune_compositions(model, task, quick).kept
        >>> len(kept) <= len(circuits.composition.compose_gates(model, "branch"))
        True
    """
    config = config or ComposePruneConfig()
    check_learnable(model)
    check_task(model, task)
    shapes = compose_gates(model, config.level)
    if not shapes:
        raise ValueError(
            f"model: got compose={model.config.compose!r}; expected a model with composed heads. Train one with "
            'ModelConfig(attention="compose", compose="full").'
        )
    gates = _learned(model, task, shapes, config)
    val, test = (
        task.batch(config.n_eval, split=split, seed=config.seed).tokens_and_targets()
        for split in ("val", "test")
    )
    masks = {name: torch.ones(shape).to(model.W_E) for name, shape in shapes.items()}
    full, n_gates = _score(model, test, masks), len(_entries(masks))
    plain = _score(model, test, {name: torch.zeros_like(mask) for name, mask in masks.items()})
    allowed = _score(model, val, masks).loss + config.tolerance
    masks = _fewest(masks, gates, lambda tried: _score(model, val, tried).loss <= allowed)
    return ComposeCircuit(
        masks=masks, n_gates=n_gates, score=_score(model, test, masks), full=full, plain=plain
    )


def _learned(
    model: SparseTransformer, task: Task, shapes: dict[str, tuple[int, ...]], config: ComposePruneConfig
) -> dict[str, Tensor]:
    """Gate values by hook."""
    pool = task.batch(16 * config.batch_size, split="train", seed=config.seed)
    settings = GateSettings(steps=config.steps, batch_size=config.batch_size, lr=config.lr, seed=config.seed)
    learner = GateLearner(shapes, pool, settings, like=model.W_E)
    for step, rows, masks in learner.steps():
        targets = pool.rows(rows).tokens_and_targets()
        loss = two_way_loss(margins(run_composed(model, targets.tokens, masks), targets))
        learner.backward(loss, rising(config.penalty, step, config.steps), masks)
        learner.update()
    return {name: gate.detach() for name, gate in learner.gates.parameters.items()}


def _fewest(
    masks: dict[str, Tensor], gates: Mapping[str, Tensor], meets: Callable[[dict[str, Tensor]], bool]
) -> dict[str, Tensor]:
    """Start from the open gates if these suffice, then close one by one, lowest gate first, until none can go."""
    learned = {name: (gates[name] > 0).to(mask) for name, mask in masks.items()}
    masks = learned if meets(learned) else masks
    dropped = True
    while dropped:
        dropped = False
        for name, place in sorted(_entries(masks), key=lambda entry: float(gates[entry[0]][entry[1]])):
            tried = {**masks, name: masks[name].clone()}
            tried[name][place] = 0
            if meets(tried):
                masks, dropped = tried, True
    return masks


def _score(model: SparseTransformer, targets: Targets, masks: Mapping[str, Tensor]) -> Score:
    with torch.no_grad():
        return score_margins(margins(run_composed(model, targets.tokens, masks), targets))


def _entries(masks: Mapping[str, Tensor]) -> list[Entry]:
    """Places of the open gates."""
    return [(name, tuple(place)) for name, mask in masks.items() for place in mask.nonzero().tolist()]


def _named(entry: Entry) -> str:
    hook, place = entry
    _, layer, _, stage, *branch = hook.replace("hook_", "").split(".")
    name = ".".join([layer, stage.removeprefix("compose_"), *branch])
    return f"{name} {place[0]} -> {place[1]}" if place else name


def _multiply(mask: Tensor, value: Tensor, hook: Any) -> Tensor:
    return value * mask
