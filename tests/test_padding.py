"""Padding: whatever averages over positions leaves it out when it is told how long the rows are."""

import inspect
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from test_bridge import identity_bridges

from circuits.bridges import bridge_metrics, chain_losses
from circuits.circuit import ablation_values, mean_values
from circuits.composition import composition_on_data, head_mixing
from circuits.heads import head_report, pattern_scores
from circuits.model import ModelConfig, SparseTransformer
from tasks import Batch

LENGTHS = torch.tensor([3, 6, 5])
REAL = torch.arange(6) < LENGTHS[:, None]
TOKENS = torch.tensor([[1, 2, 1, 0, 0, 0], [1, 3, 1, 3, 2, 1], [4, 2, 2, 4, 2, 0]])
OTHERWISE = torch.where(REAL, TOKENS, 5)


@cache
def model() -> SparseTransformer:
    """Composed heads in the maps are left at their start: none is composed, as far as weights are read."""
    config = ModelConfig(d_vocab=7, n_layers=2, d_model=12, n_heads=2, d_head=4, d_mlp=8, n_ctx=8)
    made = SparseTransformer(config, seed=0).eval()
    generator = torch.Generator().manual_seed(1)
    for parameter in made.parameters():
        parameter.data = 0.5 * torch.randn(parameter.shape, generator=generator)
    return made


def flat(found: Any) -> torch.Tensor:
    """Every number of a result."""
    if isinstance(found, dict | list | tuple):
        parts = [flat(part) for part in (found.values() if isinstance(found, dict) else found)]
        return torch.cat([part for part in parts if part.numel()])
    if isinstance(found, torch.Tensor | float | int):
        return torch.as_tensor(found).double().flatten()
    return torch.empty(0).double() if isinstance(found, str | None) else flat(vars(found))


ANALYSES: dict[str, Callable[..., Any]] = {
    "mean_values": mean_values,
    "mean_values in parts": lambda *args, **options: mean_values(*args, batch_size=2, **options),
    "ablation_values, mean": lambda *args, **options: ablation_values(*args, "mean", **options),
    "ablation_values, position": lambda *args, **options: ablation_values(*args, "position", **options),
    "ablation_values, resample": lambda *args, **options: ablation_values(*args, "resample", **options),
    "pattern_scores": lambda *args, **options: pattern_scores(*args, batch_size=2, **options),
    "head_report": lambda *args, **options: head_report(*args, **options).to_json(),
    "composition_on_data": lambda *args, **options: vars(composition_on_data(*args, **options)),
    "composition_on_data, corrupt": lambda m, t, **options: vars(
        composition_on_data(m, t, corrupt=torch.where(REAL, 6 - TOKENS, t), **options)
    ),
    "head_mixing": head_mixing,
    "bridge_metrics": lambda m, t, **options: bridge_metrics(bridges(), t, **options),
    "chain_losses": lambda m, t, **options: chain_losses(bridges(), t, **options).nan_to_num(),
}


@cache
def bridges() -> Any:
    """Between the model and one of other weights, so that every number differs from zero."""
    other = SparseTransformer(model().config, seed=3).eval()
    return replace(identity_bridges(model()), sparse=other)


def numbers(name: str, tokens: torch.Tensor, **options: Any) -> torch.Tensor:
    found = ANALYSES[name](model(), tokens, **options)
    found = {k: v for k, v in found.items() if k != "pairs"} if isinstance(found, dict) else found
    return flat(found).nan_to_num()


@pytest.mark.parametrize("name", ANALYSES)
def test_what_stands_in_the_padding_changes_nothing(name):
    one, other = (numbers(name, tokens, lengths=LENGTHS) for tokens in (TOKENS, OTHERWISE))
    torch.testing.assert_close(one, other)
    blind, otherwise = (numbers(name, tokens) for tokens in (TOKENS, OTHERWISE))
    assert blind.shape != otherwise.shape or not torch.allclose(blind, otherwise), (
        "padding was never looked at"
    )


