"""The model: its sites and weights, its configuration, one forward pass, sparse compute, checkpoints."""

from circuits.model.checkpoint import Checkpoint, find_checkpoint, load_checkpoint, save_checkpoint
from circuits.model.compute import compact, frozen, sparse_compute
from circuits.model.config import ModelConfig
from circuits.model.sites import SITES, WEIGHTS, Site, WeightAt, all_sites
from circuits.model.subject import SparseSubject, Subject
from circuits.model.transformer import SparseTransformer

__all__ = [
    "SITES",
    "WEIGHTS",
    "Checkpoint",
    "ModelConfig",
    "Site",
    "SparseSubject",
    "SparseTransformer",
    "Subject",
    "WeightAt",
    "all_sites",
    "compact",
    "find_checkpoint",
    "frozen",
    "load_checkpoint",
    "save_checkpoint",
    "sparse_compute",
]
