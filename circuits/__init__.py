"""Train weight-sparse transformers, extract their circuits, and check that the circuits are real."""

from circuits.ablation import mean_values, run_circuit, run_masked
from circuits.bridge import BridgeConfig, BridgeSet, fit_bridges, load_bridges
from circuits.checkpoint import load_checkpoint, save_checkpoint
from circuits.circuit import Circuit
from circuits.config import ModelConfig, TrainConfig
from circuits.model import SparseTransformer
from circuits.nodes import Edge, Node, Site
from circuits.prune import PruneConfig, prune
from circuits.score import task_score
from circuits.steer import steer
from circuits.train import Training, TrainingInterrupted, train
from circuits.zoo import load_pretrained, load_pretrained_bridges

__all__ = [
    "BridgeConfig",
    "BridgeSet",
    "Circuit",
    "Edge",
    "ModelConfig",
    "Node",
    "PruneConfig",
    "Site",
    "SparseTransformer",
    "TrainConfig",
    "Training",
    "TrainingInterrupted",
    "fit_bridges",
    "load_bridges",
    "load_checkpoint",
    "load_pretrained",
    "load_pretrained_bridges",
    "mean_values",
    "prune",
    "run_circuit",
    "run_masked",
    "save_checkpoint",
    "steer",
    "task_score",
    "train",
]
