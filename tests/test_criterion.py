"""What a circuit must do: kept with all it takes, in the circuit and its file; pruning and trust judge by it alike."""

import itertools
import json
from dataclasses import FrozenInstanceError, dataclass, replace
from typing import get_args

import pytest
import torch
from quote_model import CORPUS, TRUE_NODES, quote_closer

from circuits.circuit.ablation import ablation_values
from circuits.circuit.circuit import Circuit
from circuits.circuit.compare import union
from circuits.circuit.criterion import Criterion
from circuits.circuit.evaluator import Evaluator, MaskedModel
from circuits.circuit.masked import run_masked
from circuits.circuit.nodes import Ablation, Node, node_masks
from circuits.circuit.parts import edges_between
from circuits.circuit.score import margins
from circuits.pruning.config import PruneConfig
from circuits.pruning.procedure import prune
from circuits.trust import CHECKS, Bench, Entry, TrustConfig, checks, run_checks, trust_report
from circuits.zoo import load
from tasks import TASKS, load_task, task_options
from tasks.brackets import Brackets
from tasks.composition import CELLS
from tasks.quotes import Quotes

SMALL = PruneConfig(starts=1, steps=40, batch_size=8, n_eval=16, n_test=24, n_mean=16)
QUICK = TrustConfig(n_pairs=8, n_random=2, n_knockouts=2, n_greedy=0, control_steps=0)


@pytest.fixture(scope="module")
def model():
    return quote_closer()


@pytest.fixture(scope="module")
def circuit(model):
    return prune(model, load_task("quotes"), SMALL, corpus=CORPUS, progress=False)


# The task, with all its options.


@pytest.mark.parametrize("name", sorted(set(TASKS) - {"composition"}))
def test_a_task_at_its_defaults_has_no_options(name):
    assert task_options(load_task(name)) == {}


def test_options_make_the_very_task_again():
    for task in (Brackets(length=2), Brackets(length=3, distractors=1), Quotes(context_lines=1)):
        options = json.loads(json.dumps(task_options(task)))
        assert options
        assert load_task(task.name, **options) == task
    held_out = load_task("composition", which="all", held_out=CELLS[:2])
    assert load_task("composition", **json.loads(json.dumps(task_options(held_out)))) == held_out


def test_a_task_of_ones_own_has_no_options_and_must_be_handed_in():
    @dataclass(frozen=True, kw_only=True)
    class Own(Quotes):
        length: int = 3

    assert task_options(Own()) is None
    with pytest.raises(ValueError, match="expected the Task itself. Pass it as task="):
        Criterion(task="mine", task_options=None).load_task()


def test_brackets_of_one_length_do_not_come_back_as_brackets():
    criterion = Criterion.from_json(json.loads(json.dumps(Criterion.of(Brackets(length=2)).to_json())))
    assert criterion.load_task() == Brackets(length=2)
    with pytest.raises(
        ValueError, match=r"task: got brackets\(\), but the circuit is judged by brackets\(length=2\)"
    ):
        criterion.check(Brackets())


# The criterion itself.


