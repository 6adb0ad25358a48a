"""Sparse experts: are they the plain MLP where they should be, and does routing line up with circuits?

    python -m docs.experiments.experts --seeds 3 --write        -> docs/results/experts.json

Models of mini-Python with 16 experts, 2 of them active. For each task that a model solves: where its prompts are routed
to, and in which experts the neurons of its circuit lie. Controls: expert numbers permuted, and other tasks' routing.
And the model's loss without each expert: does routing say which it needs? What is done is kept in out/experts, and the
results file is written after each model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
import torch
import typer
from rich.console import Console
from torch import nn

from circuits.circuit.ablation import mean_values
from circuits.circuit.circuit import Circuit
from circuits.circuit.masked import run_masked
from circuits.circuit.routing import choices, neurons_by_expert
from circuits.circuit.score import margins, score_margins
from circuits.files import mean, once, write_results
from circuits.model.config import ModelConfig
from circuits.model.mlp import MLP
from circuits.model.sites import Site
from circuits.model.tokens import real_places
from circuits.model.transformer import SparseTransformer
from circuits.pruning.config import PruneConfig
from circuits.statistics import interval, spearman
from circuits.training.config import TrainConfig
from circuits.training.loop import Training
from docs.experiments.runs import kept_training, pruned
from tasks import load_task
from tasks.mini_choices import FORMS

M = TypeVar("M", bound=nn.Module)
app = typer.Typer(add_completion=False, help=__doc__, pretty_exceptions_enable=False)
RESULTS, OUT = Path("docs/results/experts.json"), Path("out/experts")
TASKS = ("quotes", "brackets", *FORMS)
EXPERTS, ACTIVE, STEPS = 16, 2, 1000
PRUNING = PruneConfig(objective="task", starts=1, steps=100, n_eval=128, prune_edges=False)
N_PROMPTS, N_PERMUTED, N_MEAN = 128, 1000, 512


@app.command()
def run(
    seeds: Annotated[int, typer.Option(help="Models, each trained anew.")] = 3,
    write: Annotated[bool, typer.Option(help="Write docs/results/experts.json; else only print.")] = False,
) -> None:
    """Train, prune and compare; what has been done before is read from out/experts."""
    report = run_all(seeds, RESULTS if write else None)
    Console().print({key: value for key, value in report.items() if key != "runs"})


def run_all(seeds: int, results: Path | None) -> dict[str, Any]:
    """The numbers over all models, written after each where there is a place for them."""
    seconds = 0.0
    found: dict[str, Any] = {"parity_max_abs": parity()}
    runs: list[dict[str, Any]] = []
    for seed in range(seeds):
        done, spent = study(seed)
        runs, seconds = runs + done, seconds + spent
        found |= {"routing_circuit_overlap": None, **verdict(runs), "runs": runs}
        if results is not None:
            write_results(
                results,
                command=f"python -m docs.experiments.experts --seeds {seeds} --write",
                seeds=range(seed + 1),
                seconds=seconds,
                numbers=found,
            )
    return found


def parity() -> float:
    """The largest difference of all experts at equal shares from a plain MLP, and of routed ones from one by one.

    Weights are ten times what training starts from, so that logits and outputs have a size around 1.
    """
    shape = ModelConfig(d_vocab=40, n_layers=1, d_model=32, n_heads=4, d_head=8, d_mlp=64, n_ctx=16)
    tokens = torch.randint(0, 40, (32, 16), generator=torch.Generator().manual_seed(0))
    plain = _grown(SparseTransformer(shape))
    equal = _grown(SparseTransformer(replace(shape, experts=EXPERTS, experts_active=EXPERTS)))
    with torch.no_grad():
        _router(equal).map.weight.zero_()
        even = (plain(tokens) - equal(tokens)).abs().max()
    return max(float(even), _one_by_one(replace(shape, experts=EXPERTS, experts_active=ACTIVE)))


def _grown(module: M) -> M:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(10)
    return module


def _router(model: SparseTransformer) -> Any:
    block: Any = model.blocks[0]
    return block.mlp.router


def _one_by_one(shape: ModelConfig) -> float:
    """A dense MLP whose experts each run on their own tokens alone, against masks of neurons; float32."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        mlp = _grown(MLP(replace(shape, topk_fraction=None), layer=0))
    assert mlp.router is not None
    x = torch.randn(8, 16, shape.d_model, generator=torch.Generator().manual_seed(1))
    size = shape.expert_size
    with torch.no_grad():
        share, total = mlp.router(x).flatten(0, 1), mlp.b_out.expand(8 * 16, -1).clone()
        for e in range(shape.experts):
            mine, own = share[:, e].nonzero()[:, 0], slice(e * size, (e + 1) * size)
            neurons = mlp.act(x.flatten(0, 1)[mine] @ mlp.W_in[:, own] + mlp.b_in[own])
            total[mine] += share[mine, e, None] * (neurons @ mlp.W_out[own])
        return float((mlp(x).flatten(0, 1) - total).abs().max())


