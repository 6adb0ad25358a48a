"""Runs that something happens to on their way."""

import importlib
from typing import Any

LOOP = importlib.import_module("circuits.training.loop")


def before_step(patch: Any, at: int, act: Any) -> None:
    """Have a run do something before one of its steps."""
    step = LOOP._Run.one_step

    def one_step(run: Any) -> None:
        if run.step == at:
            act(run)
        step(run)

    patch.setattr(LOOP._Run, "one_step", one_step)
