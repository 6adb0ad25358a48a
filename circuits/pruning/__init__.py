"""Pruning: gates and how they are learned, the search for what they leave, and dropping until nothing can go."""

from circuits.pruning.config import PruneConfig
from circuits.pruning.procedure import prune
from circuits.pruning.redundancy import Rivals, rivals
from circuits.pruning.search import NoCircuitError
from circuits.pruning.stability import Stability, stability_card

__all__ = ["NoCircuitError", "PruneConfig", "Rivals", "Stability", "prune", "rivals", "stability_card"]
