"""A model of the wrong kind is refused before anything is done, by one sentence that says what to do instead."""

import importlib
import inspect
import pkgutil

import pytest
import torch
from induction_model import bridge

import circuits
from circuits import composition, heads
from circuits.circuit.ablation import mean_values
from circuits.circuit.score import task_score
from circuits.interop import LensSubject
from circuits.model.config import ModelConfig
from circuits.model.kinds import CHECKED, check_ours, check_subject
from circuits.model.transformer import SparseTransformer
from tasks.base import Batch

ASKED = (
    "prune",
    "trust_report",
    "save_checkpoint",
    "weight_paths",
    "composition_maps",
    "sparse_compute",
    "compact",
)
RUNS = (
    *("prune", "rank", "curve", "mean_values", "ablation_values", "run_masked", "run_circuit", "scope"),
    *("trust_report", "gate_floor", "effects_between", "circuit_view", "to_html", "explore"),
)


for info in pkgutil.walk_packages(circuits.__path__, "circuits."):
    if "triton" not in info.name and not info.name.endswith("__main__"):
        importlib.import_module(info.name)
FOUND = {
    path.rpartition(".")[2]: getattr(
        importlib.import_module(path.rpartition(".")[0]), path.rpartition(".")[2]
    )
    for path in CHECKED
}


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def wrapped(request):
    return bridge(request.param)


def called_with(function, model):
    """The function with this model, and nothing where its other arguments stand: it must not come to look at them."""
    needed = [p for p in inspect.signature(function).parameters.values() if p.default is p.empty]
    given = {p.name: model if p.name == "model" else None for p in needed if p.kind != p.VAR_KEYWORD}
    return function(**given)


def test_what_was_found_to_end_in_a_bare_error_is_checked():
    assert set(ASKED) | set(RUNS) <= set(FOUND)
    assert len(FOUND) >= 30


@pytest.mark.parametrize("name", sorted(FOUND))
def test_a_bridge_is_refused_by_name_with_what_to_do(name, wrapped):
    with pytest.raises(
        ValueError, match=f"^model: got a TransformerBridge; {name} expected a Sparse"
    ) as caught:
        called_with(FOUND[name], wrapped)
    assert "LensSubject" in str(caught.value)


@pytest.mark.parametrize("name", sorted(set(FOUND) - set(RUNS)))
def test_a_subject_is_refused_where_weights_are_read(name, wrapped):
    with pytest.raises(
        ValueError, match=f"^model: got a LensSubject; {name} expected a SparseTransformer, since"
    ):
        called_with(FOUND[name], LensSubject(wrapped.eval()))


def test_what_is_no_model_is_told_how_to_become_one():
    for thing in (None, torch.nn.Linear(1, 1)):
        for check in (check_ours, check_subject):
            with pytest.raises(
                ValueError, match=r"model: got a \w+; it expected .*boot_transformers.*load_checkpoint"
            ):
                check(thing, "it")
    with pytest.raises(
        ValueError, match=r"model: got a str; it expected .* Load it: .*load_checkpoint\('m.safetensors'"
    ):
        check_ours("m.safetensors", "it")


def test_what_works_on_a_bridge_goes_on_working(wrapped):
    tokens = torch.randint(0, 50, (4, 8))
    assert heads.head_report(wrapped, tokens).rows
    assert composition.composition_scores(wrapped)[1].isfinite().all()
    ones = torch.ones(4, dtype=torch.int64)
    other = (tokens + 1) % 50
    batch = Batch(clean=tokens, corrupt=other, answer=0 * ones, foil=ones, position=7 * ones)
    subject = LensSubject(wrapped.eval())
    assert 0 <= task_score(subject, batch).accuracy <= 1
    assert set(mean_values(subject, tokens)) == set(subject.sites())


def test_a_model_of_ours_passes_either_check_by_name_or_place():
    model = SparseTransformer(
        ModelConfig(d_vocab=5, n_layers=1, d_model=4, n_heads=1, d_head=2, d_mlp=4, n_ctx=4)
    )
    check_ours(model, "it")
    check_subject(model, "it")
    tokens = torch.zeros(1, 3, dtype=torch.int64)
    assert mean_values(model=model, tokens=tokens).keys() == mean_values(model, tokens).keys()
    with pytest.raises(TypeError, match="missing"):
        mean_values(model)
