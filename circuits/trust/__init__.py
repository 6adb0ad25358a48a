"""Whether a circuit is what the model uses: every check that the field knows, in one report."""

from circuits.trust.bench import Bench
from circuits.trust.controls import gate_floor
from circuits.trust.evaluation import TrustConfig, evaluate
from circuits.trust.report import Entry, Report

__all__ = ["Bench", "Entry", "Report", "TrustConfig", "evaluate", "gate_floor"]
