"""torch.nn.Transformer with the weights of one of our encoder-decoders: what ours is held against."""

import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from circuits.model.config import ModelConfig
from circuits.model.encdec import sinusoids
from circuits.model.sites import Stack
from circuits.model.transformer import SparseTransformer

Pairs = Iterator[tuple[Tensor, Tensor]]


def torch_twin(model: SparseTransformer) -> nn.Transformer:
    """The two stacks in torch, without embeddings; for LayerNorm, relu, no AbsTopK and no sinks."""
    config = model.config
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="enable_nested_tensor")
        twin = nn.Transformer(
            config.d_model,
            config.n_heads,
            config.n_layers,
            config.n_layers,
            config.d_mlp,
            dropout=0.0,
            batch_first=True,
            norm_first=config.norm_position == "pre",
            layer_norm_eps=config.norm_eps,
            dtype=model.W_E.dtype,
        )
    if config.norm_position == "post":
        twin.encoder.norm = twin.decoder.norm = None
    with torch.no_grad():
        for ours, theirs in weight_pairs(model, twin):
            theirs.copy_(ours)
    return twin.eval()


def weight_pairs(model: SparseTransformer, twin: nn.Transformer) -> list[tuple[Tensor, Tensor]]:
    """Our weights, as torch lays them out, beside torch's."""
    found: list[tuple[Tensor, Tensor]] = []
    stacks: tuple[tuple[Stack, Any], ...] = (
        ("encoder", twin.encoder.layers),
        ("decoder", twin.decoder.layers),
    )
    for stack, layers in stacks:
        for ours, theirs in zip(model.layers_of(stack), layers, strict=True):
            found += [*_layer(ours, theirs), *(_cross(ours, theirs) if stack == "decoder" else ())]
    if model.config.norm_position == "pre":
        assert model.encoder is not None, "torch's twin of a decoder alone is another class"
        found += [
            *_norm(model.encoder.ln_final, twin.encoder.norm),
            *_norm(model.ln_final, twin.decoder.norm),
        ]
    return found


def run_twin(model: SparseTransformer, twin: nn.Transformer, tokens: Tensor) -> Tensor:
    """Logits [batch, target, d_vocab] of whole rows: our embeddings around torch's stacks."""
    config = model.config
    source, target = tokens[:, : config.n_source], tokens[:, config.n_source :]
    E = model.W_E.detach() * config.d_model**0.5
    padding = source.eq(config.pad or 0)
    out = twin(
        E[source] + sinusoids(source.shape[1], config.d_model),
        E[target] + sinusoids(target.shape[1], config.d_model),
        tgt_mask=torch.ones(target.shape[1], target.shape[1], dtype=torch.bool).triu(1),
        src_key_padding_mask=padding,
        memory_key_padding_mask=padding,
    )
    return out @ model.W_E.detach().T + model.unembed.b_U.detach()


def parity(config: ModelConfig, tokens: Tensor, *, seed: int = 0) -> dict[str, float]:
    """Greatest difference in logits, in float32, and in gradients of all weights of both stacks, in float64.

    In float32 the last bit decides on which side of zero a relu is that is nearly there, and with it a whole gradient.
    """
    logits, _ = differences(config, tokens, torch.float32, seed=seed)
    _, gradients = differences(config, tokens, torch.float64, seed=seed)
    return {"logits": logits, "gradients": gradients}


def differences(
    config: ModelConfig, tokens: Tensor, dtype: torch.dtype, *, seed: int = 0
) -> tuple[float, float]:
    """Greatest difference in logits, and in gradients under one random loss, both computed in one type of float."""
    model = SparseTransformer(config, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    model.to(dtype)
    twin = torch_twin(model)
    theirs, ours = run_twin(model, twin, tokens), model(tokens)[:, config.n_source :]
    weight = (torch.randn(ours.shape, generator=generator) / ours.numel() ** 0.5).to(dtype)
    for logits in (theirs, ours):
        (logits * weight).sum().backward()
    difference = float((ours - theirs).detach().abs().max())
    return difference, max(map(_apart, gradient_pairs(model, twin)))


def gradient_pairs(model: SparseTransformer, twin: nn.Transformer) -> list[tuple[Tensor, Tensor]]:
    """Gradients take the places of weights, which makes them pairs in the same way; no weight is left."""
    for parameter in (*model.parameters(), *twin.parameters()):
        if parameter.grad is not None:
            parameter.data = parameter.grad
    return [(a.detach(), b.detach()) for a, b in weight_pairs(model, twin)]


def _apart(pair: tuple[Tensor, Tensor]) -> float:
    return float((pair[0] - pair[1]).abs().max())


def _layer(ours: Any, theirs: Any) -> Pairs:
    yield from _attention(ours.attn, theirs.self_attn)
    yield from _norm(ours.ln1, theirs.norm1)
    yield from _norm(ours.ln2, theirs.norm2 if ours.cross is None else theirs.norm3)
    for a, b in ((ours.mlp.up, theirs.linear1), (ours.mlp.down, theirs.linear2)):
        yield from ((a.weight.T, b.weight), (a.bias, b.bias))


def _cross(ours: Any, theirs: Any) -> Pairs:
    yield from _attention(ours.cross, theirs.multihead_attn)
    yield from _norm(ours.ln_cross, theirs.norm2)


def _attention(ours: Any, theirs: Any) -> Pairs:
    maps = (ours.q, ours.k, ours.v)
    yield torch.cat([m.weight.T for m in maps]), theirs.in_proj_weight
    yield torch.cat([m.bias for m in maps]), theirs.in_proj_bias
    yield from ((ours.o.weight.T, theirs.out_proj.weight), (ours.o.bias, theirs.out_proj.bias))


def _norm(ours: Any, theirs: Any) -> Pairs:
    yield from ((ours.w, theirs.weight), (ours.b, theirs.bias))
