"""Training over several processes: the same losses and the same bits in each, one that stops stops all, none hangs."""

import importlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from interrupted import before_step
from torch import nn

from circuits.files import write_json
from circuits.model.compute import sparse_compute
from circuits.model.config import ModelConfig
from circuits.training.config import TrainConfig
from circuits.training.loop import Training, new_model, train, with_vocabulary
from circuits.training.numbered import Keep, Numbered
from circuits.training.ranks import ALONE, Ranks, joined
from circuits.training.updates import learning_rate, project
from docs.experiments import processes
from docs.experiments.processes import Raised, apart
from tasks import load_corpus

ROOT = Path(__file__).parent.parent
LOOP = importlib.import_module("circuits.training.loop")
SMALL = ModelConfig(n_layers=1, d_model=32, n_heads=2, d_head=8, d_mlp=48, n_ctx=16)
QUICK = TrainConfig(model=SMALL, steps=16, batch_size=4, density=0.1, n_val=8, log_every=4, val_every=8)
WAYS = ("exact", "support")


def curve(training: Training) -> list[float]:
    return [entry["loss"] for entry in training.history]


def told(config: TrainConfig, **options) -> tuple[list[float], str]:
    done = train(config, progress=False, **options)
    return curve(done), done.model.fingerprint()


def in_ranks(function, **options):
    """`processes.in_ranks`, where it can run."""
    if torch.cuda.is_initialized():
        pytest.skip(
            "this process has used a GPU, which forked ones cannot share: run tests/test_ranks.py by itself"
        )
    return processes.in_ranks(function, **options)


# One process.


@pytest.mark.parametrize("way", WAYS)
def test_one_process_is_the_plain_loop_to_the_bit(way):
    """The twin that defines it: one loss, one backward pass, and nothing of ranks or parts."""
    config = with_vocabulary(replace(QUICK, weight_gradient=way), corpus := load_corpus("mini", 0))
    model, generator = new_model(config, corpus), torch.Generator().manual_seed(config.seed)
    adam = torch.optim.Adam(model.parameters(), lr=config.lr, betas=config.betas, eps=config.eps, fused=True)
    losses = []
    for step in range(config.steps):
        progress = step / config.steps
        tokens = corpus.windows(config.batch_size, SMALL.n_ctx, split="train", generator=generator)
        with sparse_compute(model, "exact" if step % config.refresh == 0 else way):
            loss = model(tokens, return_type="loss")
        adam.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        density = max(config.density, 1 + (progress - 0.01) / 0.49 * (config.density - 1)) if step else 1.0
        lr = adam.param_groups[0]["lr"] = learning_rate(config, progress, density)
        adam.step()
        project(model, config, progress)
        with torch.no_grad():
            for matrix in model.matrices():
                if matrix.parameter.ndim == 2:
                    matrix.parameter.mul_(1 - config.weight_decay * lr)
        losses.append(float(loss.detach()))
    run = train(replace(QUICK, weight_gradient=way, log_every=1), progress=False)
    assert (curve(run), run.model.fingerprint()) == (losses, model.fingerprint())


def test_alone_nothing_is_sent_and_no_group_is_made(monkeypatch):
    monkeypatch.setattr(dist, "all_reduce", lambda *args, **kwargs: pytest.fail("something was sent"))
    tensor, batch = torch.ones(3), torch.arange(4)
    with joined() as ranks:
        assert ranks == ALONE
        assert not dist.is_initialized()
        ranks.add_up([tensor])
        ranks.check_same([("tensor", tensor)], "now")
        ranks.wait()
        assert ranks.highest(7) == 7
        assert torch.equal(ranks.rows(batch), batch)
    assert torch.equal(tensor, torch.ones(3))


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE: got 'two' in the environment; expected a whole number"),
        ({"WORLD_SIZE": "2", "RANK": "-1"}, "RANK: got '-1'"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "WORLD_SIZE: got 2 .* without .*'MASTER_ADDR', 'MASTER_PORT'"),
    ],
)
def test_an_environment_that_is_not_torchruns_is_refused(monkeypatch, environment, said):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=said), joined():
        pass


def test_a_device_that_is_not_there_is_refused():
    for device in ("tpu", "cuda") if not torch.cuda.is_available() else ("tpu",):
        with pytest.raises(ValueError, match=f"device: got '{device}' for process 0"), joined(device):
            pass


