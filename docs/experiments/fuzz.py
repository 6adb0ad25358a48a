"""Every reader of the package against hostile files: each loads or says why not, in time, and within memory."""

import random
import re
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from circuits.bridges import BridgeConfig
from circuits.bridges.maps import identity_bridges, load_bridges
from circuits.circuit.circuit import Circuit
from circuits.commands.shared import configured, read_config
from circuits.files import once, write_json
from circuits.model.checkpoint import load_checkpoint
from circuits.model.config import ModelConfig
from circuits.model.transformer import SparseTransformer
from circuits.pruning.config import PruneConfig
from circuits.reading import UnreadableError
from circuits.training.config import TrainConfig, with_new_names
from circuits.training.loop import Training, _Run, train, with_vocabulary
from circuits.training.saved import load_trained
from circuits.trust import TrustConfig
from docs.experiments.mutate import hostile_json, hostile_tensors
from tasks import load_corpus

SECONDS, WAIT, TIMES, SPARE = 5, 120, 10, 48 * 2**20
"""A case may take so many seconds of the processor and of waiting (others may be at work), and this many times the
memory of its file, beyond the memory of the model of a toy."""
SHAPE = ModelConfig(n_layers=1, d_model=16, n_heads=2, d_head=4, d_mlp=16, n_ctx=16)
CONFIG = TrainConfig(
    model=SHAPE, steps=6, batch_size=2, n_val=2, density=0.3, embed_density=0.5, min_alive=0, log_every=1
)
CIRCUITS = Path(__file__).parents[2] / "tests" / "data" / "format-1"


class Target(NamedTuple):
    """A file that is good, what makes it hostile, and what reads it."""

    name: str
    good: Path
    spoil: Callable[[Path, random.Random], bytes]
    read: Callable[[Path], Any]


@dataclass(frozen=True, kw_only=True)
class Report:
    """What came of the cases."""

    cases: int
    "Files that were read."
    refused: int
    "Of these, refused with the project's own error."
    bad: tuple[str, ...]
    "What went otherwise: another error, too long, too much memory, two readers that disagree."
    kinds: dict[str, int]
    "Bad ones, by reader and kind."


class TookLongError(BaseException):
    """A case is still running."""


def fuzz(cases: int, *, seed: int = 0, say: Callable[[str], None] = print) -> Report:
    """Read `cases` hostile files, in turn for each reader; the same seed gives the same files."""
    with tempfile.TemporaryDirectory() as folder:
        targets = all_targets(Path(folder))
        refused, bad, kinds = 0, [], Counter[str]()
        for case in range(cases):
            target = targets[case % len(targets)]
            rng = random.Random(f"{seed}/{case}")
            told = one_case(target, rng, Path(folder) / "hostile.file")
            refused += told == ""
            if told:
                bad.append(f"case {case}, {target.name}: {told}")
                kinds[f"{target.name}: {told.partition(':')[0]}"] += 1
                say(bad[-1])
    return Report(cases=cases, refused=refused, bad=tuple(bad), kinds=dict(kinds))


def one_case(target: Target, rng: random.Random, path: Path) -> str | None:
    """Empty where a hostile file was refused, None where it could be read, else what is wrong with the reader."""
    data = target.spoil(target.good, rng)
    path.write_bytes(data)
    before, started, told = peak(reset=True), time.process_time(), None
    try:
        with at_most(SECONDS, WAIT):
            target.read(path)
    except UnreadableError as error:
        told = "" if len(str(error)) < 5000 else "message: too long"
    except TookLongError:
        return f"hang: over {SECONDS} s, or {WAIT} s of waiting"
    except BaseException as error:
        return f"{type(error).__name__}: {str(error)[:200]}"
    if time.process_time() - started > SECONDS:
        return f"hang: {time.process_time() - started:.1f} s"
    grown = peak() - before
    return f"memory: {grown} bytes for {len(data)}" if grown > TIMES * len(data) + SPARE else told


def peak(*, reset: bool = False) -> int:
    """Most bytes that this process has held at once, since the last reset."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None, "Linux says how much memory a process has held"
    return 1024 * int(found[1])


@contextmanager
def at_most(seconds: int, wait: int) -> Iterator[None]:
    """Inside, TookLongError is raised after so many seconds of the processor, or so many by the clock."""
    timers = {signal.SIGPROF: (signal.ITIMER_PROF, seconds), signal.SIGALRM: (signal.ITIMER_REAL, wait)}
    before = {number: signal.signal(number, _stop) for number in timers}
    for timer, limit in timers.values():
        signal.setitimer(timer, limit)
    try:
        yield
    finally:
        for timer, _ in timers.values():
            signal.setitimer(timer, 0)
        for number, own in before.items():
            signal.signal(number, own)


def _stop(number: int, frame: FrameType | None) -> None:
    raise TookLongError


def all_targets(folder: Path) -> list[Target]:
    """Good files of every kind in `folder`, and every reader of each."""
    corpus = load_corpus("mini")
    run = _Run(with_vocabulary(CONFIG, corpus), corpus)
    run.one_step()
    stopped = run.save(folder / "stopped.safetensors")
    done = train(CONFIG, progress=False)
    finished = done.save(folder / "finished.safetensors")
    model = load_checkpoint(CIRCUITS / "model.safetensors").model
    bridges = identity_bridges(model).save(folder / "bridges.safetensors")
    circuits = [Circuit.load(CIRCUITS / f"{name}.json") for name in ("mean", "position", "resample")]
    sealed = [circuit.save(folder / f"{i}.json") for i, circuit in enumerate(circuits)]
    kept = write_json(folder / "kept.json", {"settings": {"a": 1}, "result": {"loss": 0.5, "seconds": 1.0}})
    tensors: list[tuple[str, Path, Callable[[Path], Any]]] = [
        ("checkpoint", finished, both_ways),
        ("finished run", finished, Training.load),
        ("trained model", finished, load_trained),
        ("run to resume", stopped, partial(_resumed, run)),
        ("older checkpoint", CIRCUITS / "model.safetensors", both_ways),
        ("bridges", bridges, partial(load_bridges, dense=model, sparse=model)),
    ]
    texts: list[tuple[str, Path, Callable[[Path], Any]]] = [
        *(("circuit", path, _shown_circuit) for path in (*sealed, CIRCUITS / "mean.json")),
        ("kept result", kept, partial(once, settings={"a": 1}, run=_nothing)),
        *_configs(folder),
    ]
    found = [Target(name, path, hostile_tensors, read) for name, path, read in tensors]
    return found + [Target(name, path, hostile_json, read) for name, path, read in texts]


def _configs(folder: Path) -> Iterator[tuple[str, Path, Callable[[Path], Any]]]:
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


def _configured(make: Callable[[Any], Any], old: Any, path: Path) -> Any:
    return configured(make, path, {}, file=read_config(path, old))


def _nothing() -> dict[str, Any]:
    return {}


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


def _resumed(run: _Run, path: Path) -> None:
    run.restore(path)
    run.one_step()


def _shown_circuit(path: Path) -> str:
    """All that only looks at a circuit."""
    circuit = Circuit.load(path)
    circuit.to_mask()
    circuit.to_networkx()
    assert "<script" not in circuit._repr_html_(), "markup of a file is shown as markup"
    return repr(circuit)
