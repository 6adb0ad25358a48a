"""Training: same seed same bits, exact density, resumable, errors before any work."""

import importlib
import signal

import pytest
import torch

from circuits.model.checkpoint import load_checkpoint, save_checkpoint
from circuits.model.config import ModelConfig
from circuits.model.transformer import SparseTransformer
from circuits.training.config import TrainConfig
from circuits.training.loop import Training, new_model, train, with_vocabulary
from circuits.training.projection import budget
from circuits.training.saved import load_trained
from circuits.training.steps import TrainingInterrupted
from circuits.training.updates import learning_rate
from circuits.zoo import load
from tasks import bigram_log_probs, load_corpus

SMALL = ModelConfig(n_layers=1, d_model=32, n_heads=2, d_head=8, d_mlp=48, n_ctx=16)
QUICK = TrainConfig(model=SMALL, steps=24, batch_size=4, density=0.1, n_val=8, log_every=4, val_every=8)


@pytest.fixture(scope="module")
def trained() -> Training:
    return train(QUICK, progress=False)


@pytest.mark.parametrize("recipe", ["toy", "paper"])
def test_density_is_exact_in_every_tensor_and_no_unit_is_below_j(recipe):
    make = {"toy": TrainConfig.toy, "paper": TrainConfig.paper}[recipe]
    config = make(model=SMALL, steps=24, batch_size=4, density=0.15, embed_density=0.2, min_alive=3, n_val=8)
    model = train(config, progress=False).model
    for matrix in model.matrices():
        density = 0.2 if matrix.group == "embed" else 0.15
        assert int(matrix.parameter.count_nonzero()) == budget(matrix.parameter.numel(), density), matrix.name
        if matrix.unit_axis is not None:
            assert int((matrix.parameter != 0).sum(1 - matrix.unit_axis).min()) >= 3, matrix.name


def test_same_seed_same_bits_other_seed_other_bits(trained):
    assert train(QUICK, progress=False).model.fingerprint() == trained.model.fingerprint()
    other = TrainConfig.from_json({**QUICK.to_json(), "seed": 1})
    assert train(other, progress=False).model.fingerprint() != trained.model.fingerprint()


def test_history_has_what_the_plot_needs(trained):
    assert [entry["step"] for entry in trained.history] == [1, 4, 8, 12, 16, 20, 24]
    assert trained.history[0]["density"] == 1.0
    assert trained.history[-1]["density"] == pytest.approx(0.1)
    assert trained.val_loss == trained.history[-1]["val_loss"]
    assert len(trained.plot().data) >= 3


def test_loss_falls():
    config = TrainConfig.dense(model=SMALL, steps=60, batch_size=16, n_val=16, bigram_init="zeros")
    history = train(config, progress=False).history
    assert history[-1]["loss"] < history[0]["loss"] - 0.5


def test_a_fixed_bigram_table_keeps_the_most_frequent_pairs():
    config = TrainConfig.dense(
        model=SMALL, steps=2, n_val=4, batch_size=4, bigram_init="fixed", bigram_density=1 / 8
    )
    corpus = load_corpus("mini")
    config = with_vocabulary(config, corpus)
    kept, whole = new_model(config, corpus).bigram, bigram_log_probs(corpus)
    assert int(kept.count_nonzero()) == kept.numel() // 8
    counted = (whole - whole.min(dim=1, keepdim=True).values)[kept != 0]
    assert torch.equal(kept[kept != 0], counted), "log-probabilities over those of pairs that never occur"
    assert counted.min() >= (whole - whole.min(dim=1, keepdim=True).values)[kept == 0].max()
    trained = train(config, progress=False, corpus=corpus).model
    assert torch.equal(trained.bigram, kept)
    assert not trained.bigram.requires_grad
    with pytest.raises(ValueError, match=r"bigram_density: got 0.5; expected 1 for a table that trains"):
        TrainConfig(bigram_density=0.5)