def study(seed: int) -> tuple[list[dict[str, Any]], float]:
    """One model: a line for every task, and the seconds that training and pruning took when they were done."""
    folder = OUT / str(seed)
    training = kept_training(folder / "model.safetensors", config(seed))
    lines = [{"seed": seed, "task": name, **task_run(training, name, folder)} for name in TASKS]
    solved = [line for line in lines if line["solved"]]
    for line in solved:
        others = [other["routing"] for other in solved if other is not line]
        line |= by_need(line["routing"], line["needs"], others)
        if line["n_neurons"]:
            line |= compared(line["routing"], line["neurons"], others, seed)
    seconds = training.seconds + sum(line["seconds"] for line in lines)
    return [{**line, "val_loss": training.val_loss} for line in lines], seconds


def config(seed: int) -> TrainConfig:
    """The toy recipe with experts."""
    toy = TrainConfig.toy(seed=seed, steps=STEPS)
    return replace(toy, model=replace(toy.model, experts=EXPERTS, experts_active=ACTIVE))


def task_run(training: Training, name: str, folder: Path) -> dict[str, Any]:
    """Routing and circuit of a task; without neurons where the model does not solve it."""
    size = pruned(training, name, PRUNING, folder)
    if not size["solved"]:
        kept = {key: size[key] for key in ("full_task_loss", "seconds")}
        return {"solved": False, "n_neurons": 0, **kept}
    settings = {"model": training.model.fingerprint(), "prompts": N_PROMPTS, "prune": PRUNING.to_json()}
    find = partial(_routes, training.model, name, folder / f"{name}.circuit.json")
    routes = once(folder / f"{name}.routing.json", settings, find)
    needed = once(folder / f"{name}.needs.json", settings, partial(_needs, training, name))
    wanted = ("n_nodes", "n_edges", "task_loss", "task_accuracy", "one_minimal")
    return {
        "solved": True,
        **{key: size[key] for key in wanted},
        **routes,
        **needed,
        "seconds": size["seconds"],
    }


def _routes(model: SparseTransformer, name: str, path: Path) -> dict[str, Any]:
    circuit, batch = Circuit.load(path), load_task(name).batch(N_PROMPTS, split="test", seed=0)
    routing = choices(model, batch.clean, lengths=batch.lengths)
    neurons = neurons_by_expert(model, circuit)
    return {
        "n_neurons": int(neurons.sum()),
        "n_router_nodes": sum(node.site == "router" for node in circuit.nodes),
        "routing": routing.flatten().tolist(),
        "neurons": neurons.flatten().tolist(),
        "n_tokens": int(real_places(batch.clean, batch.lengths).sum()),
    }


def _needs(training: Training, name: str) -> dict[str, Any]:
    """Rise of the model's loss on a task, in nats, with the share of one expert after the other held at its mean."""
    model, site = training.model, Site(0, "router")
    generator = torch.Generator().manual_seed(0)
    text = training.corpus.windows(N_MEAN, model.n_ctx, split="train", generator=generator)
    values = mean_values(model, text)
    targets = load_task(name).batch(N_PROMPTS, split="test", seed=0).tokens_and_targets()
    masks = [torch.ones(EXPERTS), *(1 - torch.eye(EXPERTS))]
    with torch.no_grad():
        runs = [margins(run_masked(model, targets.tokens, {site: mask}, values), targets) for mask in masks]
    whole, *without = [score_margins(run).loss for run in runs]
    return {"needs": [loss - whole for loss in without]}


