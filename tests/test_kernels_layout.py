"""Passes over activations: copies are exact whatever the shape, masks are the plain expression with its gradients."""

import pytest
import torch

from circuits.kernels import replace_features, token_major
from circuits.kernels.cpu.layout import contiguous, transposed


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(1, 1), (1, 70), (70, 1), (32, 32), (33, 65), (0, 5), (5, 0)])
def test_transposes_are_exact(shape, dtype):
    x = torch.randn(shape, dtype=dtype)
    assert torch.equal(transposed(x), x.t())
    assert transposed(x).is_contiguous()


def test_contiguous_copies_any_layout():
    x = torch.randn(3, 4, 5)
    for view in (x, x.movedim(-1, 0), x.movedim(0, -1), x.transpose(0, 1), x[:, ::2], x[0, 0]):
        out = contiguous(view)
        assert out.is_contiguous()
        assert torch.equal(out, view)


@pytest.mark.parametrize("feature_major", [True, False])
@pytest.mark.parametrize("width", [(6,), (2, 3)])
@pytest.mark.parametrize("needs", [(True, True), (True, False), (False, True)])
def test_replacing_is_the_plain_expression_with_its_gradients(feature_major, width, needs):
    x = torch.randn(3, 7, 6, dtype=torch.float64)
    if feature_major:
        x = x.movedim(-1, 0).contiguous().movedim(0, -1)
    x = x.unflatten(-1, width)
    value, mask = (torch.randn(width, dtype=torch.float64) for _ in range(2))
    x.requires_grad_(needs[0])
    mask.requires_grad_(needs[1])
    ours, plain = replace_features(x, mask, value), x * mask + value * (1 - mask)
    torch.testing.assert_close(ours, plain, atol=1e-14, rtol=1e-14)
    leaves = [t for t in (x, mask) if t.requires_grad]
    upstream = torch.randn_like(ours)
    for a, b in zip(
        torch.autograd.grad(ours, leaves, upstream), torch.autograd.grad(plain, leaves, upstream), strict=True
    ):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-12)


def test_open_and_closed_masks_give_the_value_itself():
    x = torch.randn(4, 5, 6).movedim(-1, 0).contiguous().movedim(0, -1)
    value, ones = torch.randn(6), torch.ones(6)
    assert torch.equal(replace_features(x, ones, value), x)
    assert torch.equal(replace_features(x, 0 * ones, value), value.expand_as(x))


@pytest.mark.parametrize("width", [(6,), (2, 3)])
def test_token_major_is_the_same_tensor_laid_anew_with_its_gradient(width):
    x = torch.randn(6, 3, 7, dtype=torch.float64).movedim(0, -1).unflatten(-1, width).requires_grad_()
    y = token_major(x)
    assert y.is_contiguous()
    assert torch.equal(y, x)
    upstream = torch.randn_like(y)
    assert torch.equal(torch.autograd.grad(y, x, upstream)[0], upstream)
    assert token_major(y) is y
    assert token_major(torch.zeros(0, 4, 3)[:, ::2]).shape == (0, 2, 3)
