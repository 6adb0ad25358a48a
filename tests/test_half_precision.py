"""Models that are not float32: what is computed, hashed and stored of them."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from circuits import bridges
from circuits.circuit.ablation import mean_values
from circuits.circuit.circuit import Circuit
from circuits.circuit.criterion import Criterion
from circuits.circuit.masked import run_circuit
from circuits.circuit.nodes import Node
from circuits.model.config import ModelConfig
from circuits.model.layers import RMSNorm
from circuits.model.transformer import SparseTransformer
from circuits.pruning.procedure import PruneConfig, prune
from tasks.quotes import Quotes

TASK = Quotes()
DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]


def small(dtype: torch.dtype) -> SparseTransformer:
    config = ModelConfig(
        d_vocab=TASK.tokenizer.d_vocab, n_layers=1, d_model=8, n_heads=2, d_head=4, d_mlp=8, n_ctx=TASK.n_ctx
    )
    torch.manual_seed(0)
    return SparseTransformer(config, tokenizer=TASK.tokenizer).to(dtype).eval()


def circuit_of(model: SparseTransformer) -> Circuit:
    tokens = TASK.batch(4, split="train", seed=0).clean
    return Circuit(
        nodes=(Node(0, "mlp_neuron", 1),),
        edges=(),
        widths=model.widths,
        n_layers=1,
        d_head=4,
        criterion=Criterion(task="quotes", target_loss=9.0, target_accuracy=0.0),
        model_hash=model.fingerprint(),
        values=mean_values(model, tokens),
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_circuit_runs_before_and_after_its_file(dtype: torch.dtype, tmp_path: Path) -> None:
    """To the same bits."""
    model, tokens = small(dtype), TASK.batch(4, split="test", seed=0).clean
    circuit = circuit_of(model)
    again = Circuit.load(circuit.save(tmp_path / "circuit.json"))
    before, after = run_circuit(model, circuit, tokens), run_circuit(model, again, tokens)
    assert before.dtype == dtype
    assert torch.equal(before, after)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.slow
def test_pruning_ends_in_a_circuit(dtype: torch.dtype) -> None:
    config = PruneConfig(
        objective="task",
        starts=1,
        steps=2,
        batch_size=4,
        n_mean=4,
        n_eval=4,
        n_test=4,
        target_loss=9.0,
        target_accuracy=0.0,
    )
    model = small(dtype)
    found = prune(model, TASK, config, progress=False)
    assert found.model_hash == model.fingerprint()


def test_a_fingerprint_is_of_the_bits() -> None:
    """Types differ, a copy does not, and a change in the last bit does."""
    prints = {dtype: small(dtype).fingerprint() for dtype in DTYPES}
    assert len(set(prints.values())) == len(DTYPES)
    model = small(torch.bfloat16)
    assert model.fingerprint() == prints[torch.bfloat16]
    with torch.no_grad():
        model.W_E[0, 0] *= 1.01
    assert model.fingerprint() != prints[torch.bfloat16]


@pytest.mark.parametrize("size", [1e-3, 1.0, 300.0, 3e4])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_norm_of_large_numbers(dtype: torch.dtype, size: float) -> None:
    x = (size * torch.randn(5, 16, generator=torch.Generator().manual_seed(0))).clamp(-6e4, 6e4).to(dtype)
    expected = x.double() / (x.double().square().mean(-1, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(RMSNorm(1e-5)(x).double(), expected, rtol=0.02, atol=1e-3)


def test_bridges_to_a_model_of_another_type() -> None:
    dense, sparse = small(torch.bfloat16), small(torch.float32)
    made = bridges.identity_bridges(sparse)
    both = replace(made, dense=dense)
    tokens = TASK.batch(4, split="test", seed=0).clean
    for start, dtype in (("dense", torch.float32), ("sparse", torch.bfloat16)):
        logits = both.hybrid(tokens, "0.attn", start=start)  # type: ignore[arg-type]
        assert logits.dtype == dtype
        torch.testing.assert_close(logits.float(), sparse(tokens), rtol=0.1, atol=0.02)
