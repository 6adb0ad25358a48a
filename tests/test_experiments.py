"""Experiments at tiny sizes: equal budgets, equal losses, honest averages, nothing done twice."""

import importlib
import json
import re
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from circuits.files import write_json
from circuits.model.config import ModelConfig
from circuits.model.transformer import SparseTransformer
from circuits.plots import sparse_vs_dense_figure
from circuits.plots.markdown import around_marks
from circuits.pruning.config import PruneConfig
from circuits.training.config import TrainConfig
from circuits.training.loop import with_vocabulary
from circuits.training.updates import check_budgets, project
from docs.experiments import frontier, sparse_vs_dense, trust_page
from docs.experiments.runs import kept_training, kept_twin, pruned, train_until
from tasks import load_corpus

ROOT = Path(__file__).parent.parent
EXPERIMENTS = sorted(p.stem for p in (ROOT / "docs" / "experiments").glob("*.py"))
SMALL = ModelConfig(n_layers=1, d_model=16, n_heads=2, d_head=8, d_mlp=32, n_ctx=16)


def tiny(**changes) -> TrainConfig:
    settings = {"model": SMALL, "steps": 40, "batch_size": 8, "density": 0.3, "n_val": 16, "min_alive": 0}
    return TrainConfig(**{**settings, **changes})


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_starts_and_says_how_it_is_run(name):
    module = importlib.import_module(f"docs.experiments.{name}")
    if hasattr(module, "app"):
        shown = CliRunner().invoke(module.app, ["--help"])
        assert shown.exit_code == 0, shown.output
        assert f"python -m docs.experiments.{name}" in module.__doc__
    said = re.findall(r"python -m (docs\.experiments\.\w+)", Path(module.__file__).read_text())
    assert set(said) <= {f"docs.experiments.{other}" for other in EXPERIMENTS}


def test_experiments_are_not_in_the_wheel():
    built = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]
    assert built == {"wheel": {"packages": ["circuits", "tasks"]}}
    assert not list((ROOT / "circuits").rglob("experiments*"))


def test_a_twin_stops_at_the_loss(tmp_path):
    sparse = kept_training(tmp_path / "sparse.safetensors", tiny())
    wanted = sparse.val_loss + 0.2
    dense = TrainConfig.dense(model=SMALL, steps=200, batch_size=8, n_val=16)
    twin = kept_twin(tmp_path / "dense.safetensors", dense, wanted)
    assert twin.val_loss <= wanted
    assert all(entry["val_loss"] > wanted for entry in twin.history[:-1])
    again = kept_twin(tmp_path / "dense.safetensors", dense, wanted)
    assert again.model.fingerprint() == twin.model.fingerprint()
    assert again.val_loss == twin.val_loss
    with pytest.raises(ValueError, match="loss: 10 steps reach"):
        train_until(replace(dense, steps=10), 0.1)


def test_a_model_that_cannot_do_the_task_is_recorded_not_pruned(tmp_path):
    training = kept_training(tmp_path / "model.safetensors", tiny(steps=2))
    first = pruned(training, "separator", PruneConfig(n_eval=16), tmp_path)
    assert first["solved"] is False
    assert first["full_task_loss"] > 0.15
    assert pruned(training, "separator", PruneConfig(n_eval=16), tmp_path) == first


def test_every_width_has_as_many_nonzeros():
    corpus = load_corpus("mini")
    counts = {}
    for width in frontier.WIDTHS:
        config = with_vocabulary(frontier.at_width(width, seed=0, steps=1), corpus)
        check_budgets(config)
        model = SparseTransformer(config.model)
        project(model, config, 1.0)
        counts[width] = model.n_nonzero()
    assert max(counts.values()) < 1.03 * min(counts.values())


def side(n_edges, *, solved=True):
    return {"solved": solved, "n_nodes": n_edges, "n_edges": n_edges, "seconds": 1.0}


