"""Trust: whether a circuit is what the model uses. Every check that the field knows, in one report."""

from circuits.trust.config import TrustConfig
from circuits.trust.controls import gate_floor
from circuits.trust.procedure import CHECKS, run_checks, trust_report
from circuits.trust.report import Entry, TrustReport
from circuits.trust.workbench import Bench, Check

__all__ = [
    "CHECKS",
    "Bench",
    "Check",
    "Entry",
    "TrustConfig",
    "TrustReport",
    "gate_floor",
    "run_checks",
    "trust_report",
]
