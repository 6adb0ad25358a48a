"""What is not a number is refused or said, wherever a score, a check or a file could hide it."""

import json
import math
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from circuits import files
from circuits.bridges import BridgeConfig, fit_bridges
from circuits.circuit import task_score
from circuits.circuit.circuit import Circuit
from circuits.circuit.score import score_against, score_margins
from circuits.files import (
    UnwritableError,
    check_writable,
    json_text,
    write_file,
    write_json,
)
from circuits.heads import copying_scores
from circuits.model.checkpoint import load_checkpoint, save_checkpoint
from circuits.model.config import ModelConfig
from circuits.model.transformer import SparseTransformer
from circuits.pruning.config import PruneConfig
from circuits.pruning.procedure import prune
from circuits.signals import heeding_interrupts, unbroken
from circuits.statistics import interval, share_of, spearman
from circuits.training import TrainConfig, Training, TrainingDiverged, TrainingInterrupted, train
from circuits.training.steps import run_to_end, whole_steps
from circuits.trust.report import judged
from tasks import load_corpus, load_task

SHAPE = ModelConfig(n_layers=1, d_model=16, n_heads=2, d_head=4, d_mlp=16, n_ctx=40)
TINY = TrainConfig(
    model=SHAPE, steps=6, batch_size=2, n_val=2, density=0.3, embed_density=0.5, min_alive=0, log_every=1
)


def untrained() -> SparseTransformer:
    d_vocab = load_corpus("mini").tokenizer.d_vocab
    return SparseTransformer(replace(SHAPE, d_vocab=d_vocab), seed=0)


def broken() -> SparseTransformer:
    model = untrained()
    with torch.no_grad():
        model.unembed.b_U.fill_(torch.nan)
    return model


# Scores.


def test_a_model_with_nan_has_no_score_and_no_circuit():
    task = load_task("quotes")
    with pytest.raises(ValueError, match="differ by NaN or infinity on 8 of 8 prompts"):
        task_score(broken(), task.batch(4, split="test", seed=0))
    config = PruneConfig(objective="faithful", starts=1, steps=2, n_eval=8, n_test=8, n_mean=4)
    with pytest.raises(ValueError, match="model: the logits of answer and foil"):
        prune(broken(), task, config, progress=False)


def test_margins_that_are_not_finite_are_refused():
    bad, good = torch.tensor([1.0, torch.nan]), torch.tensor([1.0, 2.0])
    for score in (
        lambda: score_margins(bad),
        lambda: score_against(bad, bad),
        lambda: score_against(good, bad),
    ):
        with pytest.raises(ValueError, match="NaN or infinity on 1 of 2"):
            score()


def test_scores_of_heads_refuse_a_nan_weight():
    model = untrained()
    with torch.no_grad():
        model.linear(0, "W_V").weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match="W_V holds NaN or infinity at"):
        copying_scores(model)


# Statistics.


def test_a_share_of_nothing_is_none():
    assert share_of(11.24 - 9.555, 9.555 - 9.565) is None
    assert share_of(1.0, 0.0) is None
    assert share_of(0.5, 2.0) == 0.25
    assert judged(math.nan, True) == "not run"
    assert [judged(1.0, True), judged(1.0, False), judged(1.0, None)] == ["pass", "fail", "note"]


def test_order_and_interval_of_nan_are_nan():
    assert math.isnan(spearman([1, 2, math.nan, 4], [1, 2, 3, 4]))
    assert spearman([1, 2, math.inf], [1, 2, 3]) == pytest.approx(1)
    assert all(math.isnan(end) for values in ([], [1.0, math.nan]) for end in interval(values))
    assert interval([3.0]) == [3.0, 3.0]


# Training.


def test_training_stops_at_a_loss_that_is_not_finite_and_keeps_what_was_good(tmp_path):
    path = tmp_path / "run.safetensors"
    with pytest.raises(
        TrainingDiverged, match=r"lr: the (validation )?loss is [\w.+]+ at step \d.*Lower lr"
    ) as stopped:
        train(replace(TINY, lr=1e10), progress=False, checkpoint=path)
    assert stopped.value.path == path
    kept = load_checkpoint(path).model
    assert all(bool(weight.isfinite().all()) for weight in kept.parameters())
    with pytest.raises(ValueError, match="holds a finished model|another config"):
        train(TINY, progress=False, resume=path)


def test_one_token_has_no_loss():
    with pytest.raises(ValueError, match="tokens: got sequences of 1 token for a loss"):
        untrained()(torch.zeros(2, 1, dtype=torch.int64), return_type="loss")


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_gradients_are_switched_on_where_they_are_needed(mode):
    task = load_task("quotes")
    config = PruneConfig(
        objective="faithful",
        target_loss=9.0,
        target_accuracy=0.0,
        starts=1,
        steps=2,
        n_eval=8,
        n_test=8,
        n_mean=4,
    )
    with mode():
        trained = train(TINY, progress=False)
        circuit = prune(trained.model, task, config, progress=False)
        assert torch.is_grad_enabled() is False
    assert circuit.n_nodes >= 0
    assert trained.model.fingerprint() == train(TINY, progress=False).model.fingerprint()