@pytest.mark.parametrize("name", ANALYSES)
def test_lengths_of_rows_without_padding_change_no_bit(name):
    assert torch.equal(numbers(name, TOKENS, lengths=torch.full((3,), 6)), numbers(name, TOKENS))


def test_means_are_those_of_the_rows_cut_to_their_lengths():
    means = mean_values(model(), TOKENS, lengths=LENGTHS)
    rows = [mean_values(model(), row[None, :n]) for row, n in zip(TOKENS, LENGTHS.tolist(), strict=True)]
    for site, mean in means.items():
        parts = [row[site] * n / LENGTHS.sum() for row, n in zip(rows, LENGTHS, strict=True)]
        torch.testing.assert_close(mean, torch.stack(parts).sum(0))


def test_shares_of_attention_are_those_of_the_rows_cut_to_their_lengths():
    found = pattern_scores(model(), TOKENS, lengths=LENGTHS)
    rows = [pattern_scores(model(), row[None, :n]) for row, n in zip(TOKENS, LENGTHS.tolist(), strict=True)]
    for name, weights in (("sink", LENGTHS), ("previous", LENGTHS - 1)):
        parts = [getattr(row, name) * n for row, n in zip(rows, weights, strict=True)]
        torch.testing.assert_close(getattr(found, name), torch.stack(parts).sum(0) / weights.sum())
    assert head_report(model(), TOKENS, lengths=LENGTHS).n_tokens == int(LENGTHS.sum())


def test_other_ablations_take_no_value_from_padding():
    cut = LENGTHS.clamp(max=5)
    at_place = ablation_values(model(), TOKENS, "position", lengths=cut)
    own = ablation_values(model(), TOKENS[1:, :5], "position")
    texts = ablation_values(model(), TOKENS, "resample", lengths=cut)
    longest = ablation_values(model(), TOKENS[1:, :5], "resample")
    for site, value in at_place.items():
        assert value.shape[0] == 5
        torch.testing.assert_close(value[3:], own[site][3:])
        torch.testing.assert_close(texts[site], longest[site])


def test_a_batch_says_how_long_its_prompts_are():
    batch = Batch(clean=TOKENS, corrupt=TOKENS + 1, answer=LENGTHS, foil=LENGTHS + 1, position=LENGTHS - 1)
    assert torch.equal(batch.lengths, LENGTHS)
    assert torch.equal(batch.tokens_and_targets().lengths, torch.cat([LENGTHS, LENGTHS]))


@pytest.mark.parametrize("lengths", [[3, 6], [0, 6, 5], [3, 7, 5]])
def test_lengths_that_do_not_fit_are_refused(lengths):
    for call in (mean_values, pattern_scores, head_mixing, head_report, composition_on_data):
        with pytest.raises(
            ValueError, match=r"lengths: got \[.*expected 3 numbers from 1 to 6.*batch.lengths"
        ):
            unchecked(call)(model(), TOKENS, lengths=torch.tensor(lengths))


@pytest.mark.parametrize("bad", [torch.tensor([1, 2]), torch.tensor(1), torch.zeros(1, 2, 3), [[1, 2]]])
def test_tokens_of_another_shape_are_refused(bad):
    expected = r"tokens: got .*; expected a tensor of token ids \[batch, pos\].*tokens\[None\]"
    for call in (mean_values, pattern_scores, head_mixing, head_report, composition_on_data):
        with pytest.raises(ValueError, match=expected):
            unchecked(call)(model(), bad)
    with pytest.raises(ValueError, match=expected):
        unchecked(SparseTransformer.forward)(model(), bad)


def test_tokens_that_are_no_whole_numbers_and_corrupt_tokens_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"tokens: got torch.float32; expected whole numbers"):
        unchecked(SparseTransformer.forward)(model(), torch.zeros(1, 2))
    with pytest.raises(ValueError, match=r"corrupt: got shape \(3, 5\); expected that of tokens, \(3, 6\)"):
        unchecked(composition_on_data)(model(), TOKENS, corrupt=TOKENS[:, :5])


def unchecked(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function as users have it: without the check of shapes that stands before it in tests."""
    return inspect.unwrap(function)
