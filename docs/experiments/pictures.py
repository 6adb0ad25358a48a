"""Every picture of circuits.plots as a PNG, and the page that shows them: docs/pictures.md.

    python -m docs.experiments.pictures            all of them (minutes; needs a Chromium or Chrome on PATH)
    python -m docs.experiments.pictures circuit    some of them

Drawn from the results files, the shipped models and handmade ones: nothing is trained.
"""

import json
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from circuits import plots
from circuits.bench.table import NAMES
from circuits.bridges import chain_losses
from circuits.circuit.compare import transplant
from circuits.circuit.routing import routing
from circuits.composition import composition, composition_maps
from circuits.files import write_text
from circuits.handmade import Handmade, induction, quotes
from circuits.heads import full_qk, head_report, stack_head_report
from circuits.model.config import ModelConfig
from circuits.model.transformer import SparseTransformer
from circuits.pruning.config import PruneConfig
from circuits.pruning.procedure import prune
from circuits.ranking import curves
from circuits.training.loop import Training
from circuits.trust import TrustConfig, trust_report
from circuits.zoo import load
from tasks import load_task

DOCS = Path("docs")
SEED = 1
QUICK = {"n_pairs": 16, "n_random": 4, "n_knockouts": 2, "control_steps": 2}
app = typer.Typer(add_completion=False, help=__doc__, pretty_exceptions_enable=False)


@app.command()
def main(
    names: Annotated[list[str] | None, typer.Argument(help="Which ones (default: all).")] = None,
) -> None:
    """Draw pictures into docs/pictures/, and list all of them in docs/pictures.md."""
    for name in names or GALLERY:
        if name not in GALLERY:
            raise typer.BadParameter(f"got {name!r}; expected some of {', '.join(GALLERY)}.")
        plots.figure_to_png(GALLERY[name](), DOCS / "pictures" / f"{name}.png", width=900, scale=1)
        Console().print(f"{name}: drawn")
    write_text(DOCS / "pictures.md", page())


def page() -> str:
    """The page that shows every picture, each under the function that draws it."""
    command = "python -m docs.experiments.pictures"
    said = f"# Pictures\n\nEvery picture of `circuits.plots`, as `{command}` draws them.\n"
    return said + "".join(
        f"\n## `{name}_figure`\n\n{_says(name)}\n\n![{name}](pictures/{name}.png)\n" for name in GALLERY
    )


def _says(name: str) -> str:
    """First line of the docstring of a figure's function."""
    return str(getattr(plots, f"{name}_figure").__doc__).strip().splitlines()[0]


def results(name: str) -> Any:
    """What an experiment wrote."""
    return json.loads((DOCS / "results" / f"{name}.json").read_text())


@cache
def shipped() -> Training:
    """The model that ships."""
    return load("mini-python").training


@cache
def closer() -> Handmade:
    """A handmade model that closes quotes, and its circuit."""
    return quotes(SEED)


@cache
def copier() -> Handmade:
    """A handmade model of two layers that does induction."""
    return induction(SEED)


def random_model(**options: Any) -> SparseTransformer:
    """A small model of random weights, on the characters of the handmade tasks."""
    sizes: dict[str, Any] = {"d_model": 32, "n_heads": 4, "d_head": 8, "d_mlp": 32, "n_layers": 2, **options}
    tokenizer = closer().task.tokenizer
    model = SparseTransformer(ModelConfig(d_vocab=tokenizer.d_vocab, n_ctx=24, **sizes), seed=SEED)
    model.tokenizer = tokenizer
    return model


def tokens_of(made: Handmade) -> torch.Tensor:
    """One prompt: [1, pos]."""
    batch = made.task.batch(1, split="test", seed=0)
    return batch.clean[:, : int(batch.lengths[0])]


def texts(made: Handmade) -> list[str]:
    """The tokens of that prompt, printable."""
    return [made.task.tokenizer.token(id) for id in tokens_of(made)[0].tolist()]


def circuit() -> Any:
    """The handmade quote circuit with its sentences."""
    made = closer()
    return plots.circuit_figure(made.circuit, model=made.model, task=made.task)


def pruning() -> Any:
    """How gates closed while the handmade circuit was looked for."""
    made = closer()
    found = prune(
        made.model, made.task, PruneConfig(starts=1, steps=60, n_eval=32, n_test=32), progress=False
    )
    return plots.pruning_figure(found.history)


