"""Ways to turn attention scores into attention patterns."""

from circuits.attention.softmax import sink_softmax

__all__ = ["sink_softmax"]
