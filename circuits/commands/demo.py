"""The whole path once: train on mini-Python, extract a circuit, write it down."""

from pathlib import Path
from typing import Any

from circuits.commands.shared import report_beside
from circuits.explorer import to_html
from circuits.files import check_writable, write_json
from circuits.plots import demo_page, history_figure, pruning_figure
from circuits.pruning.config import PruneConfig
from circuits.pruning.procedure import prune
from circuits.training.config import TrainConfig
from circuits.training.loop import Training, train
from tasks import load_task

FILES = ("model.safetensors", "report.json", "circuit.json", "circuit.html", "explorer.html")
"""What the demo writes into its folder."""


def run_demo(
    *, task: str = "quotes", seed: int = 0, out: Path = Path("out/demo"), progress: bool = True
) -> dict[str, Any]:
    """Train, prune, and write model.safetensors, report.json, circuit.json, circuit.html and explorer.html into `out`.

    Returns the report. Raises ValueError for a task that is not of mini-Python.
    """
    if task not in ("quotes", "brackets"):
        raise ValueError(f"task: got {task!r}; expected 'quotes' or 'brackets', the two of mini-Python.")
    for name in FILES:
        check_writable(out / name)
    training = train(TrainConfig.toy(seed=seed), progress=progress)
    training.save(out / "model.safetensors")
    return extract(training, task, out, progress=progress)


def extract(
    training: Training, task: str, out: Path, *, progress: bool = True, config: PruneConfig | None = None
) -> dict[str, Any]:
    """Prune a trained model; write report.json, circuit.json, circuit.html, explorer.html; returns the report.

    config: how to prune (default: with the seed that the model was trained with).
    """
    seed = training.config.seed
    config = config or PruneConfig(seed=seed)
    circuit = prune(training.model, load_task(task), config, corpus=training.corpus, progress=progress)
    circuit.save(out / "circuit.json")
    report = {
        **circuit.summary(),
        "seconds_train": training.seconds,
        "seconds_prune": circuit.metrics["seconds"],
        "val_loss": training.val_loss,
        "density": training.model.density(),
        "n_nonzero": training.model.n_nonzero(),
        "seed": seed,
    }
    write_json(out / "report.json", report)
    figures = [history_figure(training.history), pruning_figure(circuit.history)]
    found, trust = load_task(task), report_beside(out / "circuit.json", circuit)
    demo_page(out / "circuit.html", circuit, report, figures, model=training.model, task=found)
    to_html(out / "explorer.html", training.model, circuit, found, trust=trust)
    return report
