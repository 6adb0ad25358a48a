"""Ways to turn attention scores into attention patterns, and to compose heads on the way."""

from circuits.attention.compose import Compose, ComposeKind
from circuits.attention.softmax import sink_softmax

__all__ = ["Compose", "ComposeKind", "sink_softmax"]
