"""Mixers: what turns q, k, v, and it may be the layer's input, into z. One file each, and a row of one table."""

from circuits.model.mixers.attention import Attention
from circuits.model.mixers.compose import Compose, ComposedAttention
from circuits.model.mixers.softmax import SoftmaxAttention, sink_softmax

MIXERS: dict[str, type[Attention]] = {"softmax": SoftmaxAttention, "compose": ComposedAttention}
"""The attention of a layer, by the name that `ModelConfig.attention` gives it."""

__all__ = ["MIXERS", "Attention", "Compose", "ComposedAttention", "SoftmaxAttention", "sink_softmax"]
