"""Small models that ship with the package, with circuits, trust reports and bridges, and their loader."""

from circuits.zoo.shipped import ZooModel, catalogue, load, measured, names

__all__ = ["ZooModel", "catalogue", "load", "measured", "names"]
