"""Margins of the right closing bracket, of a circuit or of a whole model, and what both procedures check first."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuits.bridges import Model, Side
from circuits.bridges.sides import still
from circuits.circuit.circuit import Circuit
from circuits.circuit.masked import run_circuit
from circuits.circuit.score import margins
from circuits.model.transformer import SparseTransformer
from tasks.base import Targets
from tasks.brackets import Brackets

CHUNK = 128
"""Prompts of a pass."""


def circuit_margins(sparse: SparseTransformer, circuit: Circuit, targets: Targets) -> Float[Tensor, " rows"]:
    """Margin of the right closer with only the circuit kept, in nats."""
    with torch.no_grad(), still(sparse):
        parts = [margins(run_circuit(sparse, circuit, part.tokens), part) for part in _chunks(targets)]
    return torch.cat(parts)


def model_margins(side: Side, targets: Targets) -> Float[Tensor, " rows"]:
    """Margin of the right closer in a whole model, in nats."""
    with torch.no_grad(), still(side.model):
        return torch.cat([margins(side.run(part.tokens)[0], part) for part in _chunks(targets)])


def _chunks(targets: Targets) -> list[Targets]:
    return [Targets(*parts) for parts in zip(*(field.split(CHUNK) for field in targets), strict=True)]


def error_rate(margin: Float[Tensor, " rows"], among: Bool[Tensor, " rows"] | None = None) -> float:
    """Fraction of rows whose margin is not positive."""
    wrong = margin <= 0 if among is None else margin[among] <= 0
    return float(wrong.float().mean())


def check_inputs(dense: Model, sparse: SparseTransformer, circuit: Circuit) -> None:
    """Raise ValueError for a circuit of another task, or models of another vocabulary."""
    if circuit.task != "brackets":
        raise ValueError(f"circuit: got one for {circuit.task!r}; expected one for 'brackets'.")
    d_vocab = Brackets().tokenizer.d_vocab
    for side in (Side(dense, "dense"), Side(sparse, "sparse")):
        if side.d_vocab != d_vocab:
            raise ValueError(
                f"{side.role}: got a model of {side.d_vocab} tokens; expected {d_vocab}, mini-Python's."
            )
