"""Sparse compute inside the model: while it is on, weights run on kernels that cost what their nonzeros cost."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from circuits.kernels import SparseWeight, chosen_impl
from circuits.kernels.dispatch import chosen
from circuits.model.kinds import of_ours
from circuits.model.subject import Subject
from circuits.model.transformer import SparseTransformer

F = TypeVar("F", bound=Callable[..., Any])
SMALL_PASS = 2**24
"""Activations of a pass (tokens times coordinates of all sites) up to which a second thread gains next to nothing."""


@of_ours
@contextmanager
def sparse_compute(
    model: SparseTransformer, weight_gradient: Literal["exact", "support"] = "exact"
) -> Iterator[dict[str, str]]:
    """Run the model's linear maps on their nonzeros, forward and backward; yields what was chosen for each.

    A map whose matrix is dense enough that a dense product is faster (`kernels.DENSE_FROM`), or lies where no
    fast kernel runs, stays dense ("dense"); the others say their implementation. The weights must not change
    inside: the nonzeros are read once, at the start. Inside another `sparse_compute` of the same model, that
    one goes on. The model is the thread's own until the end: passes in other threads wait.

    weight_gradient: what weights that require one get. "exact": the whole matrix, so that a zero may grow back.
    "support": only the nonzeros', the rest zero, which costs what the nonzeros cost.

    Examples:
        >>> model = circuits.load("quotes-128").model
        >>> with circuits.model.sparse_compute(model) as chosen:
        ...     sorted(set(chosen.values()))
        ['cpu']
    """
    with model.turn:
        yield from _on_nonzeros(model, weight_gradient)


def _on_nonzeros(
    model: SparseTransformer, weight_gradient: Literal["exact", "support"]
) -> Iterator[dict[str, str]]:
    maps = {name: linear for name, linear in model.linears()}
    if any(linear.sparse is not None for linear in maps.values()):
        yield {name: _said(linear.sparse) for name, linear in maps.items()}
        return
    try:
        for linear in maps.values():
            linear.sparse = _compressed(linear.weight)
            linear.on_support = weight_gradient == "support"
        yield {name: _said(linear.sparse) for name, linear in maps.items()}
    finally:
        for linear in maps.values():
            linear.sparse, linear.on_support = None, False


def with_gradients(function: F) -> F:
    """The function, with gradients switched on inside, whatever is switched off around it."""
    return torch.inference_mode(False)(torch.enable_grad()(function))


def check_learnable(model: nn.Module, name: str = "model") -> None:
    """Raise ValueError for a model that lets no gradients through: made in inference mode, or in few bits."""
    given = getattr(model, "given", None)
    if given is not None and given.turbo is not None:
        raise ValueError(
            f"{name}: it has few_bits=True, inside approximated(), and rounding has no gradients; expected it as it "
            "is. Learn outside, and run what was found inside (run_circuit, task_score, describe)."
        )
    if any(parameter.is_inference() for parameter in model.parameters()):
        raise ValueError(
            f"{name}: its weights were made inside torch.inference_mode(), which allows no gradients through them; "
            "expected ordinary ones. Make, load or copy it outside (copy.deepcopy(model))."
        )


@contextmanager
def frozen(model: SparseTransformer) -> Iterator[None]:
    """A model to look at, not to train: eval mode, no gradients to weights, on its nonzeros; restored afterwards.

    Examples:
        >>> model = circuits.load("quotes-128").model
        >>> with circuits.model.frozen(model):
        ...     model.W_E.requires_grad
        False
    """
    check_learnable(model)
    with model.turn:
        training, needed = model.training, [p.requires_grad for p in model.parameters()]
        try:
            model.eval().requires_grad_(False)
            with sparse_compute(model):
                yield
        finally:
            model.train(training)
            for parameter, need in zip(model.parameters(), needed, strict=True):
                parameter.requires_grad_(need)


def resting(model: Subject) -> AbstractContextManager[None]:
    """`frozen` for a model of ours; any other subject as it says itself, or as it is."""
    if isinstance(model, SparseTransformer):
        return frozen(model)
    rest: Callable[[], AbstractContextManager[None]] = getattr(model, "resting", nullcontext)
    return rest()


@contextmanager
def threads_for(model: Subject, n_tokens: int) -> Iterator[int]:
    """One thread where passes over this many tokens are small, else as many as torch has; yields the number.

    Threads meet many times in a pass, and a small one waits there for whoever has lost its core to another process:
    beside one such process two threads took nine times as long as one. torch has one number of threads for the whole
    process; it is put back at the end.
    """
    before = torch.get_num_threads()
    small = n_tokens * sum(model.widths.values()) <= SMALL_PASS
    torch.set_num_threads(1 if small else before)
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


@of_ours
def compact(model: SparseTransformer) -> SparseTransformer:
    """The same model, changed in place, for looking at and not for training: no dense copy of sparse matrices.

    Every map that is faster on its nonzeros holds nothing else from here on, and no weight asks for a gradient.
    Outputs, `fingerprint` and checkpoints stay what they were. There is no way back but loading the checkpoint.

    Examples:
        >>> model = circuits.model.compact(circuits.load("quotes-128").model)
        >>> model.n_nonzero()
        3095
    """
    with model.turn:
        model.eval().requires_grad_(False)
        for _, linear in model.linears():
            sparse = linear.sparse or _compressed(linear.weight)
            if sparse is not None:
                linear.hold_nonzeros(sparse)
    return model


def runs_on_nonzeros(like: Float[Tensor, "*shape"], density: float) -> bool:
    """Whether a matrix of this density, of the type and on the device of `like`, is faster on its nonzeros."""
    return chosen("spmm", "auto", like, density=density).name != "naive"


def _compressed(weight: Float[Tensor, "d_in d_out"]) -> SparseWeight | None:
    """The nonzeros, where using them is faster than the matrix."""
    weight = weight.detach()
    density = int(torch.count_nonzero(weight)) / max(1, weight.numel())
    return SparseWeight.from_dense(weight) if runs_on_nonzeros(weight, density) else None


def _said(sparse: SparseWeight | None) -> str:
    return "dense" if sparse is None else chosen_impl(sparse.values)