def test_ratios_are_geometric_means_of_what_can_be_compared():
    losses = {"sparse": 1.5, "dense": 1.5}
    rows = [("a", 0, 10, 40), ("a", 1, 10, 90), ("b", 0, 5, 30)]
    runs = [
        {"seed": seed, "task": task, "val_loss": losses, "sparse": side(few), "dense": side(many)}
        for task, seed, few, many in rows
    ]
    runs.append(
        {"seed": 1, "task": "b", "val_loss": losses, "sparse": side(5), "dense": side(0, solved=False)}
    )
    numbers = sparse_vs_dense._numbers(runs)
    assert numbers["tasks"] == pytest.approx({"a": 6.0, "b": 6.0})
    assert numbers["geomean_edge_ratio"] == pytest.approx(6.0)
    assert numbers["left_out"] == [{"seed": 1, "task": "b", "sparse": "solved", "dense": "not solved"}]


def test_frontier_averages_the_circuits_that_there_are():
    def one(width, seed, edges, *, solved=True):
        circuits = {"quotes": side(edges), "brackets": side(9, solved=solved)}
        return {"seed": seed, "width": width, "val_loss": 1.0 + seed, "n_nonzero": 100, "circuits": circuits}

    numbers = frontier._numbers([one(64, 0, 3), one(64, 1, 6, solved=False), one(128, 0, 1)])
    assert numbers["widths"] == [64, 128]
    assert numbers["val_loss"] == [1.5, 1.0]
    assert numbers["n_edges"] == [6.0, 5.0]
    assert numbers["tasks"]["brackets"]["n_solved"] == [1, 1]
    assert json.dumps(numbers)


def stored_sizes():
    losses = {"sparse": 1.5, "dense": 1.5}
    runs = [
        {"seed": 0, "task": task, "val_loss": losses, "sparse": side(few), "dense": side(many)}
        for task, few, many in (("quotes", 8, 160), ("brackets", 20, 300), ("separator", 5, 30))
    ]
    return sparse_vs_dense._numbers(runs)


def test_the_page_quotes_the_results(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    drawn = []
    monkeypatch.setattr(trust_page, "figure_to_png", lambda figure, path: drawn.append(path.name))
    (tmp_path / "docs" / "explanation").mkdir(parents=True)
    marks = "".join(f"<!-- {name} -->\nold\n<!-- end of {name} -->\n" for name in trust_page.TABLES)
    page = tmp_path / "docs" / "explanation" / "trust.md"
    page.write_text(f"before\n{marks}after\n")
    command = "python -m docs.experiments.sparse_vs_dense --seeds 1"
    made = {"command": command, "seeds": [0], "minutes": 1.5, "machine": "a machine", "date": "2026-01-02"}
    write_json("docs/results/sparse_vs_dense.json", {**made, **stored_sizes()})
    trust_page.run()
    text = page.read_text()
    assert "| quotes | 1 | 8 | 160 | 20.0 |" in text
    assert "Geometric mean of the ratios: **12.2**" in text
    assert text.count("\nold\n") == len(trust_page.TABLES) - 1
    assert (text.startswith("before\n"), text.endswith("after\n")) == (True, True)
    assert "![](trust-sparse_vs_dense.png)\n\n`python -m docs.experiments.sparse_vs_dense" in text
    assert drawn == ["trust-sparse_vs_dense.png"]
    page.write_text("no marks")
    with pytest.raises(ValueError, match="expected '<!-- frontier -->'"):
        around_marks(page, *trust_page.marks("frontier"))


def test_the_page_of_the_project_has_every_mark():
    page = Path(__file__).parent.parent / "docs" / "explanation" / "trust.md"
    for name in trust_page.TABLES:
        assert around_marks(page, *trust_page.marks(name))


def test_figures_of_sizes():
    figure = sparse_vs_dense_figure(stored_sizes())
    assert list(figure.data[1].x) == [5, 20, 8]
    assert list(figure.data[2].x) == [30, 300, 160]
    with pytest.raises(ValueError, match="no task was solved by both"):
        sparse_vs_dense_figure({"tasks": {}})
