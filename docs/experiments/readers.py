"""Every reader of the package: for each a good file, what makes that hostile, and what reads it."""

import ast
import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NamedTuple

import torch

from circuits.bridges import BridgeConfig
from circuits.bridges.fit import _Fit
from circuits.bridges.maps import identity_bridges, load_bridges
from circuits.bridges.sides import Side
from circuits.circuit.circuit import Circuit
from circuits.commands.extract import search_figures
from circuits.commands.shared import configured, read_config
from circuits.files import once, write_file, write_json, write_text
from circuits.handmade import quotes
from circuits.interop.neuronpedia import attribution_graph, graph_to_html
from circuits.interop.openai import CONFIG as OPENAI_CONFIG
from circuits.interop.openai import WEIGHTS, load_openai, save_openai
from circuits.interop.openai_circuits import load_openai_circuit
from circuits.model.checkpoint import load_checkpoint, save_checkpoint
from circuits.model.config import ModelConfig
from circuits.model.transformer import SparseTransformer
from circuits.plots import demo_page, trust_page
from circuits.pruning.config import PruneConfig
from circuits.reading import UnreadableError
from circuits.sweep import RunTable, load_plan
from circuits.sweep.export import sweep_page
from circuits.sweep.plan import Axes, Plan
from circuits.training.config import TrainConfig, with_new_names
from circuits.training.loop import Training, _Run, train, with_vocabulary
from circuits.training.saved import load_trained
from circuits.training.steps import NotFiniteError
from circuits.trust import TrustConfig, TrustReport
from circuits.trust.report import Entry
from docs.experiments.mutate import hostile_json, hostile_tensors
from docs.experiments.mutate_files import (
    hostile_archive,
    hostile_bytes,
    hostile_csv,
    hostile_table,
    hostile_text,
    hostile_toml,
)
from tasks import from_pairs, load_corpus
from tasks.own_text import own_corpus
from tasks.token_cache import read_streams, write_streams
from tasks.tokenizer import BPE, WordTokenizer
from tasks.tokenizer_files import load_tokenizer

SHAPE = ModelConfig(n_layers=1, d_model=16, n_heads=2, d_head=4, d_mlp=16, n_ctx=16)
CONFIG = TrainConfig(
    model=SHAPE, steps=6, batch_size=2, n_val=2, density=0.3, embed_density=0.5, min_alive=0, log_every=1
)
STORED = Path(__file__).parents[2] / "tests" / "data" / "format-1"
SWEEP = """tasks = ["quotes", "brackets"]
widths = [16, 32]
densities = [0.5]
seeds = [0, 1]

[train]
steps = 4
model = { n_heads = 2, d_head = 4, d_mlp = 16 }

[[prune]]
objective = "faithful"
steps = 2

[[prune]]
objective = "task"
target_loss = 0.2
"""
OPENAI = ModelConfig(
    d_vocab=13, n_layers=1, d_model=12, n_heads=2, d_head=4, d_mlp=20, n_ctx=9, norm_eps=torch.finfo().eps
)
NAMES = ("Mary", "John", "Tom", "Anna", "Paul", "Kate")
TRIED: dict[str, tuple[str, ...]] = {
    "circuits.files": ("kept result", "circuit"),
    "circuits.model.stored": ("checkpoint", "bridges"),
    "circuits.interop.torch_file": ("model of OpenAI's", "circuit of OpenAI's"),
    "circuits.sweep.table": ("table of a sweep",),
    "circuits.sweep.plan": ("plan of a sweep",),
    "tasks.pairs": ("pairs",),
    "tasks.text_files": ("text of your own",),
    "tasks.token_cache": ("tokens in the cache",),
    "tasks.tokenizer_files": ("tokenizer", "checkpoint with a BPE"),
}
"""Modules that open files which others may have made, and the targets that try each."""
OURS_ALONE: dict[str, str] = {
    "circuits.bench.end_to_end": "the kernel's own report on this process",
    "circuits.explorer.page": "scripts and style that ship with the package",
    "circuits.interop.hf": "transformers reads the folder: its limits are those of that library",
    "circuits.plots.markdown": "pages of this repository",
    "circuits.training.numbered": "a lock: opened, never read",
    "tasks.own_text": "a name in the cache, by which a file in the cache is looked up",
    "tasks.stdlib": "Python's own library",
}
"""Modules that open files which nobody else makes, or that read nothing of them."""