def test_it_is_frozen_and_checked():
    criterion = Criterion(task="quotes")
    with pytest.raises(FrozenInstanceError):
        criterion.target_loss = 1.0  # type: ignore[misc]
    for wrong, message in (
        ({"target_loss": 0.0}, "target_loss: got 0.0; expected a positive number"),
        ({"target_accuracy": 1.5}, "target_accuracy: got 1.5; expected a fraction"),
        ({"n_eval": 0}, "n_eval: got 0; expected a whole number of at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            Criterion(task="quotes", **wrong)
    with pytest.raises(ValueError, match=r"Criterion: unknown key \['sed'\]"):
        Criterion.from_json({"task": "quotes", "sed": 1})


def test_pruning_leaves_it_in_the_circuit_and_in_its_file(circuit, tmp_path):
    assert circuit.criterion == SMALL.criterion(load_task("quotes"))
    assert Circuit.load(circuit.save(tmp_path / "c.json")).criterion == circuit.criterion


def test_a_file_from_before_criteria_were_kept_has_that_of_its_pruning_run(circuit):
    data = json.loads(json.dumps(circuit.to_json()))
    del data["criterion"]
    assert Circuit.from_json(data).criterion == circuit.criterion
    del data["metrics"]["prune"]
    assert Circuit.from_json(data).criterion == Criterion(
        task="quotes",
        objective="task",
        target_loss=0.15,
        calibrate=False,
        target_accuracy=0.0,
        target_order=0.0,
    )


@pytest.mark.slow
def test_nothing_is_computed_from_metrics(model, circuit):
    bare = replace(circuit, metrics={})
    whole, without = (trust_report(model, one, config=QUICK).to_json()["entries"] for one in (circuit, bare))
    assert whole == without


def test_a_union_keeps_targets_and_calibration(circuit):
    other = replace(circuit, criterion=replace(circuit.criterion, seed=7))
    assert union(circuit, other).criterion == circuit.criterion
    brackets = replace(circuit, criterion=replace(circuit.criterion, task="brackets"))
    both = union(circuit, brackets).criterion
    assert both.task == "quotes | brackets"
    assert (both.target_loss, both.calibrate) == (circuit.criterion.target_loss, circuit.criterion.calibrate)
    stricter = replace(circuit, criterion=replace(circuit.criterion, target_loss=0.01))
    with pytest.raises(ValueError, match="expected the same objective, targets and calibration"):
        union(circuit, stricter)


# The evaluator.


def test_which_weights_are_kept_by_hand(model):
    """All nodes kept: every weight or all between them is the model. Two kept: cut weights are those of the masks."""
    task = load_task("quotes")
    values = ablation_values(model, CORPUS.train[:640].view(16, 40), "mean")
    runs = Evaluator(model, task, Criterion.of(task, n_eval=20), values)
    every = [Node.of(site, i) for site, width in model.config.widths.items() for i in range(width)]
    torch.testing.assert_close(runs.margins(every, "all"), runs.full_margins)
    torch.testing.assert_close(runs.margins(every, "between"), runs.full_margins)
    nodes = list(TRUE_NODES)
    batch = task.batch(20, split="val", seed=0).tokens_and_targets()
    with torch.no_grad():
        uncut = run_masked(model, batch.tokens, node_masks(nodes, model.config.widths, model.W_E), values)
    torch.testing.assert_close(runs.margins(nodes, "all"), margins(uncut, batch))
    between = runs.margins(nodes, "between")
    torch.testing.assert_close(runs.margins(nodes, edges_between(model, nodes)), between)
    assert not torch.allclose(runs.margins(nodes, []), between)


def test_prompts_are_read_by_length_and_come_back_in_order():
    found = load("quotes-128")
    model, circuit = found.model, found.circuit
    judge = Evaluator(model, circuit.criterion.load_task(), circuit.criterion, dict(circuit.values))
    lengths = [part.tokens.shape[1] for part in judge._parts]
    assert len(set(lengths)) > 1
    assert lengths[1:] == sorted(lengths[1:])
    at_once = MaskedModel(model, dict(circuit.values), judge.batch)
    torch.testing.assert_close(
        judge.margins(circuit.nodes, circuit.edges), at_once.margins(circuit.nodes, circuit.edges)
    )
    torch.testing.assert_close(judge.full_margins, at_once.full_margins)


def test_spare_parts_are_found(model, circuit):
    task = load_task("quotes")
    judge = Evaluator(model, task, circuit.criterion, dict(circuit.values))
    assert judge.spare(list(circuit.nodes), list(circuit.edges)) == []
    more = Node(0, "mlp_in", 0)
    assert more not in circuit.nodes
    assert judge.spare([*circuit.nodes, more], list(circuit.edges)) == [more]


def test_it_refuses_another_task(model, circuit):
    with pytest.raises(
        ValueError, match=r"got quotes\(context_lines=1\), but the circuit is judged by quotes\(\)"
    ):
        Evaluator(model, Quotes(context_lines=1), circuit.criterion, dict(circuit.values))


# Pruning and trust.

ABLATIONS = get_args(Ablation)
CROSSED = [
    *itertools.product(["margins", "task", "faithful"], ABLATIONS[:4], [True], [True]),
    ("margins", "stochastic", True, True),
    ("task", "adversarial", True, True),
    ("task", "mean", False, True),
    ("task", "resample", False, True),
    ("task", "mean", True, False),
    ("faithful", "position", True, False),
]
FIRST = {("margins", "mean", True, True), ("task", "zero", True, True), ("faithful", "position", True, False)}
"""Each objective and both treatments of edges once; the rest is slow."""


@pytest.mark.parametrize(
    ("objective", "ablation", "calibrate", "prune_edges"),
    [pytest.param(*case, marks=() if case in FIRST else pytest.mark.slow) for case in CROSSED],
)
def test_trust_says_of_a_circuit_what_pruning_said(
    model, tmp_path, objective, ablation, calibrate, prune_edges
):
    settings = replace(
        SMALL, objective=objective, ablation=ablation, calibrate=calibrate, prune_edges=prune_edges
    )
    found = prune(model, load_task("quotes"), settings, corpus=CORPUS, progress=False)
    loaded = Circuit.load(found.save(tmp_path / "c.json"))
    bench = Bench(model, loaded, loaded.criterion.load_task(), QUICK)
    enough, minimal = run_checks(bench, (checks.sufficiency, checks.minimality))
    assert (minimal.verdict == "pass") is found.metrics["one_minimal"]
    said = found.metrics["criterion_loss"]
    assert enough.value == pytest.approx(said, abs=1e-6)
    assert (enough.verdict == "pass") is (said <= found.criterion.target)
    if ablation in ABLATIONS[:4]:
        plain = {"margins": "margin_error", "faithful": "kl_to_model", "task": "task_loss"}[objective]
        assert found.metrics[plain] == pytest.approx(said, abs=1e-6)
    if (calibrate, prune_edges) == (True, True):
        assert minimal.verdict == "pass"


@pytest.mark.parametrize("ablation", ABLATIONS)
@pytest.mark.slow
def test_every_check_runs_under_every_ablation(model, circuit, ablation):
    """On the same nodes, whose values are taken anew."""
    values = ablation_values(model, CORPUS.train[:640].view(16, 40), ablation)
    other = replace(
        circuit, criterion=replace(circuit.criterion, ablation=ablation, n_eval=4, n_test=4), values=values
    )
    report = trust_report(model, other, config=replace(QUICK, control_steps=1))
    assert not any(entry.value != entry.value for entry in report.entries if entry.verdict != "not run")


@pytest.mark.slow
def test_trust_judges_a_faithful_circuit_of_a_model_that_is_wrong():
    """A model that closes every quote with the other one: hopeless at the task, and explained all the same."""
    wrong = quote_closer()
    wrong.W_U.data.neg_()
    settings = replace(SMALL, objective="faithful")
    found = prune(wrong, load_task("quotes"), settings, corpus=CORPUS, progress=False)
    report = trust_report(wrong, found, config=replace(QUICK, n_random=4, control_steps=30))
    for name in ("sufficiency", "necessity", "1-minimality", "KL, clean", "random circuits"):
        assert report[name].verdict == "pass", report[name]
    assert report["swapped answers"].baseline < 0.2  # gates find the model's own wrong answers
    as_task = replace(found, criterion=replace(found.criterion, objective="task"))
    with pytest.raises(ValueError, match="the whole model's loss on 'quotes'"):
        trust_report(wrong, as_task, config=QUICK)


@pytest.mark.slow
def test_a_faithful_circuit_less_a_node_is_not_sufficient(model):
    settings = replace(SMALL, objective="faithful")
    found = prune(model, load_task("quotes"), settings, corpus=CORPUS, progress=False)
    kept = found.nodes[1:]
    edges = tuple(e for e in found.edges if e.source in kept and e.target in kept)
    report = trust_report(model, replace(found, nodes=kept, edges=edges, facts={}), config=QUICK)
    assert report["sufficiency"].verdict == "fail"


def test_one_more_check_moves_no_other_number(model, circuit):
    def draws(bench, rng):
        return [Entry(name="drawn", meaning=".", value=rng.random(), baseline=0.0, verdict="note")]

    bench = Bench(model, circuit, load_task("quotes"), QUICK)
    few = {entry.name: entry.to_json() for entry in run_checks(bench)}
    more = {entry.name: entry.to_json() for entry in run_checks(bench, (draws, *CHECKS, draws))}
    assert {name: entry for name, entry in more.items() if name != "drawn"} == few
    last = CHECKS[-1]
    assert [e.to_json() for e in run_checks(bench, (last,))] == [few["minimality test"]]
