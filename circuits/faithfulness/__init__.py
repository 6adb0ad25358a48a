"""Whether a circuit is what the model uses: every check that the field knows, in one report."""

from circuits.faithfulness.bench import Bench
from circuits.faithfulness.controls import gate_floor
from circuits.faithfulness.evaluate import TrustConfig, evaluate
from circuits.faithfulness.report import Entry, Report

__all__ = ["Bench", "Entry", "Report", "TrustConfig", "evaluate", "gate_floor"]
