"""The original Transformer's parts: sinusoidal positions, LayerNorm, the encoder, and rows that hold two texts.

A row of tokens holds the source in its first `n_source` places, filled up with `pad`, and then the target, which begins
with a token of its own. So an encoder-decoder runs on [batch, pos] as any model does, and gives logits [batch, pos,
d_vocab]: zero at the source, where nothing is predicted.

    m = encoder(source):  x += attn(x), x += mlp(x)
    decoder(target):      x += attn(x), x += cross(x, m), x += mlp(x);  logits = x W_U + b_U

Source: Vaswani et al. 2017, "Attention Is All You Need" (arXiv 1706.03762), sections 3 and 5.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from circuits.model.config import ModelConfig, Positions
from circuits.model.hooks import HookPoint
from circuits.model.layers import RMSNorm, wide


def sinusoids(n_positions: int, d_model: int, layout: Positions = "sinusoid") -> Float[Tensor, "pos d_model"]:
    """Position p and frequency w give sin(w p) and cos(w p).

    sinusoid: channels 2i and 2i + 1, w = 10000^(-2i / d_model), as published. sinusoid_halves: channels i and
    d_model / 2 + i, w = 10000^(-i / (d_model / 2 - 1)), as in the authors' library. Raises ValueError for another
    layout. Source: section 3.5; tensor2tensor for the second layout.
    """
    n = (d_model + 1) // 2
    i, p = (torch.arange(m, dtype=torch.float64, device="cpu") for m in (n, n_positions))
    if layout == "sinusoid":
        angle = p[:, None] * 10_000 ** (-2 * i / d_model)
        table = torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)
    elif layout == "sinusoid_halves":
        angle = p[:, None] * 10_000 ** (-i / max(n - 1, 1))
        table = torch.cat([angle.sin(), angle.cos()], dim=-1)
    else:
        raise ValueError(f"layout: got {layout!r}; expected 'sinusoid' or 'sinusoid_halves'.")
    return table[:, :d_model].float()


class LayerNorm(nn.Module):
    """`(x - mean) / sqrt(var + eps) * w + b`. Gain and bias are not projected: they move channels, and tie none."""

    def __init__(self, d_model: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.w, self.b = nn.Parameter(torch.ones(d_model)), nn.Parameter(torch.zeros(d_model))
        self.hook_scale = HookPoint()  # [batch, pos, 1]
        self.hook_normalized = HookPoint()  # [batch, pos, d_model], before gain and bias

    def forward(self, x: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        """Mean 0 and standard deviation 1 along the last axis, then gain and bias."""
        x = x - x.mean(-1, keepdim=True)
        scale = self.hook_scale((x.square().mean(-1, keepdim=True) + self.eps).sqrt())
        return self.hook_normalized(x / scale) * self.w + self.b


class TiedUnembed(nn.Module):
    """`x W_E^T + b_U`: unembedding by the matrix that embeds."""

    def __init__(self, d_vocab: int) -> None:
        super().__init__()
        self.b_U = nn.Parameter(torch.zeros(d_vocab))

    def forward(
        self, x: Float[Tensor, "batch pos d_model"], W_E: Float[Tensor, "d_vocab d_model"]
    ) -> Float[Tensor, "batch pos d_vocab"]:
        """Logits, without the bigram term."""
        return F.linear(x, W_E, self.b_U)


def norm_of(config: ModelConfig) -> nn.Module:
    """A norm as the config asks for it."""
    if config.norm == "rms":
        return RMSNorm(config.norm_eps)
    return LayerNorm(config.d_model, config.norm_eps)


class Embedding(nn.Module):
    """What a stack adds up at its bottom: tokens and positions. It owns neither, but the hooks."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.scale = math.sqrt(config.d_model) if config.embed_scale else None
        self.hook_embed, self.hook_pos_embed = HookPoint(), HookPoint()  # [batch, pos, d_model]

    def forward(
        self,
        tokens: Int[Tensor, "batch pos"],
        W_E: Float[Tensor, "d_vocab d_model"],
        W_pos: Float[Tensor, "n_ctx d_model"],
    ) -> Float[Tensor, "batch pos d_model"]:
        """The residual stream below the first layer."""
        embedded = F.embedding(tokens, W_E)
        embedded = embedded if self.scale is None else embedded * self.scale
        return self.hook_embed(embedded) + self.hook_pos_embed(W_pos[: tokens.shape[1]].expand_as(embedded))


class Encoder(nn.Module):
    """Layers over the source: embedding, blocks and, where norms come first, a last norm."""

    W_pos: Float[Tensor, "source d_model"]

    def __init__(self, config: ModelConfig, blocks: nn.ModuleList) -> None:
        super().__init__()
        std = config.d_model**-0.5 if config.embed_scale else 0.02
        shape = (config.d_vocab or 0, config.d_model)
        self.W_E = None if config.tied else nn.Parameter(torch.randn(shape) * std)
        hold_positions(self, config, config.n_source)
        self.embedding = Embedding(config)
        self.blocks = blocks
        self.ln_final = norm_of(config) if config.norm_position == "pre" else nn.Identity()

    def forward(
        self, source: Int[Tensor, "batch source"], W_E: Float[Tensor, "d_vocab d_model"]
    ) -> Float[Tensor, "batch source d_model"]:
        """What the decoder looks at. W_E: embeds the source, where the encoder has no matrix of its own."""
        x = self.embedding(source, W_E if self.W_E is None else self.W_E, self.W_pos)
        for block in self.blocks:
            x = block(x)
        return self.ln_final(x)


def hold_positions(module: nn.Module, config: ModelConfig, n: int) -> None:
    """Give a module its table of `n` positions, `W_pos`: a parameter where it is learned."""
    if config.positions == "learned":
        module.W_pos = nn.Parameter(torch.randn(n, config.d_model) * 0.02)
    else:
        table = sinusoids(n, config.d_model, config.positions)
        module.register_buffer("W_pos", table, persistent=False)


def next_token_loss(
    logits: Float[Tensor, "batch pos d_vocab"],
    tokens: Int[Tensor, "batch pos"],
    *,
    n_source: int = 0,
    pad: int | None = None,
    label_smoothing: float = 0.0,
) -> Float[Tensor, ""]:
    """Mean next-token cross-entropy in nats: of the target alone, where there is a source, without its padding.

    Of half-precision logits it is worked out in float32.

    label_smoothing e: the right token is asked for with 1 - e + e / d_vocab, each other one with e / d_vocab.
    Source: section 5.4.
    """
    return F.cross_entropy(
        wide(logits[:, n_source:-1]).flatten(0, 1),
        tokens[:, n_source + 1 :].flatten(),
        ignore_index=-100 if pad is None else pad,
        label_smoothing=label_smoothing,
    )


def n_targets(tokens: Int[Tensor, "batch pos"], *, n_source: int = 0, pad: int | None = None) -> int:
    """Tokens over which `next_token_loss` takes its mean."""
    asked = tokens[:, n_source + 1 :]
    return asked.numel() if pad is None else int(asked.ne(pad).sum())
