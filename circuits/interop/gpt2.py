"""GPT-2 and its like as a model of ours: the weights of a wrapped model, copied, and the same logits.

    dense = from_gpt2(LensSubject(bridge))     # a SparseTransformer; all that takes one takes it

A `LensSubject` runs the wrapped model as it is, and its circuits are of nodes alone. What reads or replaces weights
(edges, checkpoints, sparse factors: `circuits.training.fit_factors`) asks for a model of ours, and a decoder with
LayerNorm before each sublayer, learned positions and a plain MLP is one.
"""

from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from circuits.interop.lens import Bridge, LensSubject
from circuits.model.config import ModelConfig
from circuits.model.mlp import ACTIVATIONS
from circuits.model.transformer import SparseTransformer

LIKE = "a decoder such as GPT-2: LayerNorm before each sublayer, learned positions, MLPs without a gate"
"""What can be copied."""
NEAR = 1e-3
"""Largest difference of logits, in their standard deviations, that rounding explains."""


def from_gpt2(model: LensSubject | Bridge, *, tokenizer: Any = None) -> SparseTransformer:
    """A dense SparseTransformer with the weights of a wrapped model: a copy, in eval mode, whose logits are the same.

    model: a LensSubject or its TransformerBridge. tokenizer: what made the token ids, one of ours; None: none. Raises
    ValueError for what is no wrapped model, for another architecture, and where logits on a few tokens are not the
    same.

    Examples:
        >>> from tokenizers import ByteLevelBPETokenizer
        >>> from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
        >>> shape = GPT2Config(n_layer=1, n_embd=16, n_head=2, vocab_size=257, bos_token_id=0, eos_token_id=0)
        >>> GPT2LMHeadModel(shape).save_pretrained("gpt2")
        >>> bytes_alone = ByteLevelBPETokenizer()
        >>> bytes_alone.train_from_iterator([""], vocab_size=257, special_tokens=["<s>"], show_progress=False)
        >>> marks = dict.fromkeys(("bos_token", "eos_token", "pad_token"), "<s>")
        >>> _ = PreTrainedTokenizerFast(tokenizer_object=bytes_alone._tokenizer, **marks).save_pretrained("gpt2")
        >>> dense = circuits.interop.from_gpt2(circuits.interop.load_hf("gpt2"))
        >>> dense.config.act, len(dense.sites())
        ('gelu_new', 8)
    """
    subject = model if isinstance(model, LensSubject) else LensSubject(model)
    bridge: Any = subject.bridge
    config = _config(bridge)
    made = SparseTransformer(config, tokenizer=tokenizer).to(subject.like)
    try:
        with torch.no_grad():
            for own, value in _weights(bridge, made):
                own.copy_(value)
    except (AttributeError, RuntimeError) as error:
        raise ValueError(f"model: its weights do not fit ({error}); expected {LIKE}.") from None
    _check_same(bridge, made.eval())
    return made


def _config(bridge: Any) -> ModelConfig:
    cfg = bridge.cfg
    asked = {
        "normalization_type": ("LN",),
        "positional_embedding_type": ("standard",),
        "act_fn": tuple(ACTIVATIONS),
        "gated_mlp": (False,),
    }
    for name, allowed in asked.items():
        got = getattr(cfg, name, allowed[0])
        if got not in allowed:
            raise ValueError(
                f"model: it has {name}={got!r}; expected {' or '.join(map(repr, allowed))}, {LIKE}. A LensSubject runs "
                "it as it is."
            )
    return ModelConfig(
        d_vocab=int(cfg.d_vocab),
        n_layers=int(cfg.n_layers),
        d_model=int(cfg.d_model),
        n_heads=int(cfg.n_heads),
        d_head=int(cfg.d_head),
        d_mlp=int(cfg.d_mlp),
        n_ctx=int(cfg.n_ctx),
        topk_fraction=None,
        sink=False,
        bigram=False,
        norm="layer",
        norm_eps=float(cfg.eps),
        act=cfg.act_fn,
    )


def _weights(bridge: Any, made: SparseTransformer) -> list[tuple[Tensor, Tensor]]:
    """Each weight of ours, and its value there."""
    found = [(made.W_E, bridge.W_E), (made.W_pos, bridge.W_pos), *_norm(made.ln_final, bridge.ln_final)]
    found += [(made.unembed.W_U, bridge.W_U), (made.unembed.b_U, bridge.b_U)]
    for block, theirs in zip(made.blocks, bridge.blocks, strict=True):
        ours: Any = block
        attn, mlp = theirs.attn, theirs.mlp
        for own, W, b in (
            (ours.attn.q, attn.W_Q, attn.b_Q),
            (ours.attn.k, attn.W_K, attn.b_K),
            (ours.attn.v, attn.W_V, attn.b_V),
        ):
            found += [(own.weight, rearrange(W, "head d_model d_head -> d_model (head d_head)"))]
            found += [(own.bias, b.flatten())]
        found += [(ours.attn.o.weight, attn.W_O.flatten(0, 1)), (ours.attn.o.bias, attn.b_O)]
        found += [(ours.mlp.up.weight, mlp.W_in), (ours.mlp.up.bias, mlp.b_in)]
        found += [(ours.mlp.down.weight, mlp.W_out), (ours.mlp.down.bias, mlp.b_out)]
        found += [*_norm(ours.ln1, theirs.ln1), *_norm(ours.ln2, theirs.ln2)]
    return found


def _norm(ours: nn.Module, theirs: Any) -> list[tuple[Tensor, Tensor]]:
    own: Any = ours
    return [(own.w, theirs.weight), (own.b, theirs.bias)]


def _check_same(bridge: Any, made: SparseTransformer) -> None:
    """Raise ValueError unless both give the same logits on a few tokens."""
    n = min(16, made.n_ctx)
    tokens = torch.arange(4 * n, device=made.W_E.device).view(4, n) % made.d_vocab
    with torch.no_grad():
        theirs, ours = bridge(tokens), made(tokens)
    apart = float((ours - theirs).abs().max() / theirs.std().clamp_min(1e-6))
    if not apart <= NEAR:
        raise ValueError(
            f"model: with its weights copied, logits differ by {apart:.2g} of their standard deviation; expected at "
            f"most {NEAR:g}, as of {LIKE}. A LensSubject runs it as it is."
        )
