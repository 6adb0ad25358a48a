"""Models compiled by hand, in this architecture, whose circuits are known exactly."""

from circuits.handmade.catalogue import (
    MODELS,
    Handmade,
    brackets,
    build,
    build_hard,
    copying,
    induction,
    majority,
    modular,
    quotes,
)
from circuits.handmade.hard import HARD
from circuits.handmade.rankings import METHODS
from circuits.handmade.recovery import Recovery, Shared, rank_metrics, recover

__all__ = [
    "HARD",
    "METHODS",
    "MODELS",
    "Handmade",
    "Recovery",
    "Shared",
    "brackets",
    "build",
    "build_hard",
    "copying",
    "induction",
    "majority",
    "modular",
    "quotes",
    "rank_metrics",
    "recover",
]