class Target(NamedTuple):
    """A file that is good, what makes it hostile, what reads it, and the error by which that refuses."""

    name: str
    good: Path
    spoil: Callable[[Path, random.Random], bytes]
    read: Callable[[Path], Any]
    refuses: type[ValueError] = UnreadableError


def all_targets(folder: Path) -> list[Target]:
    """Good files of every kind in `folder`, and every reader of each."""
    os.environ["SPARSE_CIRCUITS_CACHE"] = str(folder / "cache")
    found = [
        *(Target(name, path, hostile_tensors, read) for name, path, read in _tensors(folder)),
        *(
            Target(name, path, hostile_json, read)
            for name, path, read in (*_texts(folder), *_configs(folder))
        ),
        *_pages(folder),
        *_openai(folder),
        *_sweeps(folder),
        *_data(folder),
    ]
    del os.environ["SPARSE_CIRCUITS_CACHE"]
    return found


Reader = tuple[str, Path, Callable[[Path], Any]]


def _tensors(folder: Path) -> Iterator[Reader]:
    corpus = load_corpus("mini")
    run = _Run(with_vocabulary(CONFIG, corpus), corpus)
    run.one_step()
    stopped = run.save(folder / "stopped.safetensors")
    done = train(CONFIG, progress=False)
    finished = done.save(folder / "finished.safetensors")
    fit = _Fit(Side(done.model, "dense"), CONFIG, corpus, BridgeConfig(batch_size=2, n_val=2))
    fit.one_step()
    model = load_checkpoint(STORED / "model.safetensors").model
    bridges = identity_bridges(model).save(folder / "bridges.safetensors")
    tokenizer = BPE.train([path.read_text() for path in STORED.glob("*.json")], name="own", d_vocab=300)
    own = SparseTransformer(replace(SHAPE, d_vocab=300), tokenizer=tokenizer)
    carries = save_checkpoint(folder / "carries.safetensors", own)
    yield "checkpoint", finished, both_ways
    yield "checkpoint with a BPE", carries, both_ways
    yield "finished run", finished, Training.load
    yield "trained model", finished, load_trained
    yield "run to resume", stopped, partial(_resumed, run)
    yield "older checkpoint", STORED / "model.safetensors", both_ways
    yield "bridges", bridges, partial(load_bridges, dense=model, sparse=model)
    yield "fit to resume", fit.save(folder / "fit.safetensors"), partial(_resumed, fit)


def _texts(folder: Path) -> Iterator[Reader]:
    circuits = [Circuit.load(STORED / f"{name}.json") for name in ("mean", "position", "resample")]
    sealed = [circuit.save(folder / f"{i}.json") for i, circuit in enumerate(circuits)]
    for path in (*sealed, STORED / "mean.json"):
        yield "circuit", path, _shown_circuit
    kept = write_json(folder / "kept.json", {"settings": {"a": 1}, "result": {"loss": 0.5, "seconds": 1.0}})
    yield "kept result", kept, partial(once, settings={"a": 1}, run=dict)
    yield "trust report", _report().save(folder / "report.json"), _shown_report


def _configs(folder: Path) -> Iterator[Reader]:
    makers: tuple[tuple[Any, Any], ...] = (
        (CONFIG, with_new_names),
        (PruneConfig(), dict),
        (TrustConfig(), dict),
        (BridgeConfig(), dict),
    )
    for config, old in makers:
        name = type(config).__name__
        path = write_json(folder / f"{name}.json", config.to_json())
        yield name, path, partial(_configured, type(config).from_json, old)


def _pages(folder: Path) -> Iterator[Target]:
    """What is written of a file that loads: pages and code, in which its texts are text."""
    made = quotes(1)
    history = [{"step": 1, "task_loss": 0.5, "n_open": 30}, {"step": 2, "task_loss": 0.1, "n_open": 8}]
    circuit = made.circuit.with_metrics(history=history, task_loss=0.1, task_accuracy=1.0, note="kept")
    path = circuit.save(folder / "page.json")
    graph = write_json(folder / "graph.json", attribution_graph(made.model, made.circuit, made.task))
    report = _report().save(folder / "page-report.json")
    for name, good, read in (
        ("circuit's page", path, _circuit_page),
        ("trust page", report, _trust_page),
        ("explorer and code", path, partial(_explored, made)),
        ("graph of others", graph, _graph_page),
    ):
        yield Target(name, good, hostile_json, read, ValueError)


