"""The model, complete in one file: a GPT-2-shaped decoder built to be weight-sparse and taken apart.

    x = W_E[token] + W_pos[position]
    x += attn(norm(x));  x += mlp(norm(x))        (per layer)
    logits = norm(x) W_U + b_U + bigram[token]

RMSNorm has no weights, so zero keeps its meaning and TransformerLens's residual-stream arithmetic is exact.
At eight sites a layer AbsTopK keeps the k largest magnitudes of each token. A dense model is the same class
with `topk_fraction=None`. Every pass (masked, ablated, bridged, hooked) is this one `forward`.
"""

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import fields
from typing import Any, Literal, NamedTuple

import torch
from einops import rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from transformer_lens import ActivationCache, HookedRootModule
from transformer_lens.config import TransformerLensConfig
from transformer_lens.hook_points import HookPoint

from circuits.kernels import abs_topk, causal_attention, token_major
from circuits.model.affine import AffineMap
from circuits.model.config import ModelConfig
from circuits.model.mixers import Compose, sink_softmax
from circuits.model.sites import WEIGHTS, Site, Stack


class Matrix(NamedTuple):
    """One tensor that training projects onto its top-k, and how."""

    name: str
    parameter: Tensor
    """In a compact map, made from its nonzeros."""
    group: Literal["block", "embed"]
    unit_axis: int | None
    """Axis that enumerates the units that must each keep `min_alive` weights; None where there are none."""


class AbsTopK(nn.Module):
    """Keep the k largest magnitudes along the last axis, sign kept; k = None passes everything."""

    def __init__(self, k: int | None) -> None:
        super().__init__()
        self.k = k

    def forward(self, x: Float[Tensor, "... width"]) -> Float[Tensor, "... width"]:
        """At most k nonzeros per row."""
        return x if self.k is None or self.k >= x.shape[-1] else abs_topk(x, self.k)

    def extra_repr(self) -> str:
        """Shown in `print(model)`."""
        return f"k={self.k}"


class Linear(AffineMap):
    """`x @ weight + bias` with weight [d_in, d_out]: the right-multiplying convention of TransformerLens."""

    weight: Float[Tensor, "d_in d_out"]

    def __init__(self, d_in: int, d_out: int, std: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(d_in, d_out) * std)
        self.bias = nn.Parameter(torch.zeros(d_out))


