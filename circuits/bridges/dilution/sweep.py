"""The sweep over list lengths and distractors: the circuit's depth margin beside the dense model's errors."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from circuits.bridges import Model, Side
from circuits.bridges.dilution.margins import check_inputs, circuit_margins, error_rate, model_margins
from circuits.circuit.circuit import Circuit
from circuits.model.transformer import SparseTransformer
from circuits.settings import Count, Seed, Whole, checked
from circuits.statistics import spearman
from circuits.views import Plotted
from tasks.brackets import Brackets


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One combination of list length and distractors; error rates and margins over its prompts."""

    length: int
    "Elements of the list."
    distractors: int
    "Closed lists before it."
    n: int
    "Prompts of each depth."
    depth_margin: float
    "Sparse circuit, deep prompts: mean logit of `]]` minus logit of `]`."
    shallow_margin: float
    "Sparse circuit, shallow prompts: mean logit of `]` minus logit of `]]`."
    circuit_error: float
    "Sparse circuit: fraction of deep prompts whose margin is negative."
    sparse_error: float
    "Whole sparse model: likewise."
    dense_error: float
    "Dense model: likewise."
    dense_shallow_error: float
    "Dense model, shallow prompts: fraction that it closes with `]]`."


@dataclass(frozen=True, kw_only=True)
class Dilution(Plotted):
    """A sweep over lengths and distractors."""

    cells: tuple[Cell, ...]
    "In the order swept."
    skipped: tuple[tuple[int, int], ...]
    "(length, distractors) whose prompts do not fit the models."

    @property
    def spearman(self) -> float:
        """Rank correlation of shrinking depth margin with the dense model's error rate on deep prompts."""
        return spearman(
            [-cell.depth_margin for cell in self.cells], [cell.dense_error for cell in self.cells]
        )

    def summary(self) -> dict[str, Any]:
        """The correlation, and the range of what was correlated."""
        errors, depth = [c.dense_error for c in self.cells], [c.depth_margin for c in self.cells]
        return {
            "spearman": self.spearman,
            "n_cells": len(self.cells),
            "n_skipped": len(self.skipped),
            "dense_error_min": min(errors),
            "dense_error_max": max(errors),
            "depth_margin_min": min(depth),
            "depth_margin_max": max(depth),
        }

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types: the summary, the cells, and what was skipped."""
        cells = [asdict(cell) for cell in self.cells]
        return {**self.summary(), "cells": cells, "skipped": [list(pair) for pair in self.skipped]}


def dilution_sweep(
    dense: Model,
    sparse: SparseTransformer,
    circuit: Circuit,
    *,
    lengths: Sequence[int] = tuple(range(1, 15)),
    distractors: Sequence[int] = (0,),
    n: int = 256,
    seed: int = 0,
) -> Dilution:
    """Depth margin of the circuit and error rates of both models, for every length and number of distractors.

    n: pairs of prompts a cell (test split). Cells whose prompts are longer than a model's context are skipped and
    listed. Raises ValueError when none fits, or the circuit is another task's or another model's.
    """
    lengths = checked("lengths", list(lengths), tuple[Count, ...])
    distractors = checked("distractors", list(distractors), tuple[Whole, ...])
    n, seed = checked("n", n, Count), checked("seed", seed, Seed)
    check_inputs(dense, sparse, circuit)
    n_ctx = min(Side(dense, "dense").n_ctx, sparse.config.n_ctx)
    cells, skipped = [], []
    for length in lengths:
        for count in distractors:
            task = Brackets(length=length, distractors=count)
            if task.n_ctx > n_ctx:
                skipped.append((length, count))
            else:
                cells.append(_cell(task, dense, sparse, circuit, n, seed))
    if not cells:
        raise ValueError(
            f"lengths: the prompts of none of {list(lengths)} fit n_ctx = {n_ctx}; expected shorter lists or models "
            "of a longer context."
        )
    return Dilution(cells=tuple(cells), skipped=tuple(skipped))


def _cell(
    task: Brackets, dense: Model, sparse: SparseTransformer, circuit: Circuit, n: int, seed: int
) -> Cell:
    targets = task.batch(n, split="test", seed=seed).tokens_and_targets()
    deep = targets.answer == task.tokenizer.id("]]")
    by_circuit = circuit_margins(sparse, circuit, targets)
    by_sparse = model_margins(Side(sparse, "sparse"), targets)
    by_dense = model_margins(Side(dense, "dense"), targets)
    assert task.length is not None
    return Cell(
        length=task.length,
        distractors=task.distractors,
        n=n,
        depth_margin=float(by_circuit[deep].mean()),
        shallow_margin=float(by_circuit[~deep].mean()),
        circuit_error=error_rate(by_circuit, deep),
        sparse_error=error_rate(by_sparse, deep),
        dense_error=error_rate(by_dense, deep),
        dense_shallow_error=error_rate(by_dense, ~deep),
    )
