"""Small trained models that ship with the package, and their loader."""

from circuits.zoo.pretrained import (
    PRETRAINED,
    PRETRAINED_BRIDGES,
    catalogue,
    load_pretrained,
    load_pretrained_bridges,
)

__all__ = ["PRETRAINED", "PRETRAINED_BRIDGES", "catalogue", "load_pretrained", "load_pretrained_bridges"]
