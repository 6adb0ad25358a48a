"""Many runs: a plan of trainings and prunings, worked through by many processes into one table."""

from circuits.sweep.executors import EXECUTORS, run_sweep
from circuits.sweep.plan import Plan, Run, load_plan
from circuits.sweep.table import Progress, RunTable

__all__ = ["EXECUTORS", "Plan", "Progress", "Run", "RunTable", "load_plan", "run_sweep"]