def test_what_ranks_cannot_share_is_refused_before_any_work(monkeypatch):
    monkeypatch.setattr(LOOP._Run, "__init__", lambda *args: pytest.fail("training started"))
    two = Ranks(rank=1, size=2)
    with pytest.raises(ValueError, match="minutes: got 1 for 2 processes, whose clocks differ"):
        train(replace(QUICK, minutes=1.0), ranks=two, progress=False)
    with pytest.raises(ValueError, match="batch_size: got 6; expected a multiple of 4, for 2 processes that"):
        train(replace(QUICK, batch_size=6, accumulate=2), ranks=two, progress=False)
    with pytest.raises(ValueError, match="accumulate: got 3; expected a divisor of 4, batch_size"):
        replace(QUICK, accumulate=3)


# Two processes.


@pytest.mark.usefixtures("in_float64")
@pytest.mark.parametrize("way", WAYS)
def test_two_processes_train_as_one(way):
    config = replace(QUICK, weight_gradient=way, log_every=1)
    one, (first, second) = train(config, progress=False), in_ranks(partial(told, config))
    assert first == second, "both have all losses and the same weights"
    assert apart(curve(one), first[0]) < 1e-10
    assert not dist.is_initialized()


def test_two_processes_are_one_that_takes_two_parts_to_the_bit():
    config = replace(QUICK, log_every=1)
    parts = told(replace(config, accumulate=2))
    assert in_ranks(partial(told, config)) == [parts, parts]


@pytest.mark.usefixtures("in_float64")
def test_parts_over_processes_are_the_same_loss_again():
    config = replace(QUICK, accumulate=2, log_every=1)
    whole = curve(train(replace(config, accumulate=1), progress=False))
    first, second = in_ranks(partial(told, config))
    assert first == second
    assert apart(whole, first[0]) < 1e-10


def test_sums_are_the_same_bits_in_all_ranks_and_groups_of_ones_own_are_left():
    def work():
        with joined() as ranks, joined() as inner:
            assert inner == ranks
            own = torch.full((3, 2), 0.1 + ranks.rank)
            both = [own, torch.tensor(float(ranks.rank))]
            inner.add_up(both)
            rows = ranks.rows(torch.arange(6).view(6, 1))
            found = (own.tolist(), float(both[1]), rows.flatten().tolist(), ranks.highest(ranks.rank + 5))
        assert not dist.is_initialized()
        return found

    first, second = in_ranks(work)
    assert first[:2] == second[:2] == (torch.full((3, 2), 0.1 + 1.1).tolist(), 1.0)
    assert (first[2], second[2]) == ([0, 1, 2], [3, 4, 5])
    assert first[3] == second[3] == 6


@pytest.mark.parametrize("what", ["values", "nonzeros"])
def test_ranks_that_part_say_which_tensor(monkeypatch, what):
    def spoil(run) -> None:
        if run.ranks.rank == 1:
            weight = run.model.blocks[0].mlp.up.weight.data
            at = tuple((weight != 0).nonzero()[0])
            weight[at] = weight[at] * 1.001 if what == "values" else 0.0

    before_step(monkeypatch, 3, spoil)  # the next entry of the history is that of step 4
    # Neither the projection nor Adam may mend it before.
    monkeypatch.setattr(LOOP.Updates, "step", lambda updates, progress: (1.0, 0.0))
    for rank in in_ranks(partial(told, QUICK)):
        assert isinstance(rank, Raised)
        assert rank.kind == "RankError"
        assert f"blocks.0.mlp.up.weight has other {what} in rank 1 than in rank 0 at step 4" in rank.said


def test_ranks_that_start_apart_are_noticed_before_the_first_step(monkeypatch):
    monkeypatch.setattr(LOOP._Run, "one_step", lambda run: pytest.fail("training started"))

    def work():
        return told(replace(QUICK, seed=int(os.environ["RANK"])))

    for rank in in_ranks(work):
        assert rank.kind == "RankError"
        assert "config, text and step has other values in rank 1 than in rank 0 at step 0" in rank.said


