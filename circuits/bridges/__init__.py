"""Bridges: maps between the residual streams of a dense model and a sparse one, and passes that cross them."""

from circuits.bridges.config import BridgeConfig
from circuits.bridges.fit import fit_bridges
from circuits.bridges.maps import BridgeSet, Pair, identity_bridges, load_bridges
from circuits.bridges.measure import bridge_metrics, chain_losses
from circuits.bridges.sides import Model, Side, locations

__all__ = [
    "BridgeConfig",
    "BridgeSet",
    "Model",
    "Pair",
    "Side",
    "bridge_metrics",
    "chain_losses",
    "fit_bridges",
    "identity_bridges",
    "load_bridges",
    "locations",
]
