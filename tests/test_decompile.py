"""Circuits as source: the function runs with numpy alone and gives what the masked model gives."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from circuits.circuit.ablation import mean_values
from circuits.circuit.circuit import Circuit
from circuits.circuit.criterion import Criterion
from circuits.circuit.evaluator import Evaluator
from circuits.circuit.masked import run_circuit
from circuits.circuit.nodes import Edge, Node
from circuits.circuit.parts import edges_between
from circuits.decompile import describe, function_name, to_python
from circuits.decompile.observe import Observed
from circuits.handmade import Handmade, build, quotes
from circuits.model.config import ModelConfig
from circuits.model.transformer import SparseTransformer
from tasks import Task, load_task

RUNNER = """
import sys
sys.path.append({site!r})
import json, importlib.util
spec = importlib.util.spec_from_file_location("circuit", {path!r})
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
assert "torch" not in sys.modules and "circuits" not in sys.modules
prompts = json.load(sys.stdin)
print(json.dumps([module.{name}(prompt).tolist() for prompt in prompts]))
"""


def masked(
    model: SparseTransformer, circuit: Circuit, task: Task, n: int
) -> tuple[list[list[int]], np.ndarray]:
    """Prompts, and the masked model's logits of the task's answers after each."""
    targets = task.batch(n // 2, split="test", seed=5).tokens_and_targets()
    sample = task.batch(512, split="train", seed=0)
    answers = sorted(set(sample.answer.tolist()) | set(sample.foil.tolist()))
    with torch.no_grad():
        logits = run_circuit(model, circuit, targets.tokens)
    at_end = logits[torch.arange(len(logits)), targets.position][:, answers]
    rows = zip(targets.tokens.tolist(), targets.position.tolist(), strict=True)
    return [row[: end + 1] for row, end in rows], at_end.numpy()


def run(source: str, name: str, prompts: list[list[int]]) -> np.ndarray:
    space: dict = {}
    exec(source, space)
    return np.array([space[name](prompt) for prompt in prompts])


@pytest.fixture(scope="module")
def only_numpy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that numpy, and nothing else, can be imported from."""
    folder = tmp_path_factory.mktemp("site")
    package = Path(np.__file__).parent
    for name in ("numpy", "numpy.libs"):
        if (package.parent / name).exists():
            (folder / name).symlink_to(package.parent / name)
    return folder


def test_a_thousand_prompts_in_a_fresh_interpreter(only_numpy: Path, tmp_path: Path) -> None:
    made = build("quotes", 1, topk_fraction=0.5)
    path = tmp_path / "circuit.py"
    path.write_text(to_python(made.model, made.circuit, made.task))
    prompts, expected = masked(made.model, made.circuit, made.task, 1000)
    script = RUNNER.format(site=str(only_numpy), path=str(path), name="quotes")
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", script],
        input=json.dumps(prompts),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(np.array(json.loads(done.stdout)), expected, atol=1e-4)


@pytest.mark.parametrize("topk_fraction", [None, 0.5])
@pytest.mark.parametrize("name", ["brackets", "induction", "majority", "modular"])
def test_agrees_with_the_masked_model(name: str, topk_fraction: float | None) -> None:
    made = build(name, 1, topk_fraction=topk_fraction)
    source = to_python(made.model, made.circuit, made.task)
    prompts, expected = masked(made.model, made.circuit, made.task, 40)
    found = run(source, function_name(made.circuit), prompts)
    # Sums add neurons of some hundreds with opposite signs; the last digits of float32 may differ.
    np.testing.assert_allclose(found, expected, atol=max(1e-4, 1e-5 * float(abs(expected).max())))
    if made.circuit.n_nodes <= 12:
        assert len(source.splitlines()) <= 60


@pytest.mark.parametrize(("seed", "act"), [*((seed, "gelu") for seed in range(4)), (1, "relu"), (2, "relu")])
def test_agrees_on_random_models_and_random_circuits(seed: int, act: str) -> None:
    """Bigram table, AbsTopK at a quarter, edges missing, nodes that compete for places, large weights."""
    task = load_task("quotes")
    config = ModelConfig(
        d_vocab=task.tokenizer.d_vocab,
        d_model=16,
        n_heads=2,
        d_head=4,
        d_mlp=24,
        n_ctx=64,
        sink=seed != 3,
        act=act,
    )
    model = SparseTransformer(config, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.7 * torch.randn(parameter.shape, generator=generator))
    circuit = random_circuit(model, generator, task)
    prompts, expected = masked(model, circuit, task, 40)
    found = run(to_python(model, circuit, task), "quotes", prompts)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def random_circuit(model: SparseTransformer, generator: torch.Generator, task: Task) -> Circuit:
    nodes = [
        Node(site.layer, site.name, i)
        for site in model.sites()
        for i in range(model.config.widths[site])
        if torch.rand((), generator=generator) < 0.3
    ]
    edges: list[Edge] = [e for e in edges_between(model, nodes) if torch.rand((), generator=generator) < 0.7]
    text = task.batch(64, split="train", seed=0).clean
    return Circuit(
        nodes=tuple(nodes),
        edges=tuple(edges),
        widths=model.config.widths,
        n_layers=model.config.n_layers,
        criterion=Criterion(task="quotes"),
        model_hash=model.fingerprint(),
        values=mean_values(model, text),
    )