def _openai(folder: Path) -> Iterator[Target]:
    home = save_openai(folder / "openai", SparseTransformer(OPENAI, seed=3))
    model, tokens = load_openai(home), torch.zeros(2, 4, dtype=torch.int64)
    kept = {
        "0.attn.act_in": torch.tensor([3, 1]),
        "0.attn.v": torch.tensor([5]),
        "final_resid": torch.tensor([2]),
    }
    whole = {"circuit_data": kept, "importances": {"interv_loss": torch.tensor(0.3)}}
    path = write_file(folder / "viz_data.pt", lambda partial: torch.save(whole, partial))
    yield Target("model of OpenAI's", home / WEIGHTS, hostile_archive, partial(_in_folder, home, WEIGHTS))
    yield Target(
        "config of OpenAI's", home / OPENAI_CONFIG, hostile_json, partial(_in_folder, home, OPENAI_CONFIG)
    )
    read = partial(load_openai_circuit, model=model, text=tokens)
    yield Target("circuit of OpenAI's", path, hostile_archive, read)


def _sweeps(folder: Path) -> Iterator[Target]:
    plan = write_text(folder / "plan.toml", SWEEP)
    yield Target("plan of a sweep", plan, hostile_toml, load_plan)
    table = RunTable(folder / "runs.sqlite", shared=True)
    table.add(Plan.of(Axes(tasks=("quotes",), seeds=tuple(range(4)))))
    for worker, result in (
        ("a", {"n_nodes": 3, "n_edges": 4, "task_loss": 0.1, "machine": "here"}),
        ("b", None),
    ):
        claimed = table.claim(worker)
        assert claimed is not None, "a new table has runs to claim"
        if result is None:
            table.fail(worker, claimed[0], "Traceback: it failed")
        else:
            table.finish(worker, claimed[0], result)
    yield Target("table of a sweep", table.path, hostile_table, _used_table)


def _data(folder: Path) -> Iterator[Target]:
    rows = [(f"{a} met {b} and {b}", f"{a} met {b} and {a}", a, b) for a in NAMES for b in NAMES if a < b]
    lines = "\n".join(",".join(row) for row in [("clean", "corrupt", "answer", "foil"), *rows])
    words = WordTokenizer(name="words", words=(*NAMES, "met", "and"))
    pairs = write_text(folder / "pairs.csv", lines)
    yield Target("pairs", pairs, hostile_csv, partial(_pairs, words), ValueError)
    text = write_text(folder / "text.txt", "\n".join(line for row in rows for line in row) * 3)
    yield Target("text of your own", text, hostile_text, partial(own_corpus, d_vocab=257), ValueError)
    bpe = BPE.train([text.read_text()], name="bpe", d_vocab=270)
    tokenizer = write_text(folder / "tokenizer.json", bpe.model)
    yield Target("tokenizer", tokenizer, hostile_json, _tokenized, ValueError)
    tokens = folder / "own.tokens"
    write_streams(tokens, bpe, [text.read_text()], ["met and met"])
    yield Target("tokens in the cache", tokens, hostile_bytes, partial(read_streams, d_vocab=270), ValueError)


def _report() -> TrustReport:
    curve = {"shares": [0.1, 1.0], "random": [0.0, 1.0], "faithfulness": [0.5, 1.0]}
    moves = {"margin_change": {"0.attn_in.1": [0.5, 0.6], "0.mlp_out.2": [-0.2, 0.1]}}
    entries = [
        Entry(name=name, meaning="What it says.", value=0.9, baseline=0.1, verdict="pass", details=details)
        for name, details in (("CPR", curve), ("interchange", moves), ("sufficiency", {}))
    ]
    entries.append(replace(entries[2], name="seeds", value=float("nan"), verdict="not run", unit="nats"))
    return TrustReport(
        task="quotes",
        model_hash="0123456789abcdef",
        n_nodes=5,
        n_edges=4,
        entries=tuple(entries),
        seconds=2.0,
    )


def _configured(make: Callable[[Any], Any], old: Any, path: Path) -> Any:
    return configured(make, path, {}, file=read_config(path, old))


