"""Every check has a fault that it catches, and says nothing of a true circuit."""

import random
from typing import get_args

import pytest
import torch

from circuits.circuit.masked import check_belongs
from circuits.handmade import MODELS, Handmade
from circuits.trust import TrustConfig, checks, controls, margins, run_checks, yardsticks
from circuits.trust.controls import Floor, nonsense
from circuits.trust.report import Entry, TrustReport, Verdict
from circuits.trust.workbench import Bench, Check
from docs.experiments.power import FAULTS

CONFIG = TrustConfig(n_pairs=32, n_random=19, n_knockouts=4, n_greedy=2)
CAUGHT: dict[str, dict[Check, set[str]]] = {
    "removed node": {
        checks.sufficiency: {"sufficiency"},
        checks.right_answers: {"task loss, uncalibrated"},
        checks.agreement: {"KL, clean", "KL, corrupted"},
        margins.margin_agreement: {"margin ratio"},
    },
    "ten added nodes": {checks.minimality: {"1-minimality"}, yardsticks.minimality_test: {"minimality test"}},
    "random inert circuit": {
        checks.necessity: {"necessity"},
        checks.minimality: {"1-minimality"},
        checks.random_circuits: {"random circuits"},
        yardsticks.cpr_and_cmd: {"CPR"},
        yardsticks.independence: {"independence test"},
    },
    "copied elsewhere": {checks.sufficiency: {"sufficiency"}, checks.interchange: {"interchange"}},
    "full backup": {checks.completeness: {"completeness, worst found"}},
    "edited means": {checks.held_values: {"ablation values"}},
}
"""For each planted fault, checks that must fail on it."""


def planted(fault: str) -> Handmade:
    return FAULTS[fault](MODELS["quotes"](3), random.Random(3))


def bench(made: Handmade) -> Bench:
    generator = torch.Generator().manual_seed(0)
    text = made.corpus.windows(128, made.model.config.n_ctx, split="train", generator=generator)
    return Bench(made.model, made.circuit, made.task, CONFIG, text=text)


@pytest.mark.parametrize(
    ("fault", "check", "names"),
    [(fault, check, names) for fault, found in CAUGHT.items() for check, names in found.items()],
)
@pytest.mark.slow
def test_a_planted_fault_is_caught(fault: str, check: Check, names: set[str]) -> None:
    entries = run_checks(bench(planted(fault)), (check,))
    assert names <= {entry.name for entry in entries if entry.verdict == "fail"}, entries


def test_none_of_these_checks_fails_on_the_true_circuit() -> None:
    asked = tuple(dict.fromkeys(check for found in CAUGHT.values() for check in found))
    entries = run_checks(bench(MODELS["quotes"](3)), asked)
    assert [entry.name for entry in entries if entry.verdict == "fail"] == []


@pytest.mark.parametrize("fault", ["edited weights", "of another model"])
def test_a_file_that_was_edited_is_refused(fault: str) -> None:
    made = planted(fault)
    with pytest.raises(ValueError, match="expected the same"):
        check_belongs(made.model, made.circuit)


def test_every_fault_of_the_experiment_is_tested_here() -> None:
    assert set(FAULTS) == {*CAUGHT, "edited weights", "of another model"}


@pytest.mark.parametrize(
    ("true", "control", "verdict"),
    [
        (Floor(0.01, 10), Floor(0.9, 5), "pass"),
        (Floor(0.01, 10), Floor(0.1, 5), "fail"),
        (Floor(0.01, 200), Floor(0.9, 5), "inconclusive"),  # gates that stay open prove nothing of nonsense
        (Floor(0.4, 10), Floor(0.9, 5), "inconclusive"),
        (Floor(0.01, 200), Floor(0.1, 5), "fail"),
    ],
)
def test_a_control_needs_the_true_task_to_close_its_gates(
    true: Floor, control: Floor, verdict: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def floor(*args: object, most: int | None = None, **options: object) -> Floor:
        return true if most is None else control

    monkeypatch.setattr(controls, "gate_floor", floor)
    entries = nonsense(bench(MODELS["quotes"](3)), random.Random(0))
    assert {entry.verdict for entry in entries} == {verdict}


def test_every_verdict_has_a_mark_in_the_picture_and_counts_in_the_sentence() -> None:
    entries = tuple(
        Entry(name=verdict, meaning="Something.", value=1.0, baseline=0.5, verdict=verdict)
        for verdict in get_args(Verdict)
    )
    report = TrustReport(task="quotes", model_hash="x", n_nodes=1, n_edges=0, entries=entries, seconds=1.0)
    assert report.verdict == "1 of 2 checks failed: fail. 1 was inconclusive. 1 was not run."
    shown = str(report.plot().to_dict())
    assert all(verdict in shown for verdict in get_args(Verdict))
    assert report._repr_html_().count("<tr>") == len(entries) + 1
