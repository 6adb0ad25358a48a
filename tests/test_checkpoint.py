"""Checkpoints: the same bits back, small on disk, nothing half-written."""

from dataclasses import replace

import pytest
import torch
from safetensors import safe_open

from circuits.kernels import SparseWeight
from circuits.model.checkpoint import load_checkpoint, save_checkpoint
from circuits.model.config import ModelConfig
from circuits.model.transformer import SparseTransformer
from circuits.training.projection import project_topk

CONFIG = ModelConfig(d_vocab=11, d_model=32, n_heads=2, d_mlp=64, n_ctx=8, bigram=False)


def sparse_model() -> SparseTransformer:
    model = SparseTransformer(CONFIG, seed=1)
    for matrix in model.matrices():
        project_topk(matrix.parameter.data, max(1, matrix.parameter.numel() // 50))
    return model


def test_round_trip_is_exact_and_stores_nonzeros(tmp_path):
    model = sparse_model()
    extra = {"moment": torch.randn(3)}
    path = save_checkpoint(tmp_path / "m.safetensors", model, meta={"step": 3}, extra=extra)
    back = load_checkpoint(path)
    assert back.model.fingerprint() == model.fingerprint()
    assert back.meta == {"step": 3}
    assert torch.equal(back.extra["moment"], extra["moment"])
    header = 16_384  # names, shapes, the config
    assert path.stat().st_size <= 6 * model.n_nonzero() + header
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]


def test_nonzeros_far_apart_and_files_of_flat_positions(tmp_path):
    model = SparseTransformer(replace(CONFIG, d_vocab=5000))
    model.W_E.data.zero_()
    model.W_E.data[[0, -1], [1, 2]] = 1.0  # further apart than 16 bits say
    path = save_checkpoint(tmp_path / "m.safetensors", model)
    with safe_open(path, framework="pt") as file:
        names = set(file.keys())
    assert "W_E.nonzero_positions" in names
    assert "W_E.nonzero_steps" not in names
    for compact in (False, True):
        assert load_checkpoint(path, compact=compact).model.fingerprint() == model.fingerprint()


def test_dense_weights_and_negative_zero_survive(tmp_path):
    model = SparseTransformer(CONFIG, seed=2)
    model.W_E.data[0, 0] = -0.0
    back = load_checkpoint(save_checkpoint(tmp_path / "m.safetensors", model)).model
    assert back.fingerprint() == model.fingerprint()


def test_a_failed_write_leaves_the_checkpoint_that_was_there(tmp_path, monkeypatch):
    path = save_checkpoint(tmp_path / "m.safetensors", sparse_model())
    before = path.read_bytes()

    def fails(tensors, partial, metadata):
        partial.write_bytes(b"half")
        raise OSError("the disk is full")

    monkeypatch.setattr("circuits.model.stored.save_file", fails)
    with pytest.raises(OSError, match="the disk is full"):
        save_checkpoint(path, sparse_model())
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("m.safetensors", before)]


def test_other_files_are_refused(tmp_path):
    from safetensors.torch import save_file

    with pytest.raises(ValueError, match="cannot be read as a checkpoint"):
        load_checkpoint(tmp_path / "absent.safetensors")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(ValueError, match="cannot be read as a checkpoint"):
        load_checkpoint(tmp_path / "text")
    save_file({"a": torch.ones(1)}, tmp_path / "other")
    with pytest.raises(ValueError, match="has schema None; expected 'sparse-circuits/checkpoint/1'"):
        load_checkpoint(tmp_path / "other")


def test_a_compact_model_never_holds_a_sparse_matrix_whole(tmp_path, monkeypatch):
    model = sparse_model()
    path = save_checkpoint(tmp_path / "m.safetensors", model)
    monkeypatch.setattr(SparseWeight, "to_dense", lambda self: pytest.fail("made a dense copy"))
    back = load_checkpoint(path, compact=True).model
    tokens = torch.randint(0, 11, (3, 8))
    ours = back(tokens)
    monkeypatch.undo()
    assert all(linear.is_compact for _, linear in back.linears())
    assert sum(p.numel() for p in back.parameters()) < sum(p.numel() for p in model.parameters()) / 5
    torch.testing.assert_close(ours, model(tokens), atol=1e-6, rtol=1e-5)
    assert back.fingerprint() == model.fingerprint()
    again = save_checkpoint(tmp_path / "again.safetensors", back)
    assert again.read_bytes() == path.read_bytes()


@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize("dense", [False, True])
def test_weights_of_another_shape_are_refused(tmp_path, monkeypatch, compact, dense):
    model = SparseTransformer(CONFIG) if dense else sparse_model()
    monkeypatch.setattr(model, "config", replace(CONFIG, d_mlp=65))
    path = save_checkpoint(tmp_path / "m.safetensors", model)
    with pytest.raises(ValueError, match="has shape .*; expected .*65.*, as its own config says"):
        load_checkpoint(path, compact=compact)


def test_a_model_saved_again_gives_the_same_bytes(tmp_path):
    model = SparseTransformer(CONFIG, seed=1)
    held = {save_checkpoint(tmp_path / f"{i}.safetensors", model).read_bytes() for i in range(8)}
    assert len(held) == 1
