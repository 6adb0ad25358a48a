"""Training under a top-k projection: the loop, its steps that Ctrl-C leaves whole, the projection and its schedules."""

from circuits.training.config import TrainConfig
from circuits.training.loop import Training, train
from circuits.training.saved import load_trained
from circuits.training.steps import TrainingDiverged, TrainingInterrupted

__all__ = ["TrainConfig", "Training", "TrainingDiverged", "TrainingInterrupted", "load_trained", "train"]