def test_a_trained_model_comes_with_the_tokenizer_of_its_corpus(tmp_path, trained):
    path = trained.save(tmp_path / "m.safetensors")
    model, corpus = load_trained(path)
    assert corpus is trained.corpus
    assert model.tokenizer is corpus.tokenizer
    assert not model.training
    assert model.fingerprint() == trained.model.fingerprint()
    # Files from before there were hashes: their settings name a corpus, or nothing does.
    trained.model.trained_on = None
    save_checkpoint(path, trained.model)
    assert load_trained(path)[1].name == "mini"
    save_checkpoint(path, trained.model, meta={"train": {"corpus": "nowhere"}})
    with pytest.raises(ValueError, match="the model's text cannot be had .*'nowhere'"):
        load_trained(path)
    trained.model.trained_on = corpus.text_id


def sigint_at(call: int, function, *, times: int = 1):
    """`function`, with Ctrl-C pressed at the start of one of its calls."""
    calls = 0

    def wrapped(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == call:
            for _ in range(times):
                signal.raise_signal(signal.SIGINT)
        return function(*args, **kwargs)

    return wrapped


LOOP = importlib.import_module("circuits.training.loop")
UPDATES = importlib.import_module("circuits.training.updates")
PLACES = {
    "before the step": (LOOP._Run, "one_step", 12, 12),
    "in the forward pass": (SparseTransformer, "forward", 13, 12),  # one has measured the validation loss
    "between optimiser and projection": (UPDATES, "project", 12, 12),
    "in the last step": (UPDATES, "project", 24, 24),
}


@pytest.mark.parametrize("place", PLACES)
def test_ctrl_c_leaves_a_checkpoint_from_which_the_same_bits_follow(tmp_path, monkeypatch, trained, place):
    owner, name, call, step = PLACES[place]
    path, before = tmp_path / "stopped.safetensors", signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, sigint_at(call, getattr(owner, name)))
        with pytest.raises(TrainingInterrupted, match="stopped.safetensors") as stop:
            train(QUICK, checkpoint=path, progress=False)
    assert stop.value.path == path
    assert signal.getsignal(signal.SIGINT) is before
    left = load_checkpoint(path)
    assert left.meta["step"] == step
    assert torch.isfinite(left.model(torch.zeros(1, 4, dtype=torch.long))).all()
    resumed = train(QUICK, resume=path, progress=False)
    assert resumed.model.fingerprint() == trained.model.fingerprint()
    assert [e["loss"] for e in resumed.history] == [e["loss"] for e in trained.history]


def test_a_second_ctrl_c_stops_at_once_and_keeps_nothing(tmp_path, monkeypatch):
    path, before = tmp_path / "stopped.safetensors", signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(UPDATES, "project", sigint_at(3, UPDATES.project, times=2))
    with pytest.raises(KeyboardInterrupt) as stop:
        train(QUICK, checkpoint=path, progress=False)
    assert not isinstance(stop.value, TrainingInterrupted)
    assert not path.exists()
    assert signal.getsignal(signal.SIGINT) is before


def test_resume_refuses_other_configs_and_finished_models(tmp_path, trained):
    path = trained.save(tmp_path / "m.safetensors")
    with pytest.raises(ValueError, match="holds a finished model"):
        train(QUICK, resume=path, progress=False)
    other = TrainConfig.from_json({**QUICK.to_json(), "lr": 0.5})
    with pytest.raises(ValueError, match="belongs to another config"):
        train(other, resume=path, progress=False)


def test_a_density_too_small_for_j_is_refused_before_any_work(monkeypatch):
    monkeypatch.setattr(LOOP._Run, "one_step", lambda run: pytest.fail("training started"))
    config = TrainConfig(model=SMALL, density=0.01, min_alive=4)
    with pytest.raises(
        ValueError, match=r"density: 0.01 is too small for 0.W_Q.*or lower min_alive to at most"
    ):
        train(config, progress=False)


