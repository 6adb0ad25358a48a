"""Ways to turn attention scores into attention patterns, and to compose heads on the way."""

from circuits.model.mixers.compose import Compose, ComposeKind
from circuits.model.mixers.softmax import sink_softmax

__all__ = ["Compose", "ComposeKind", "sink_softmax"]