def test_weights_made_in_inference_mode_are_refused_by_name():
    model = untrained()
    with torch.inference_mode():
        model = model.double()
        if not any(parameter.is_inference() for parameter in model.parameters()):
            model.W_E = torch.nn.Parameter(model.W_E.clone())
    with pytest.raises(ValueError, match=r"model: its weights were made inside torch.inference_mode"):
        prune(model, load_task("quotes"), PruneConfig(objective="faithful", n_eval=8), progress=False)


# Files.


def test_json_is_valid_whatever_the_numbers():
    data = {"a": math.nan, "b": (math.inf, 1), "c": torch.tensor([1.0, math.nan]), "d": {"e": -math.inf}}
    assert json.loads(json_text(data)) == {"a": None, "b": [None, 1], "c": [1.0, None], "d": {"e": None}}


def test_an_output_is_tried_first_and_leaves_nothing(tmp_path):
    assert check_writable(tmp_path / "new" / "deep" / "file.json") == tmp_path / "new" / "deep" / "file.json"
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("kept")
    for path in (tmp_path, tmp_path / "file" / "below.json"):
        with pytest.raises(UnwritableError, match="out: .* cannot be written"):
            check_writable(path)
    assert check_writable(tmp_path / "file").read_text() == "kept"
    with pytest.raises(ValueError, match="checkpoint: .* is a folder"):
        train(TINY, progress=False, checkpoint=tmp_path)


def test_what_cannot_be_written_in_the_end_is_kept_elsewhere(tmp_path):
    (tmp_path / "out.json").mkdir()
    with pytest.raises(UnwritableError, match="it is kept in") as failed:
        write_json(tmp_path / "out.json", {"a": 1})
    assert failed.value.kept is not None
    assert json.loads(failed.value.kept.read_text()) == {"a": 1}
    failed.value.kept.unlink()
    failed.value.kept.parent.rmdir()


def test_a_mistake_of_the_writer_is_no_fault_of_the_place(tmp_path):
    def wrong(path: Path) -> None:
        raise TypeError("not this")

    with pytest.raises(TypeError, match="not this"):
        write_file(tmp_path / "out.json", wrong)
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_waits_for_a_file(tmp_path):
    path = tmp_path / "out.txt"

    def write(partial: Path) -> None:
        signal.raise_signal(signal.SIGINT)
        partial.write_text("whole")

    with pytest.raises(KeyboardInterrupt):
        write_file(path, write)
    assert path.read_text() == "whole"
    with pytest.raises(KeyboardInterrupt), unbroken():
        signal.raise_signal(signal.SIGINT)


class _Steps:
    """A run whose save is interrupted again."""

    def __init__(self) -> None:
        self.history: list[dict[str, int | float]] = []
        self.step = 0

    def progress(self) -> float:
        return 0.0

    def one_step(self) -> None:
        self.history.append({"step": 1})
        signal.raise_signal(signal.SIGINT)

    def save(self, path: str | Path) -> Path:
        signal.raise_signal(signal.SIGINT)
        return files.write_text(path, "whole")


def test_a_second_ctrl_c_lets_the_save_finish(tmp_path):
    path = tmp_path / "run"
    with pytest.raises(TrainingInterrupted) as stopped:
        run_to_end(_Steps(), name="run", describe=str, checkpoint=path, shown=False)
    assert stopped.value.path == path
    assert path.read_text() == "whole"


def test_ctrl_c_that_nobody_asked_for_is_not_lost():
    with pytest.raises(KeyboardInterrupt), whole_steps():
        signal.raise_signal(signal.SIGINT)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_ctrl_c_in_a_finaliser_is_heeded_afterwards():
    class Dies:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGINT)

    after = []

    def work() -> None:
        with heeding_interrupts():
            thing = Dies()
            del thing
            after.append("swallowed")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert after == ["swallowed"]


@pytest.mark.parametrize(
    "text", ["[]", "5", "{}", "not JSON", '{"schema": "sparse-circuits/circuit/1", "nodes": 5}', ""]
)
def test_a_file_that_is_no_circuit_is_refused_with_its_path(tmp_path, text):
    path = tmp_path / "c.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"c\.json.*Circuit"):
        Circuit.load(path)
    for load in (load_checkpoint, Training.load, lambda p: train(TINY, progress=False, resume=p)):
        with pytest.raises(ValueError, match=r"c\.json cannot be read as a checkpoint"):
            load(path)


def test_circuit_json_that_is_no_object_is_refused():
    with pytest.raises(ValueError, match="schema: got 'list'"):
        Circuit.from_json([1])


def test_a_checkpoint_that_is_no_run_is_not_resumed(tmp_path):
    path = save_checkpoint(tmp_path / "m.safetensors", untrained())
    with pytest.raises(ValueError, match=r"resume: .*m\.safetensors holds a model alone"):
        train(TINY, progress=False, resume=path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"m\.safetensors cannot be read as a checkpoint"):
        train(TINY, progress=False, resume=path)


def test_a_fit_of_bridges_that_diverges_keeps_what_was_good(tmp_path):
    model, path = untrained(), tmp_path / "maps.safetensors"
    config = BridgeConfig(lr=1e30, steps=4, n_val=2, batch_size=2, init="random")
    with pytest.raises(TrainingDiverged, match="lr: .*finite"):
        fit_bridges(model, model, load_corpus("mini"), config, checkpoint=path, progress=False)
    saved = load_checkpoint(path)
    assert saved.extra
    assert all(bool(value.isfinite().all()) for value in saved.extra.values())
