"""What sparse compute costs: measured here against plain PyTorch, and predicted on paper for a GPU."""

from circuits.bench.cost import CostConfig, Gpu, StepCost, cost_model, cost_table, crossover
from circuits.bench.measurement import Row, measure
from circuits.bench.operations import NAMES, Operation, operation
from circuits.bench.table import BenchConfig, cells, markdown, run_bench, write_pages

__all__ = [
    "NAMES",
    "BenchConfig",
    "CostConfig",
    "Gpu",
    "Operation",
    "Row",
    "StepCost",
    "cells",
    "cost_model",
    "cost_table",
    "crossover",
    "markdown",
    "measure",
    "operation",
    "run_bench",
    "write_pages",
]