def test_config_errors():
    with pytest.raises(ValueError, match=r"TrainConfig: unknown key \['learning_rate'\]"):
        TrainConfig.from_json({"learning_rate": 1.0})
    with pytest.raises(ValueError, match="density: got 0.0; expected a density in"):
        TrainConfig(density=0.0)
    with pytest.raises(ValueError, match="steps: got 0"):
        TrainConfig(steps=0)
    with pytest.raises(ValueError, match="corpus: got 'nowhere'; expected one of"):
        train(TrainConfig(corpus="nowhere"), progress=False)
    for config in (TrainConfig.paper(), TrainConfig.python(), TrainConfig.dense()):
        assert TrainConfig.from_json(config.to_json()) == config


OLD_NAMES = {"gradient_scaling": "gradient", "weight_gradient": "grad"}


def in_old_names(data):
    return {OLD_NAMES.get(key, key): value for key, value in data.items()}


def test_older_names_of_settings_are_read():
    config = TrainConfig(gradient_scaling="rms", weight_gradient="support")
    old = in_old_names(config.to_json())
    assert (old["gradient"], old["grad"]) == ("rms", "support")
    assert TrainConfig.from_json(old) == config
    with pytest.raises(ValueError, match=r"got both 'grad' and 'weight_gradient', its new name; expected"):
        TrainConfig.from_json({**old, "weight_gradient": "exact"})
    with pytest.raises(
        TypeError, match="'grad' is called 'weight_gradient' now; pass weight_gradient='support'"
    ):
        TrainConfig(grad="support")
    with pytest.raises(TypeError, match="'gradient' is called 'gradient_scaling' now"):
        TrainConfig.paper(gradient="clip")


def test_the_shipped_model_whose_file_has_older_names_loads():
    path = load("mini-python").path
    assert {"grad", "gradient"} <= load_checkpoint(path).meta["train"].keys()
    config = Training.load(path).config
    assert (config.gradient_scaling, config.weight_gradient) == ("clip", "exact")


def test_an_interrupted_run_with_older_names_is_taken_up(tmp_path, monkeypatch, trained):
    path = tmp_path / "stopped.safetensors"
    with monkeypatch.context() as patch:
        patch.setattr(UPDATES, "project", sigint_at(5, UPDATES.project))
        with pytest.raises(TrainingInterrupted):
            train(QUICK, checkpoint=path, progress=False)
    left = load_checkpoint(path)
    meta = {**left.meta, "train": in_old_names(left.meta["train"])}
    save_checkpoint(path, left.model, meta=meta, extra=left.extra)
    assert train(QUICK, resume=path, progress=False).model.fingerprint() == trained.model.fingerprint()


def test_sharkfin_follows_the_density():
    config = TrainConfig(lr=1.0, warmup=0.0, density=0.01)
    assert learning_rate(config, 0.0, 1.0) == pytest.approx(0.1)
    assert learning_rate(config, 0.5, 0.01) == pytest.approx(0.5)
    flat = TrainConfig(lr=1.0, warmup=0.5, sharkfin=False)
    assert learning_rate(flat, 0.25, 1.0) == pytest.approx(0.5)
    assert learning_rate(flat, 0.75, 1.0) == pytest.approx(0.5)


def test_gradient_normalisation_is_over_all_parameters():
    model = SparseTransformer(
        ModelConfig(**{**SMALL.to_json(), "d_vocab": 7, "topk_sites": SMALL.topk_sites})
    )
    model(torch.randint(0, 7, (2, 8)), return_type="loss").backward()
    UPDATES._scale_gradients(model, "rms")
    every = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    assert float(every.square().mean().sqrt()) == pytest.approx(1.0, rel=1e-4)


def test_by_the_clock():
    config = TrainConfig(model=SMALL, steps=10**9, minutes=0.02, batch_size=4, density=0.1, n_val=8)
    result = train(config, progress=False)
    assert result.seconds >= 1.2
    assert result.history[-1]["density"] == pytest.approx(0.1)
    assert result.model.density() < 0.12
