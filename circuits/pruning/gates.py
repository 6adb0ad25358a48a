"""Learned gates: one real parameter per coordinate or weight, whose sign is the mask."""

from typing import Any, Generic, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

Key = TypeVar("Key")


class _Heaviside(torch.autograd.Function):
    """1 where the gate is positive; the gradient is that of a sigmoid (straight-through)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(gate: Tensor) -> Tensor:
        return (gate > 0).to(gate.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (gate,) = ctx.saved_tensors
        open_share = gate.sigmoid()
        return grads[0] * open_share * (1 - open_share)


def hard_mask(gate: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """1 = keep where the gate is above 0, else 0; backward through sigmoid'(gate).

    Source: Gao et al. 2025 (arXiv 2511.13653), node masks.
    """
    return _Heaviside.apply(gate)


class Gates(Generic[Key]):
    """Gate parameters by key (a site, or a weight matrix), started uniformly in [0.1, 1] and kept in [-1, 1].

    The spread lets them close one after the other: gates that start together close together, needed or not.
    """

    def __init__(self, shapes: dict[Key, tuple[int, ...]], *, seed: int, like: Tensor) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.parameters: dict[Key, nn.Parameter] = {
            key: nn.Parameter((0.1 + 0.9 * torch.rand(shape, generator=generator)).to(like))
            for key, shape in shapes.items()
        }

    def masks(self) -> dict[Key, Tensor]:
        """The mask of each key: 1 = keep, differentiable."""
        return {key: hard_mask(gate) for key, gate in self.parameters.items()}

    def clamp(self) -> None:
        """Bring every gate back into [-1, 1]; call it after each optimiser step."""
        with torch.no_grad():
            for gate in self.parameters.values():
                gate.clamp_(-1, 1)

    def n_open(self) -> int:
        """Number of gates above 0."""
        return sum(int((gate > 0).sum()) for gate in self.parameters.values())