def by_need(
    routing: Sequence[float], needs: Sequence[float], others: Sequence[Sequence[float]]
) -> dict[str, float | None]:
    """Rank correlation of need with routing at the task's prompts, and its mean over those of other tasks."""
    elsewhere = [spearman(other, needs) for other in others]
    return {
        "need_correlation": spearman(routing, needs),
        "need_elsewhere": mean(elsewhere) if others else None,
    }


def compared(
    routing: Sequence[float], neurons: Sequence[float], others: Sequence[Sequence[float]], seed: int
) -> dict[str, float | None]:
    """Overlap of routing with a circuit's neurons, with neurons of permuted experts, and of other tasks' routing."""
    rng = np.random.default_rng(seed)
    shuffled = [overlap(routing, rng.permutation(neurons)) for _ in range(N_PERMUTED)]
    return {
        "overlap": overlap(routing, neurons),
        "permuted": mean(shuffled),
        "other_tasks": mean([overlap(other, neurons) for other in others]) if others else None,
    }


def overlap(a: Any, b: Any) -> float:
    """What two distributions over experts have in common, 0 to 1; each is scaled to sum 1 first."""
    p, q = (np.asarray(x, dtype=float) / np.sum(x) for x in (a, b))
    return float(np.minimum(p, q).sum())


def verdict(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means over models and tasks, intervals of the differences from both controls, and what they say."""
    known = [run for run in runs if run.get("overlap") is not None]
    paired = [run for run in known if run["other_tasks"] is not None]
    found = _of_needs([run for run in runs if run.get("need_elsewhere") is not None])
    if not known:
        return {**found, "verdict": "no circuit has a neuron"}
    chance = interval([run["overlap"] - run["permuted"] for run in known])
    special = interval([run["overlap"] - run["other_tasks"] for run in paired])
    lines_up, is_special = len(known) > 1 and chance[0] > 0, len(paired) > 1 and special[0] > 0
    said = {True: "routing lines up with circuits", False: "no line-up is shown"}[lines_up]
    return {
        **found,
        "routing_circuit_overlap": mean([run["overlap"] for run in known]),
        "permuted_overlap": mean([run["permuted"] for run in known]),
        "other_tasks_overlap": mean([run["other_tasks"] for run in paired]) if paired else None,
        "minus_permuted": chance,
        "minus_other_tasks": special,
        "minus_permuted_by_model": interval(_by_model(known, "permuted")),
        "minus_other_tasks_by_model": interval(_by_model(paired, "other_tasks")),
        **_most_needed(known),
        "n_circuits": len(known),
        "verdict": f"{said}, {'of the task in particular' if is_special else 'not of the task in particular'}",
    }


def _by_model(runs: Sequence[Mapping[str, Any]], control: str) -> list[float]:
    """What overlap has over a control, the mean of each model's tasks: tasks of one model are not independent."""
    differences: dict[int, list[float]] = {}
    for run in runs:
        differences.setdefault(run["seed"], []).append(run["overlap"] - run[control])
    return [mean(own) for own in differences.values()]


def _most_needed(runs: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Circuits with a neuron in the expert that the model needs most, and how many there would be by chance."""
    held = [[e for e, n in enumerate(run["neurons"]) if n] for run in runs]
    first = [max(range(len(run["needs"])), key=run["needs"].__getitem__) for run in runs]
    return {
        "most_needed_in_circuit": sum(e in own for e, own in zip(first, held, strict=True)),
        "most_needed_by_chance": sum(
            len(own) / len(run["needs"]) for own, run in zip(held, runs, strict=True)
        ),
    }


def _of_needs(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    if not runs:
        return {}
    own, other = ([run[key] for run in runs] for key in ("need_correlation", "need_elsewhere"))
    return {
        "need_correlation": mean(own),
        "need_elsewhere": mean(other),
        "need_minus_elsewhere": interval([a - b for a, b in zip(own, other, strict=True)]),
        "n_solved": len(runs),
    }


if __name__ == "__main__":
    app()