def both_ways(path: Path) -> SparseTransformer:
    """A checkpoint's model, loaded dense and compact. Raises AssertionError where the two disagree."""
    dense, compact = (_fingerprint(path, compact) for compact in (False, True))
    assert dense == compact, f"dense gives {dense}, compact {compact}"
    return load_checkpoint(path).model


def _fingerprint(path: Path, compact: bool) -> str:
    try:
        return load_checkpoint(path, compact=compact).model.fingerprint()
    except UnreadableError:
        return "refused"


def _resumed(run: Any, path: Path) -> None:
    """Take a run up and do a step. A loss that explodes stops it, as it stops any run."""
    run.restore(path)
    try:
        run.one_step()
    except NotFiniteError as error:
        raise UnreadableError(str(error)) from None


def _shown_circuit(path: Path) -> str:
    """All that only looks at a circuit."""
    circuit = Circuit.load(path)
    circuit.to_mask()
    circuit.to_networkx()
    _check_markup(circuit._repr_html_())
    return repr(circuit)


def _shown_report(path: Path) -> str:
    report = TrustReport.load(path)
    _check_markup(report._repr_html_())
    return f"{report}{report!r}{report.verdict}"


def _circuit_page(path: Path) -> None:
    circuit = Circuit.load(path)
    _check_page(path, lambda page: demo_page(page, circuit, circuit.summary(), search_figures(circuit)))


def _trust_page(path: Path) -> None:
    report = TrustReport.load(path)
    _check_page(path, lambda page: trust_page(page, report))


def _graph_page(path: Path) -> None:
    _check_page(path, lambda page: graph_to_html(path, page))


def _explored(made: Any, path: Path) -> None:
    """The page that runs a circuit, and the code that computes it: one function with plain statements."""
    circuit = Circuit.load(path)
    _check_page(path, lambda page: circuit.to_html(page, made.model, made.task, n_prompts=2, n_pairs=8))
    module = ast.parse(circuit.to_python(made.model, made.task))
    imported = {
        alias.name for node in ast.walk(module) if isinstance(node, ast.Import) for alias in node.names
    }
    assert imported <= {"numpy", "base64", "math", "zlib"}, f"it imports {imported}"


def _in_folder(home: Path, name: str, path: Path) -> SparseTransformer:
    """A model in OpenAI's format, one of whose two files is this one."""
    with tempfile.TemporaryDirectory() as folder:
        for other in (WEIGHTS, OPENAI_CONFIG):
            shutil.copy(path if other == name else home / other, Path(folder) / other)
        return load_openai(folder)


def _used_table(path: Path) -> None:
    """A table looked at, worked on and drawn; in a folder of its own, since SQLite puts files beside it."""
    with tempfile.TemporaryDirectory() as folder:
        table = RunTable(shutil.copy(path, Path(folder) / "runs.sqlite"), shared=True)
        table.progress()
        table.rows()
        _check_page(Path(folder) / "page", lambda page: sweep_page(table, page))
        table.claim("somebody")
        table.retry_failed()


def _pairs(words: WordTokenizer, path: Path) -> None:
    from_pairs(path, words).batch(4, split="test", seed=0)


def _tokenized(path: Path) -> None:
    load_tokenizer(path)


def _check_page(path: Path, write: Callable[[Path], Any]) -> None:
    page = path.with_name(f"{path.name}.html")
    write(page)
    _check_markup(page.read_text())
    page.unlink()


def _check_markup(text: str) -> None:
    """Raise AssertionError where a file's text has become markup."""
    tags = _Tags()
    tags.feed(text)
    tags.close()
    assert tags.started == tags.ended, f"{tags.started} scripts begin, {tags.ended} end"
    assert not tags.acts, f"elements that act: {tags.acts}"


class _Tags(HTMLParser):
    """Counts scripts, and notes elements with handlers and scripts of no ours."""

    def __init__(self) -> None:
        super().__init__()
        self.started = self.ended = 0
        self.acts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what could act."""
        self.started += tag == "script"
        self.acts += [f"{tag} {name}" for name, _ in attrs if name.startswith("on")]

    def handle_endtag(self, tag: str) -> None:
        """Count the ends of scripts."""
        self.ended += tag == "script"

    def handle_data(self, data: str) -> None:
        """Note the script that hostile texts bring."""
        if data.strip() == "alert(1)":
            self.acts.append("script")