def test_a_line_for_each_node_and_readable_names() -> None:
    made = quotes(1)
    source = to_python(made.model, made.circuit, made.task)
    for node in made.circuit.nodes:
        assert f"_{node.index}" in source
    assert "def quotes(tokens):" in source
    assert "quote_in0_1 = h[:, 1]" in source
    assert source == to_python(made.model, made.circuit, made.task)
    assert source == made.circuit.to_python(made.model, made.task)


class Named:
    """A task under another name, and with other words for its tokens."""

    def __init__(self, task: Any, name: str) -> None:
        self.name, self.tokenizer = name, Worded(task.tokenizer)
        self.batch, self.solve, self.n_ctx = task.batch, task.solve, task.n_ctx


class Worded:
    def __init__(self, tokenizer: Any) -> None:
        self.name, self.d_vocab = "worded", tokenizer.d_vocab
        self.encode, self.decode, self.id = tokenizer.encode, tokenizer.decode, tokenizer.id

    def token(self, token: int) -> str:
        return ['"', "'", "\\", '"' * 3, "\n", "\r", "\u2028", "\x0c", "#", "{x}"][token % 10]


NAMES = {
    "size": "task_size", "attend": "task_attend", "np": "task_np", "class": "task_class", "def": "task_def",
    "len": "task_len", "None": "task_None", "__debug__": "task___debug__", "tokens": "task_tokens",
    "x\nraise SystemExit": "x_raise_SystemExit", "a\r\x0cb": "a__b", "": "circuit", "3d": "task_3d", "²": "task_2",
    "задача": "задача", "\ufb01": "fi", "a{b}": "a_b_", "\ud800": "_", "match": "match",
}  # fmt: skip
"""Tasks, and what their functions are called."""


@pytest.mark.parametrize("name", NAMES)
def test_any_name_and_any_word_gives_source_that_runs(name: str) -> None:
    made = quotes(1)
    task = Named(made.task, name)
    circuit = replace(made.circuit, criterion=replace(made.circuit.criterion, task=name, task_options=None))
    source = to_python(made.model, circuit, task)
    assert function_name(circuit) == NAMES[name]
    prompts, expected = masked(made.model, made.circuit, made.task, 4)
    module: dict[str, Any] = {}
    exec(compile(source, "source", "exec"), module)
    np.testing.assert_allclose([module[NAMES[name]](list(row)) for row in prompts], expected, atol=1e-4)
    assert len(source.splitlines()) == len(to_python(made.model, made.circuit, made.task).splitlines())


def test_describe_says_what_each_node_does() -> None:
    made: Handmade = quotes(1)
    text = describe(made.model, made.circuit, made.task)
    for node in made.circuit.nodes:
        assert f"\n{node}\n" in text
    assert text.count("highest at:") == text.count("without it: loss") == made.circuit.n_nodes
    assert "writes: logit" in text
    assert text == made.circuit.describe(made.model, made.task)


def test_describe_scores_as_pruning_did() -> None:
    """By the circuit's criterion: where that calibrates, with one factor on the logits, fitted as pruning fits it."""
    made = quotes(1)
    calibrated = replace(
        made.circuit, criterion=replace(made.circuit.criterion, objective="task", calibrate=True)
    )
    plain, scaled = (Observed(made.model, c, made.task, 16) for c in (made.circuit, calibrated))
    judge = Evaluator(made.model, made.task, calibrated.criterion, dict(calibrated.values))
    assert plain.scale == 1
    assert scaled.scale == judge.scale(calibrated.nodes, calibrated.edges) > 1
    assert scaled.loss(made.circuit.nodes) < 0.5 * plain.loss(made.circuit.nodes)


def test_a_circuit_of_another_model_is_refused() -> None:
    with pytest.raises(ValueError, match="belongs to model"):
        to_python(quotes(2).model, quotes(1).circuit, load_task("quotes"))


def test_a_circuit_whose_outside_is_no_constant_is_refused() -> None:
    made = quotes(1)
    with pytest.raises(ValueError, match="found under 'resample' ablation"):
        to_python(
            made.model,
            replace(made.circuit, criterion=replace(made.circuit.criterion, ablation="resample")),
            made.task,
        )
