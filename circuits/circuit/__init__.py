"""Circuits: what they are, what a model does with only one kept, how well it does a task, how two compare."""

from circuits.circuit.ablation import ablation_values, mean_values
from circuits.circuit.circuit import Circuit
from circuits.circuit.compare import (
    TransplantTable,
    difference,
    intersection,
    overlap,
    overlap_matrix,
    transplant,
    union,
)
from circuits.circuit.criterion import Criterion
from circuits.circuit.masked import run_circuit, run_masked
from circuits.circuit.nodes import Edge, IOEdge, Node, all_nodes
from circuits.circuit.parts import edges_between, io_edges
from circuits.circuit.score import Score, UnsolvedError, margins, task_score

__all__ = [
    "Circuit",
    "Criterion",
    "Edge",
    "IOEdge",
    "Node",
    "Score",
    "TransplantTable",
    "UnsolvedError",
    "ablation_values",
    "all_nodes",
    "difference",
    "edges_between",
    "intersection",
    "io_edges",
    "margins",
    "mean_values",
    "overlap",
    "overlap_matrix",
    "run_circuit",
    "run_masked",
    "task_score",
    "transplant",
    "union",
]