class _MeanSquare(torch.autograd.Function):
    """`x.square().mean(-1, keepdim=True)`, the very bits; backward in the memory layout of x, whatever it is."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.square().mean(dim=-1, keepdim=True)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return x * (2 * (grads[0] / x.shape[-1]))


class RMSNorm(nn.Module):
    """`x / sqrt(mean(x^2) + eps)`, without weights."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.hook_scale = HookPoint()  # [batch, pos, 1]
        self.hook_normalized = HookPoint()  # [batch, pos, d_model]

    def forward(self, x: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        """Root mean square 1 along the last axis."""
        scale = self.hook_scale((_MeanSquare.apply(x) + self.eps).sqrt())
        return self.hook_normalized(x / scale)


class Attention(nn.Module):
    """Causal multi-head attention with a sink logit per head and AbsTopK at q, k, v and out."""

    def __init__(self, config: ModelConfig, lens: TransformerLensConfig, layer: int) -> None:
        super().__init__()
        self.cfg = lens
        self.n_heads, self.d_head = config.n_heads, config.d_head
        d_attn = config.n_heads * config.d_head
        std = 0.02
        self.q = Linear(config.d_model, d_attn, std)
        self.k = Linear(config.d_model, d_attn, std)
        self.v = Linear(config.d_model, d_attn, std)
        self.o = Linear(d_attn, config.d_model, std / math.sqrt(2 * config.n_layers))
        self.sink = nn.Parameter(torch.zeros(config.n_heads)) if config.sink else None
        self.topk_in = AbsTopK(config.topk(Site(layer, "attn_in")))
        self.topk_q, self.topk_k, self.topk_v = (
            AbsTopK(config.topk(Site(layer, s))) for s in ("attn_q", "attn_k", "attn_v")
        )
        self.compose_pre, self.compose_post = (_compose(config), _compose(config))
        self.hook_in = HookPoint()  # site attn_in [batch, pos, d_model]
        self.hook_q = HookPoint()  # site attn_q [batch, pos, head, d_head]
        self.hook_k = HookPoint()  # site attn_k
        self.hook_v = HookPoint()  # site attn_v
        self.hook_q_input, self.hook_k_input, self.hook_v_input = HookPoint(), HookPoint(), HookPoint()
        self.hook_attn_scores = HookPoint()  # [batch, head, query, key]
        self.hook_pattern = HookPoint()  # [batch, head, query, key]; the sink's share is 1 - sum over keys
        self.hook_z = HookPoint()  # [batch, pos, head, d_head]
        self.hook_result = HookPoint()  # [batch, pos, head, d_model], before the bias and AbsTopK

    def forward(
        self, resid: Float[Tensor, "batch pos d_model"], norm: RMSNorm
    ) -> Float[Tensor, "batch pos d_model"]:
        """The layer's contribution to the residual stream, before AbsTopK."""
        if self.cfg.use_split_qkv_input:
            copies = [
                hook(repeat(resid, "batch pos d_model -> batch pos head d_model", head=self.n_heads))
                for hook in (self.hook_q_input, self.hook_k_input, self.hook_v_input)
            ]
            inputs = [self.hook_in(self.topk_in(norm(copy))) for copy in copies]
            x = resid if self.compose_pre is None else self.topk_in(norm(resid))
            q, k, v = (
                torch.einsum("bphd,hde->bphe", y, self._per_head(linear)).flatten(2) + linear.bias
                for y, linear in zip(inputs, (self.q, self.k, self.v), strict=True)
            )
        else:
            x = self.hook_in(self.topk_in(norm(resid)))
            q, k, v = self.q(x), self.k(x), self.v(x)
        q, k, v = (
            hook(topk(y).unflatten(-1, (self.n_heads, self.d_head)))
            for hook, topk, y in (
                (self.hook_q, self.topk_q, q),
                (self.hook_k, self.topk_k, k),
                (self.hook_v, self.topk_v, v),
            )
        )
        z = self.hook_z(self._mix(q, k, v, x))
        if self.cfg.use_attn_result:
            return self.hook_result(torch.einsum("bphe,hed->bphd", z, self.W_O)).sum(2) + self.o.bias
        return self.o(z.flatten(2))

    def _mix(
        self,
        q: Float[Tensor, "batch query head d_head"],
        k: Float[Tensor, "batch key head d_head"],
        v: Float[Tensor, "batch key head d_head"],
        x: Float[Tensor, "batch key d_model"],
    ) -> Float[Tensor, "batch query head d_head"]:
        looked_at = any(hook.has_hooks() for hook in (self.hook_attn_scores, self.hook_pattern))
        if self.compose_pre is None and not looked_at:
            return causal_attention(q, k, v, self.sink)
        n_pos = q.shape[1]
        scores = q.transpose(1, 2) @ rearrange(k, "batch key head d_head -> batch head d_head key")
        scores = scores / math.sqrt(self.d_head)
        if self.compose_pre is not None:
            scores = self.compose_pre(scores, x)
        later = torch.ones(n_pos, n_pos, dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(later, -torch.inf)
        pattern = self.hook_pattern(sink_softmax(self.hook_attn_scores(scores), self.sink))
        if self.compose_post is not None:
            pattern = self.compose_post(pattern, x)
        return (pattern @ v.transpose(1, 2)).transpose(1, 2)

    def _per_head(self, linear: Linear) -> Float[Tensor, "head d_model d_head"]:
        return rearrange(linear.weight, "d_model (head d_head) -> head d_model d_head", head=self.n_heads)

    @property
    def W_Q(self) -> Float[Tensor, "head d_model d_head"]:
        """Query weights by head (a view)."""
        return self._per_head(self.q)

    @property
    def W_K(self) -> Float[Tensor, "head d_model d_head"]:
        """Key weights by head (a view)."""
        return self._per_head(self.k)

    @property
    def W_V(self) -> Float[Tensor, "head d_model d_head"]:
        """Value weights by head (a view)."""
        return self._per_head(self.v)

    @property
    def W_O(self) -> Float[Tensor, "head d_head d_model"]:
        """Output weights by head (a view)."""
        return rearrange(self.o.weight, "(head d_head) d_model -> head d_head d_model", head=self.n_heads)

    @property
    def b_O(self) -> Float[Tensor, " d_model"]:
        """Output bias."""
        return self.o.bias


class MLP(nn.Module):
    """`gelu(x W_in + b_in) W_out + b_out`, exact GELU, AbsTopK at its input and its neurons."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        std = 0.02
        self.up = Linear(config.d_model, config.d_mlp, std)
        self.down = Linear(config.d_mlp, config.d_model, std / math.sqrt(2 * config.n_layers))
        self.topk_in, self.topk_neuron = (
            AbsTopK(config.topk(Site(layer, "mlp_in"))),
            AbsTopK(config.topk(Site(layer, "mlp_neuron"))),
        )
        self.hook_in = HookPoint()  # site mlp_in [batch, pos, d_model]
        self.hook_pre = HookPoint()  # [batch, pos, d_mlp]
        self.hook_post = HookPoint()  # site mlp_neuron [batch, pos, d_mlp]

    def forward(self, normed: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        """The layer's contribution to the residual stream, before AbsTopK."""
        x = self.hook_in(self.topk_in(normed))
        return self.down(self.hook_post(self.topk_neuron(F.gelu(self.hook_pre(self.up(x))))))

    @property
    def W_in(self) -> Float[Tensor, "d_model d_mlp"]:
        """Input weights."""
        return self.up.weight

    @property
    def W_out(self) -> Float[Tensor, "d_mlp d_model"]:
        """Output weights."""
        return self.down.weight

    @property
    def b_in(self) -> Float[Tensor, " d_mlp"]:
        """Input bias."""
        return self.up.bias

    @property
    def b_out(self) -> Float[Tensor, " d_model"]:
        """Output bias."""
        return self.down.bias


class Block(nn.Module):
    """One layer: attention, then MLP, each read from and added to the residual stream."""

    hook_out_is_single_residual_stream = True

    def __init__(self, config: ModelConfig, lens: TransformerLensConfig, layer: int) -> None:
        super().__init__()
        self.cfg = lens
        self.ln1, self.ln2 = RMSNorm(config.norm_eps), RMSNorm(config.norm_eps)
        self.attn, self.mlp = Attention(config, lens, layer), MLP(config, layer)
        self.topk_attn_out, self.topk_mlp_out = (
            AbsTopK(config.topk(Site(layer, "attn_out"))),
            AbsTopK(config.topk(Site(layer, "mlp_out"))),
        )
        self.hook_resid_pre, self.hook_resid_mid, self.hook_resid_post = HookPoint(), HookPoint(), HookPoint()
        self.hook_attn_out = HookPoint()  # site attn_out [batch, pos, d_model]
        self.hook_mlp_in = HookPoint()  # the residual stream as the MLP reads it (not the site mlp_in)
        self.hook_mlp_out = HookPoint()  # site mlp_out [batch, pos, d_model]

    def forward(self, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        """The residual stream after this layer."""
        x = self.hook_resid_pre(x)
        x = self.hook_resid_mid(x + self.hook_attn_out(self.topk_attn_out(self.attn(x, self.ln1))))
        mlp_in = self.hook_mlp_in(x) if self.cfg.use_hook_mlp_in else x
        return self.hook_resid_post(x + self.hook_mlp_out(self.topk_mlp_out(self.mlp(self.ln2(mlp_in)))))


class Unembed(AffineMap):
    """`x W_U + b_U`."""

    MATRIX, BIAS = "W_U", "b_U"
    W_U: Float[Tensor, "d_model d_vocab"]

    def __init__(self, d_model: int, d_vocab: int) -> None:
        super().__init__()
        self.W_U = nn.Parameter(torch.randn(d_model, d_vocab) * 0.02)
        self.b_U = nn.Parameter(torch.zeros(d_vocab))

    def forward(self, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_vocab"]:
        """Logits, without the bigram term."""
        return token_major(super().forward(x))

    @property
    def weight(self) -> Float[Tensor, "d_model d_vocab"]:
        """W_U, by the name it has in every affine map."""
        return self.W_U

    @property
    def bias(self) -> Float[Tensor, " d_vocab"]:
        """b_U."""
        return self.b_U


class SparseTransformer(HookedRootModule):
    """A decoder-only transformer whose every activation of interest has a hook.

    `config` is ours and frozen; `cfg` is the view of it that TransformerLens's tools read and switch.
    """

    def __init__(self, config: ModelConfig, *, seed: int = 0, tokenizer: Any = None) -> None:
        super().__init__()
        if config.d_vocab is None:
            raise ValueError("config.d_vocab: got None; expected the number of tokens of your tokenizer.")
        self.config = config
        self.cfg = _lens_config(config)
        self.tokenizer = tokenizer
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.W_E = nn.Parameter(torch.randn(config.d_vocab, config.d_model) * 0.02)
            self.W_pos = nn.Parameter(torch.randn(config.n_ctx, config.d_model) * 0.02)
            self.blocks = nn.ModuleList(Block(config, self.cfg, layer) for layer in range(config.n_layers))
            self.ln_final = RMSNorm(config.norm_eps)
            self.unembed = Unembed(config.d_model, config.d_vocab)
            self.bigram = nn.Parameter(torch.zeros(config.d_vocab, config.d_vocab)) if config.bigram else None
        self.hook_embed, self.hook_pos_embed = HookPoint(), HookPoint()  # [batch, pos, d_model]
        self.hook_bigram = HookPoint()  # [batch, pos, d_vocab]
        self.setup()

    def forward(
        self,
        tokens: Int[Tensor, "batch pos"],
        return_type: Literal["logits", "loss", "both"] = "logits",
    ) -> Any:
        """Logits [batch, pos, d_vocab]; with return_type "loss", mean next-token loss in nats; "both": a pair.

        Raises ValueError for a sequence longer than n_ctx or a token out of range.
        """
        self._check_tokens(tokens)
        n_pos = tokens.shape[1]
        positions = self.W_pos[:n_pos].expand(tokens.shape[0], -1, -1)
        embedded = F.embedding(tokens, self.W_E)
        if any(linear.sparse is not None for _, linear in self.linears()):
            embedded = embedded.flatten(0, 1).t().contiguous().t().unflatten(0, tokens.shape)
        x = self.hook_embed(embedded) + self.hook_pos_embed(positions)
        for block in self.blocks:
            x = block(x)
        logits = self.unembed(self.ln_final(x))
        if self.bigram is not None:
            logits = logits + self.hook_bigram(F.embedding(tokens, self.bigram))
        if return_type == "logits":
            return logits
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
        return loss if return_type == "loss" else (logits, loss)

    def run_with_cache(self, *args: Any, return_cache_object: bool = True, **kwargs: Any) -> Any:
        """Run and keep every hooked activation; the cache is an `ActivationCache`, or a dict when asked."""
        remove_batch_dim = kwargs.pop("remove_batch_dim", False)
        out, cache = super().run_with_cache(*args, remove_batch_dim=remove_batch_dim, **kwargs)
        if return_cache_object:
            cache = ActivationCache(cache, self, has_batch_dim=not remove_batch_dim)
        return out, cache

    # What each procedure needs to know of the parameters.

    def linear(self, layer: int, weight: str, stack: Stack = "decoder") -> Linear:
        """The affine map of a layer by the name of its weight (`W_Q W_K W_V W_O W_in W_out`)."""
        if weight not in WEIGHTS:
            raise ValueError(f"weight: got {weight!r}; expected one of {list(WEIGHTS)}.")
        found = self.blocks[layer].get_submodule(WEIGHTS[weight].path)
        assert isinstance(found, Linear)
        return found

    def linears(self) -> Iterator[tuple[str, Linear | Unembed]]:
        """Every affine map, by the name of its weight: "0.W_Q" and so on, and "W_U"."""
        for layer in range(self.config.n_layers):
            for name in WEIGHTS:
                yield f"{layer}.{name}", self.linear(layer, name)
        yield "W_U", self.unembed

    def matrices(self) -> Iterator[Matrix]:
        """Every tensor that counts in the budget: all weights and biases, without bigram table and sinks."""
        yield Matrix("W_E", self.W_E, "embed", None)
        yield Matrix("W_pos", self.W_pos, "embed", None)
        for layer in range(self.config.n_layers):
            for name, row in WEIGHTS.items():
                linear = self.linear(layer, name)
                yield Matrix(f"{layer}.{name}", linear.weight, "block", row.unit_axis)
                yield Matrix(f"{layer}.b_{name[2:]}", linear.bias, "block", None)
            for stage in ("compose_pre", "compose_post"):
                module: Any = getattr(self.blocks[layer].attn, stage)
                if module is not None:
                    for name, parameter in module.named_parameters():
                        yield Matrix(f"{layer}.{stage}.{name}", parameter, "block", None)
        yield Matrix("W_U", self.unembed.W_U, "embed", None)
        yield Matrix("b_U", self.unembed.b_U, "embed", None)

    def weight_names(self) -> list[str]:
        """Names of all parameters, and of the matrices of compact maps, sorted."""
        maps = [(path, map) for path, map in self.named_modules() if isinstance(map, AffineMap)]
        compact = [f"{path}.{map.MATRIX}" for path, map in maps if map.is_compact]
        return sorted([name for name, _ in self.named_parameters()] + compact)

    def weight_named(self, name: str) -> Tensor:
        """A weight by its name; in a compact map, made from the nonzeros and not kept."""
        path, _, own = name.rpartition(".")
        weight: Tensor = getattr(self.get_submodule(path), own)
        return weight.detach()

    def n_nonzero(self) -> int:
        """Nonzeros over everything in `matrices`."""
        return sum(int(m.parameter.count_nonzero()) for m in self.matrices())

    def density(self) -> float:
        """Nonzeros over entries of everything in `matrices`."""
        return self.n_nonzero() / sum(m.parameter.numel() for m in self.matrices())

    def hook_name(self, site: Site) -> str:
        """The hook point of a site, as TransformerLens names hook points."""
        return f"blocks.{site.layer}.{site.row.hook}"

    def sites(self) -> list[Site]:
        """Every site in forward order."""
        return self.config.sites

    def fingerprint(self) -> str:
        """A hash of config and weights, 16 hexadecimal digits; 0 and -0 count as the same weight."""
        # Only what differs from the defaults: an option added later leaves fingerprints of older models alone.
        config = self.config.to_json()
        given = {
            f.name: config[f.name] for f in fields(ModelConfig) if getattr(self.config, f.name) != f.default
        }
        digest = hashlib.sha256(json.dumps(given, sort_keys=True).encode())
        for name in self.weight_names():
            digest.update(name.encode())
            digest.update((self.weight_named(name).cpu() + 0.0).contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    # The rest of the contract that TransformerLens's tools rely on.

    @property
    def W_U(self) -> Float[Tensor, "d_model d_vocab"]:
        """Unembedding weights."""
        return self.unembed.W_U

    @property
    def b_U(self) -> Float[Tensor, " d_vocab"]:
        """Unembedding bias."""
        return self.unembed.b_U

    def tokens_to_residual_directions(self, tokens: Any) -> Float[Tensor, "... d_model"]:
        """Columns of W_U for token ids or a token's text: the direction that raises each token's logit."""
        if isinstance(tokens, str):
            tokens = self.to_single_token(tokens)
        if isinstance(tokens, int):
            return self.W_U[:, tokens]
        return self.W_U.T[tokens.squeeze() if tokens.numel() == 1 else tokens]

    def accumulated_bias(
        self, layer: int, mlp_input: bool = False, include_mlp_biases: bool = True
    ) -> Float[Tensor, " d_model"]:
        """Sum of the output biases that layers before `layer` (and this layer's attention, if mlp_input) add."""
        total = torch.zeros_like(self.W_pos[0])
        for i in range(layer):
            total = total + self.linear(i, "W_O").bias
            if include_mlp_biases:
                total = total + self.linear(i, "W_out").bias
        return total + self.linear(layer, "W_O").bias if mlp_input else total

    def blocks_with(self, submodule: str) -> list[tuple[int, nn.Module]]:
        """(layer, block) pairs that have the submodule `attn` or `mlp`: here, all of them."""
        return [(i, block) for i, block in enumerate(self.blocks) if hasattr(block, submodule)]

    def to_tokens(self, text: str | list[str], **_: Any) -> Int[Tensor, "batch pos"]:
        """Token ids of one text or of several of equal length. Raises ValueError without a tokenizer."""
        rows = [self._tokenizer().encode(t) for t in ([text] if isinstance(text, str) else text)]
        if len({len(row) for row in rows}) > 1:
            raise ValueError(
                f"text: the texts have {sorted({len(row) for row in rows})} tokens; expected one length. "
                "Tokenize them one by one, or pad them."
            )
        return torch.tensor(rows, dtype=torch.int64, device=self.W_E.device)

    def to_single_token(self, text: str) -> int:
        """The id of a text that is exactly one token. Raises ValueError otherwise."""
        return self._tokenizer().id(text)

    def set_use_attn_result(self, on: bool) -> None:
        """Compute `hook_result`, each head's own contribution."""
        self.cfg.use_attn_result = on

    def set_use_split_qkv_input(self, on: bool) -> None:
        """Give each head its own hooked copy of the residual stream for q, k and v."""
        self.cfg.use_split_qkv_input = on

    def set_use_hook_mlp_in(self, on: bool) -> None:
        """Pass the MLP's residual input through `hook_mlp_in`."""
        self.cfg.use_hook_mlp_in = on

    def set_use_attn_in(self, on: bool) -> None:
        """Not offered: the split q, k, v inputs do the same and more. Raises ValueError when asked for."""
        if on:
            raise ValueError("use_attn_in: got True; use set_use_split_qkv_input(True) instead.")

    def _tokenizer(self) -> Any:
        if self.tokenizer is None:
            raise ValueError("tokenizer: this model has none; pass tokenizer= to SparseTransformer.")
        return self.tokenizer

    def _check_tokens(self, tokens: Tensor) -> None:
        if tokens.shape[1] > self.config.n_ctx:
            raise ValueError(
                f"tokens: got a sequence of {tokens.shape[1]} tokens; expected at most n_ctx = "
                f"{self.config.n_ctx}. Shorten it, or train a model with a larger n_ctx."
            )
        d_vocab = len(self.W_E)
        if tokens.numel() and not (int(tokens.min()) >= 0 and int(tokens.max()) < d_vocab):
            raise ValueError(
                f"tokens: got ids from {int(tokens.min())} to {int(tokens.max())}; expected 0 to "
                f"{d_vocab - 1}. Was the text encoded with another tokenizer?"
            )


def _compose(config: ModelConfig) -> Compose | None:
    if config.compose == "none":
        return None
    return Compose(config.compose, config.d_model, config.n_heads, config.compose_rank)


def _lens_config(config: ModelConfig) -> TransformerLensConfig:
    lens = TransformerLensConfig(
        d_model=config.d_model,
        d_head=config.d_head,
        n_layers=config.n_layers,
        n_ctx=config.n_ctx,
        n_heads=config.n_heads,
        d_mlp=config.d_mlp,
        d_vocab=config.d_vocab,
        act_fn="gelu",
        eps=config.norm_eps,
        normalization_type="RMSPre",
        default_prepend_bos=False,
    )
    lens.use_hook_mlp_in = lens.use_attn_in = lens.parallel_attn_mlp = False
    return lens
