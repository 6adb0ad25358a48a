"""Processes that train one model together: the place of each, what they add up, and what must be the same in all.

Every rank holds the whole model and draws the whole batch of a step, of which it takes its own rows; so the ranks share
nothing but gradients, in one sum a step, and each makes the same update and the same projection of it. One process is
the case of one rank: nothing is sent, and nothing computed that would not be computed anyway.

Why not `DistributedDataParallel`: it averages over ranks, which is not the loss of the whole batch where rows have
different numbers of targets; it sends at each backward pass, which accumulation has to switch off; and it wraps the
model that hooks, sparse compute and checkpoints know by name. What it offers for that, sending while the backward pass
goes on, is small beside a step of models of this size (docs/log.md has the numbers).
"""

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from jaxtyping import Int64, Shaped
from torch import Tensor

from circuits.model.subject import bits_of

CPU = torch.device("cpu")
PATIENCE = 600.0
"""Seconds for which a rank waits for the others: one writes a checkpoint, or is late, but no longer than this."""


class RankError(ValueError):
    """Ranks that cannot go on together: one is gone or silent, or they are no longer the same."""


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """The processes of one training, seen from one of them."""

    rank: int = 0
    "This process's number, from 0; rank 0 alone writes files and speaks."
    size: int = 1
    "Number of processes."
    device: torch.device = CPU
    "Where this one's model is."

    @property
    def leads(self) -> bool:
        """Whether this is the one that writes and speaks."""
        return self.rank == 0

    def rows(self, batch: Shaped[Tensor, "batch *rest"]) -> Shaped[Tensor, "own *rest"]:
        """This rank's rows of the whole batch: as many for each, in the order of the ranks."""
        return batch.chunk(self.size)[self.rank]

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Make each tensor, in place, the sum of it over all ranks; one message for all of them, the same bits in all.

        Raises RankError where a rank is gone.
        """
        if self.size == 1:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        with _heard_from_all():
            dist.all_reduce(flat)
        for tensor, summed in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(summed.view_as(tensor))

    def highest(self, number: int) -> int:
        """The highest of the numbers that the ranks give. Raises RankError where a rank is gone."""
        if self.size == 1:
            return number
        told = torch.tensor(number, device=self.device)
        with _heard_from_all():
            dist.all_reduce(told, op=dist.ReduceOp.MAX)
        return int(told)

    def wait(self) -> None:
        """Go on when all ranks are here. Raises RankError where a rank is gone."""
        self.highest(0)

    def check_same(self, tensors: Iterable[tuple[str, Tensor]], when: str) -> None:
        """Raise RankError, in all ranks, naming the first tensor whose nonzeros or bits are not the same in all."""
        if self.size == 1:
            return
        named = dict(tensors)
        own = torch.tensor([_hashes(tensor) for tensor in named.values()], device=self.device)
        all_of_them = [torch.empty_like(own) for _ in range(self.size)]
        with _heard_from_all():
            dist.all_gather(all_of_them, own)
        _check_hashes(list(named), torch.stack(all_of_them).cpu(), when)


ALONE = Ranks()
"""One process, on the CPU."""


@contextmanager
def joined(device: str = "cpu", *, patience: float = PATIENCE) -> Iterator[Ranks]:
    """The processes that torchrun started, or this one alone; no process group is left behind.

    device: "cpu" (they talk through gloo), or "cuda" (nccl), where each has the GPU of its number on its machine.
    patience: seconds after which a rank that is not heard of counts as lost.
    Inside a process group of the caller's own, that one is used, and left as it is.
    Raises ValueError for a device that is not there and an environment that is not torchrun's, and RankError where
    not all ranks come.
    """
    rank, size, local = (_number(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    if dist.is_initialized():
        yield Ranks(rank=dist.get_rank(), size=dist.get_world_size(), device=_device(device, local))
        return
    if size <= 1:
        yield Ranks(device=_device(device, local))
        return
    _check_environment()
    ranks = Ranks(rank=rank, size=size, device=_device(device, local))
    with _heard_from_all():
        backend = "nccl" if ranks.device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=timedelta(seconds=patience))
    try:
        yield ranks
    finally:
        dist.destroy_process_group()


def _device(device: str, local: int) -> torch.device:
    if device == "cpu":
        return CPU
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device != "cuda" or local >= there:
        raise ValueError(
            f"device: got {device!r} for process {local} of this machine, which has {there} GPUs; expected 'cpu', or "
            "'cuda' and no more processes than there are GPUs. Choose with --device and --nproc-per-node."
        )
    torch.cuda.set_device(local)
    return torch.device("cuda", local)


def _number(name: str) -> int:
    """A number of torchrun's environment; 0 where there is none."""
    text = os.environ.get(name, "0")
    if not text.isdecimal():
        raise ValueError(
            f"{name}: got {text!r} in the environment; expected a whole number of at least 0, as torchrun sets it. "
            "Start with torchrun, or unset it."
        )
    return int(text)


def _check_environment() -> None:
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise ValueError(
            f"WORLD_SIZE: got {os.environ['WORLD_SIZE']} in the environment, without {missing}; expected all that "
            "torchrun sets. Start with torchrun, or unset WORLD_SIZE to train in one process."
        )


@contextmanager
def _heard_from_all() -> Iterator[None]:
    """Inside, a message that does not get through is a RankError."""
    try:
        yield
    except RuntimeError as error:  # torch's own errors of distribution are of this kind
        reason = str(error).strip().partition("\n")[0].partition(". This is typically")[0]
        raise RankError(
            f"ranks: another process of this training is gone, or was not heard of in time ({reason}); expected all "
            "of them to go on. Look for what it said last, and start all again with --resume."
        ) from None


def _hashes(tensor: Tensor) -> tuple[int, int]:
    """Of where the nonzeros are, and of the bits."""
    return _hash(bits_of(tensor != 0)), _hash(bits_of(tensor))


def _hash(data: bytes) -> int:
    return int.from_bytes(hashlib.sha256(data).digest()[:8], "big", signed=True)


def _check_hashes(names: Sequence[str], hashes: Int64[Tensor, "rank tensor 2"], when: str) -> None:
    for name, own in zip(names, hashes.unbind(1), strict=True):
        for rank, theirs in enumerate(own):
            if not torch.equal(theirs, own[0]):
                what = "values" if theirs[0] == own[0, 0] else "nonzeros"
                raise RankError(
                    f"ranks: {name} has other {what} in rank {rank} than in rank 0 {when}; expected the same bits in "
                    "all. Give every process the same config, text, checkpoint and versions, on processors of one kind."
                )
