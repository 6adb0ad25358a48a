"""An induction model written by hand, among decoy heads that compose with nothing on purpose.

Residual channels: the token (one-hot), its position (one-hot), the token before, the prediction. Head 0 of layer 0
moves the token before into its slot; head 0 of layer 1 asks there for the present token and predicts the token
that it finds. Every other head is a decoy: as many nonzeros, at random places, too faint to disturb.
"""

import torch
from torch import Tensor

from circuits.model.config import ModelConfig
from circuits.model.transformer import SparseTransformer

D_VOCAB, N_CTX = 10, 12
"""Tokens, and positions."""
PREVIOUS, INDUCTION = (0, 0), (1, 0)
"""Layer and head of the two that matter."""


def induction_model(seed: int = 0, *, n_decoys: int = 3) -> SparseTransformer:
    """Two layers of `1 + n_decoys` heads; `seed` decides the decoys alone."""
    config = ModelConfig(
        d_vocab=D_VOCAB,
        n_layers=2,
        d_model=3 * D_VOCAB + N_CTX,
        n_heads=1 + n_decoys,
        d_head=N_CTX,
        d_mlp=4,
        n_ctx=N_CTX,
        topk_fraction=None,
        bigram=False,
    )
    model = SparseTransformer(config).eval()
    generator = torch.Generator().manual_seed(seed)
    eye, places = torch.eye(D_VOCAB), torch.eye(N_CTX)
    token, position = slice(0, D_VOCAB), slice(D_VOCAB, D_VOCAB + N_CTX)
    before = slice(position.stop, position.stop + D_VOCAB)
    said = slice(before.stop, before.stop + D_VOCAB)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.W_E[:, token], model.W_pos[:, position], model.W_U[said] = eye, places, 5 * eye
        for block in model.blocks:
            for head in range(1, config.n_heads):
                for name in ("W_Q", "W_K", "W_V", "W_O"):
                    _sprinkle(getattr(block.attn, name)[head], generator)
        first, second = (block.attn for block in model.blocks)
        first.W_Q[0, position], first.W_K[0, position] = 3 * places, 3 * places.roll(1, 1)
        first.W_V[0, token, :D_VOCAB], first.W_O[0, :D_VOCAB, before] = eye, 0.2 * eye
        second.W_Q[0, token, :D_VOCAB], second.W_K[0, before, :D_VOCAB] = 3 * eye, 3 * eye
        second.W_V[0, token, :D_VOCAB], second.W_O[0, :D_VOCAB, said] = eye, eye
    return model


def _sprinkle(weight: Tensor, generator: torch.Generator) -> None:
    """As many nonzeros as a head of the circuit has, at random places."""
    places = torch.randperm(weight.numel(), generator=generator)[:D_VOCAB]
    rows, columns = places // weight.shape[1], places % weight.shape[1]
    weight[rows, columns] = 0.1 * torch.randn(D_VOCAB, generator=generator)
