"""Training under a top-k projection: the loop, the projection and its schedules."""

from circuits.training.config import TrainConfig
from circuits.training.loop import Training, TrainingInterrupted, train

__all__ = ["TrainConfig", "Training", "TrainingInterrupted", "train"]