def patterns() -> Any:
    """Where the heads of induction look."""
    _, cached = copier().model.run_with_cache(tokens_of(copier()))
    return plots.pattern_figure(cached["blocks.1.attn.hook_pattern"][0], texts(copier()))


def token_map() -> Any:
    """The QK circuit of one head of the shipped model, between marks that open and close."""
    model, head = shipped().model, 8
    chosen = torch.tensor(load_task("quotes").tokenizer.encode("'\"[]()=,+-1ab \n"))
    names = [load_task("quotes").tokenizer.token(id) for id in chosen.tolist()]
    scores = full_qk(model, chosen, layer=0, head=head).AB
    return plots.token_map_figure(scores, names, names, title=f"QK of head 0.{head}")


def maps() -> Any:
    """How composed heads of a random model mix: untrained, so its own maps are drawn wider than they start."""
    model = random_model(attention="compose", compose="full")
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("qkw"):
                weight.mul_(300)
    return plots.composition_maps_figure(composition_maps(model, tokens_of(closer())), texts(closer()))


def stack_heads() -> Any:
    """Heads of an encoder-decoder of random weights."""
    model = random_model(arch="encdec", n_source=12, pad=0)
    rows = torch.randint(1, model.d_vocab, (8, 24), generator=torch.Generator().manual_seed(SEED))
    return plots.stack_head_report_figure(stack_head_report(model, rows))


def chain() -> Any:
    """Passes that cross twice between the shipped dense and sparse models."""
    bridges: Any = load("mini-python-sparse").bridges
    tokens = load_task("quotes").batch(16, split="test", seed=0)
    losses = chain_losses(bridges, tokens.clean, lengths=tokens.lengths).tolist()
    return plots.chain_figure(losses, [str(i) for i in range(len(losses))])


def rankings() -> Any:
    """How well rankings of nodes find the handmade circuit."""
    made = closer()
    return plots.rankings_figure(
        curves(made.model, made.task, ["EAP", "attribution patching", "random"], n_pairs=16)
    )


def transplants() -> Any:
    """The handmade circuit on its own task."""
    made = closer()
    return transplant(
        made.model, {made.task.name: made.circuit}, {made.task.name: made.task}, n_pairs=32
    ).plot()


def trust() -> Any:
    """A quick report on the handmade circuit."""
    made = closer()
    return plots.trust_figure(
        trust_report(made.model, made.circuit, made.task, config=TrustConfig.from_json(QUICK))
    )


def sweep() -> Any:
    """The circuits of the frontier experiment."""
    rows = [
        {"width": run["width"], "seed": run["seed"], "task": task, "val_loss": run["val_loss"]}
        | {key: found[key] for key in ("n_nodes", "n_edges", "task_loss")}
        for run in results("frontier")["runs"]
        for task, found in run["circuits"].items()
        if found["solved"]
    ]
    return plots.sweep_figure(rows)


GALLERY: Mapping[str, Callable[[], Any]] = {
    "circuit": circuit,
    "history": lambda: plots.history_figure(shipped().history),
    "pruning": pruning,
    "nonzeros": lambda: plots.nonzeros_figure(shipped().model),
    "pattern": patterns,
    "token_map": token_map,
    "head_report": lambda: head_report(copier().model).plot(),
    "stack_head_report": stack_heads,
    "composition": lambda: plots.composition_figure(composition(copier().model)),
    "head_graph": lambda: plots.head_graph_figure(composition(copier().model)),
    "composition_maps": maps,
    "routing": lambda: routing(random_model(experts=4, experts_active=2), tokens_of(closer())[0]).plot(),
    "rankings": rankings,
    "transplant": transplants,
    "trust": trust,
    "controls": lambda: plots.controls_figure(results("controls")),
    "ground_truth": lambda: plots.ground_truth_figure(results("ground_truth")),
    "sparse_vs_dense": lambda: plots.sparse_vs_dense_figure(results("sparse_vs_dense")),
    "frontier": lambda: plots.frontier_figure(results("frontier")),
    "sweep": sweep,
    "bridge": lambda: plots.bridge_figure(results("bridges")["runs"][0]["locations"]),
    "chain": chain,
    "steering": lambda: plots.steering_figure(results("steering")["runs"][0]),
    "dilution": lambda: plots.dilution_figure(results("dilution")["runs"][0]),
    "bench": lambda: plots.bench_figure([row for row in results("bench")["rows"] if row["name"] in NAMES]),
}
"""What draws each picture, by the name of its function without `_figure`."""


if __name__ == "__main__":
    app()