@pytest.mark.parametrize("how", ["dies", pytest.param("hangs", marks=pytest.mark.slow)])
def test_a_rank_that_is_lost_does_not_keep_the_others(tmp_path, monkeypatch, how):
    numbered = Numbered(tmp_path / "kept", Keep(steps=2))

    def lose(run) -> None:
        if run.ranks.rank == 1:
            time.sleep(0 if how == "dies" else 8)
            os._exit(1)

    before_step(monkeypatch, 5, lose)

    def work():
        with joined(patience=3.0) as ranks:
            return told(QUICK, ranks=ranks, numbered=numbered)

    first, second = in_ranks(work, seconds=30.0)
    assert second is None
    assert first.kind == "RankError"
    assert "another process of this training is gone, or was not heard of in time" in first.said
    assert "The last checkpoint to go on from is" in first.said
    assert "step-000000004.safetensors" in first.said


def test_a_signal_to_one_stops_all_and_both_go_on_from_what_rank_0_left(tmp_path, monkeypatch):
    path = tmp_path / "stopped.safetensors"
    whole = in_ranks(partial(told, QUICK))
    with monkeypatch.context() as patch:
        before_step(patch, 9, lambda run: run.ranks.rank == 1 and signal.raise_signal(signal.SIGINT))
        stopped = in_ranks(partial(told, QUICK, checkpoint=path))
    assert [rank.kind for rank in stopped] == ["TrainingInterrupted"] * 2
    assert all(str(path) in rank.said for rank in stopped)
    assert list(tmp_path.iterdir()) == [path]
    assert in_ranks(partial(told, QUICK, resume=path)) == whole


def test_a_loss_that_explodes_stops_all_and_rank_0_keeps_the_weights(tmp_path, monkeypatch):
    path = tmp_path / "bad.safetensors"

    def spoil(run) -> None:
        run.model.unembed.b_U.data[0] = float("nan")

    before_step(monkeypatch, 5, spoil)
    stopped = in_ranks(partial(told, QUICK, checkpoint=path))
    assert [rank.kind for rank in stopped] == ["TrainingDiverged"] * 2
    assert list(tmp_path.iterdir()) == [path]


def test_rank_0_alone_keeps_checkpoints_and_logs(tmp_path):
    numbered = Numbered(tmp_path / "kept", Keep(steps=4, last=99))

    def work():
        logged = []
        train(QUICK, progress=False, numbered=numbered, log=logged.append)
        return [entry["step"] for entry in logged]

    assert in_ranks(work) == [[1, 4, 8, 12, 16], []]
    assert [path.name[5:14] for path in numbered.files()] == ["000000004", "000000008", "000000012"]


@pytest.mark.slow
def test_torchrun_trains_stops_and_resumes(tmp_path):
    """The command as users give it; SIGTERM goes to torchrun, which passes it on."""
    out, one = tmp_path / "two.safetensors", tmp_path / "one.safetensors"
    config = write_json(tmp_path / "c.json", {**QUICK.to_json(), "steps": 60})
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    train_it = ["-m", "circuits", "train", "--config", str(config), "--json", "--out"]
    both = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", *train_it, str(out)]
    both += ["--keep-steps", "4"]
    with subprocess.Popen(
        both, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as run:
        while not list(tmp_path.glob("two.checkpoints/step-*")):
            assert run.poll() is None, run.stderr and run.stderr.read()
            time.sleep(0.01)
        run.terminate()
        run.communicate()
    assert (tmp_path / "two.interrupted.safetensors").exists()
    assert not out.exists()
    done = subprocess.run([*both, "--resume"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('"val_loss"') == 1, "rank 0 alone speaks"
    alone = subprocess.run([sys.executable, *train_it, str(one)], cwd=tmp_path, env=environment)
    assert alone.returncode == 0
    assert apart(curve(Training.load(one)), curve(Training.load(out))) < 0.1  # see `in_float64`
    assert not (tmp_path / "two.checkpoints").exists()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("way", WAYS)
def test_a_gpu_trains_as_the_cpu_does(precision, way):
    config = replace(QUICK, weight_gradient=way, precision=precision)
    with joined("cuda") as ranks:
        run = train(config, ranks=ranks, progress=False)
    assert {parameter.dtype for parameter in run.model.parameters()} == {torch.float32}
    assert apart(curve(train(config, progress=False)), curve(run)) < (
        1e-2 if precision == "float32" else 5e-2
    )
