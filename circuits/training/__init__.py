"""Training under a top-k projection: the loop, its steps that Ctrl-C leaves whole, the projection and its schedules."""

from circuits.training.config import TrainConfig
from circuits.training.factors import FactorConfig, Factoring, factored, fit_factors
from circuits.training.loop import Training, train
from circuits.training.saved import load_trained
from circuits.training.steps import TrainingDiverged, TrainingInterrupted

__all__ = [
    "FactorConfig",
    "Factoring",
    "TrainConfig",
    "Training",
    "TrainingDiverged",
    "TrainingInterrupted",
    "factored",
    "fit_factors",
    "load_trained",
    "train",
]
