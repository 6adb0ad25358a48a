"""The model: a GPT-2-shaped decoder built to be weight-sparse and taken apart.

    x = W_E[token] + W_pos[position]
    x += attn(norm(x));  x += mlp(norm(x))        (per layer)
    logits = norm(x) W_U + b_U + bigram[token]

With `arch="encdec"` it is the original Transformer's decoder, and has an encoder beside it: see `encdec.py`.
RMSNorm has no weights, so zero keeps its meaning and TransformerLens's residual-stream arithmetic is exact.
At the sites of a layer AbsTopK keeps the k largest magnitudes of each token. A dense model is the same class
with `topk_fraction=None`. Every pass (masked, ablated, bridged, hooked) is this one `forward`.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import product
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from transformer_lens.config import TransformerLensConfig

from circuits.model.affine import AffineMap
from circuits.model.cache import acts_at
from circuits.model.config import ModelConfig
from circuits.model.encdec import Encoder, TiedUnembed, hold_positions, next_token_loss, norm_of
from circuits.model.generate import generate
from circuits.model.hooks import HookPoint
from circuits.model.layers import AbsTopK, Linear, Matrix, Unembed
from circuits.model.lens import LensModel, lens_config
from circuits.model.mixers import MIXERS, Attention
from circuits.model.mixers.encdec import CrossAttention, DecoderAttention, EncoderAttention
from circuits.model.mixers.past import Given
from circuits.model.mlp import MLP
from circuits.model.options import ONE_STACK
from circuits.model.sites import (
    OF_SOURCE,
    Site,
    Stack,
    WeightAt,
    WeightRow,
    layer_weights,
    prefix,
    weights_among,
)
from circuits.model.subject import bits_of
from circuits.model.text import check_vocabulary
from circuits.model.tokens import check_ids, check_tokens, is_text
from tasks import TextId

RETURN_TYPES = ("logits", "loss", "both", None)
"""What a forward pass can be asked for."""


class Block(nn.Module):
    """One layer: attention, then MLP, each read from and added to the residual stream."""

    hook_out_is_single_residual_stream = True
    hook_aliases: dict[str, str]
    """What tells TransformerLens that attn_out is no sum of heads: tools that need one refuse, and name AbsTopK."""

    def __init__(
        self,
        config: ModelConfig,
        lens: TransformerLensConfig,
        layer: int,
        attention: Callable[[ModelConfig, TransformerLensConfig, int], Attention],
        cross: CrossAttention | None = None,
    ) -> None:
        super().__init__()
        self.cfg = lens
        self.is_post = config.norm_position == "post"
        self.ln1, self.ln2 = norm_of(config), norm_of(config)
        self.attn, self.mlp = attention(config, lens, layer), MLP(config, layer)
        self.topk_attn_out, self.topk_mlp_out = (
            AbsTopK(config.topk(Site(layer, "attn_out"))),
            AbsTopK(config.topk(Site(layer, "mlp_out"))),
        )
        self.hook_resid_pre, self.hook_resid_mid, self.hook_resid_post = HookPoint(), HookPoint(), HookPoint()
        acts = acts_at(config, layer, "attn_out")
        self.hook_aliases = {"hook_attn_out": "topk_attn_out.hook_out"} if acts else {}
        self.hook_attn_out = HookPoint()  # site attn_out [batch, pos, d_model]
        self.hook_mlp_in = HookPoint()  # the residual stream as the MLP reads it (not the site mlp_in)
        self.hook_mlp_out = HookPoint()  # site mlp_out [batch, pos, d_model]
        self.cross = cross
        if cross is not None:
            self.ln_cross = norm_of(config)
            self.topk_cross_out = AbsTopK(config.topk(Site(layer, "cross_out")))
            self.hook_cross_out = HookPoint()  # site cross_out [batch, pos, d_model]
            self.hook_resid_cross = HookPoint()  # the residual stream after cross-attention
        if self.is_post:
            self.as_is = nn.Identity()

    @property
    def submodules(self) -> dict[str, nn.Module]:
        """By name: where TransformerLens's tools look whether anything comes between heads and residual stream."""
        return dict(self.named_children())

    def forward(
        self,
        x: Float[Tensor, "batch pos d_model"],
        memory: Float[Tensor, "batch source d_model"] | None = None,
    ) -> Float[Tensor, "batch pos d_model"]:
        """The residual stream after this layer; memory: the encoder's output, for a layer that looks at it."""
        x = self.hook_resid_pre(x)
        attended = self.hook_attn_out(self.topk_attn_out(self.attn(x, self._before(self.ln1))))
        x = self.hook_resid_mid(self._after(self.ln1, x + attended))
        if self.cross is not None:
            assert memory is not None, "a layer with cross-attention needs the encoder's output"
            looked = self.cross.look(x, self._before(self.ln_cross), memory)
            looked = self.hook_cross_out(self.topk_cross_out(looked))
            x = self.hook_resid_cross(self._after(self.ln_cross, x + looked))
        mlp_in = self.hook_mlp_in(x) if self.cfg.use_hook_mlp_in else x
        out = self.hook_mlp_out(self.topk_mlp_out(self.mlp(self._before(self.ln2)(mlp_in))))
        return self.hook_resid_post(self._after(self.ln2, x + out))

    def _before(self, norm: nn.Module) -> nn.Module:
        """What a sublayer reads the stream through."""
        return self.as_is if self.is_post else norm

    def _after(self, norm: nn.Module, x: Float[Tensor, "batch pos d_model"]) -> Tensor:
        """The stream as it goes on after a sublayer."""
        return norm(x) if self.is_post else x


class SparseTransformer(LensModel):
    """A decoder-only transformer whose every activation of interest has a hook.

    `config` is ours and frozen; `cfg` is the view of it that TransformerLens's tools read and switch.
    """

    def __init__(self, config: ModelConfig, *, seed: int = 0, tokenizer: Any = None) -> None:
        super().__init__()
        if config.d_vocab is None:
            raise ValueError("config.d_vocab: got None; expected the number of tokens of your tokenizer.")
        self.config = config
        self.cfg = lens_config(config)
        check_vocabulary(tokenizer, config.d_vocab)
        self.tokenizer = tokenizer
        self.trained_on: TextId | None = None
        # Weights made in inference mode could never be learned, nor anything through them.
        with torch.inference_mode(False), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            std = config.d_model**-0.5 if config.embed_scale else 0.02
            self.W_E = nn.Parameter(torch.randn(config.d_vocab, config.d_model) * std)
            hold_positions(self, config, config.n_ctx - config.n_source)
            self.given = Given()
            self.blocks = nn.ModuleList(self._layers("decoder"))
            self.ln_final = norm_of(config) if config.norm_position == "pre" else nn.Identity()
            self.unembed: Any = (
                TiedUnembed(config.d_vocab) if config.tied else Unembed(config.d_model, config.d_vocab)
            )
            self.encoder = (
                Encoder(config, nn.ModuleList(self._layers("encoder"))) if config.arch == "encdec" else None
            )
            self.bigram = nn.Parameter(torch.zeros(config.d_vocab, config.d_vocab)) if config.bigram else None
        self.hook_embed, self.hook_pos_embed = HookPoint(), HookPoint()  # [batch, pos, d_model]
        self.hook_bigram = HookPoint()  # [batch, pos, d_vocab]
        self.setup()

    def _layers(self, stack: Stack) -> Iterator[Block]:
        """New layers of a stack."""
        config, lens, given = self.config, self.cfg, self.given
        for layer in range(config.n_layers):
            if config.arch == "decoder":
                yield Block(config, lens, layer, partial(MIXERS[config.attention], given=given))
            elif stack == "encoder":
                yield Block(config, lens, layer, partial(EncoderAttention, given=given))
            else:
                cross = CrossAttention(config, lens, layer, given)
                yield Block(config, lens, layer, partial(DecoderAttention, given=given), cross)

    def forward(
        self,
        tokens: Int[Tensor, "batch pos"] | str | list[str],
        return_type: Literal["logits", "loss", "both"] | None = "logits",
        stop_at_layer: int | None = None,
    ) -> Any:
        """Logits [batch, pos, d_vocab]; with return_type "loss", mean next-token loss in nats; "both": a pair.

        tokens may be a text, or several of equal length. stop_at_layer: the residual stream [batch, pos, d_model]
        before that layer, counted from the end where it is negative, in place of logits; later layers do not run. An
        encoder-decoder takes rows that hold source and target; the loss is that of the target. None runs the model for
        its hooks alone and returns None. While another thread has hooks on the model, or sparse compute, the pass
        waits. Raises ValueError for tokens that are not [batch, pos], a sequence longer than n_ctx, a token out of
        range or an unknown return_type.
        """
        if return_type not in RETURN_TYPES:
            raise ValueError(f"return_type: got {return_type!r}; expected one of {RETURN_TYPES}.")
        tokens = self._ids(tokens)
        if stop_at_layer is not None:
            return self._stream_before(stop_at_layer, tokens)
        if return_type in ("loss", "both") and tokens.shape[1] < self.config.n_source + 2:
            raise ValueError(
                f"tokens: got sequences of {tokens.shape[1]} token for a loss; expected at least "
                f"{self.config.n_source + 2}, so that there is a next one to predict."
            )
        with self.turn:
            logits = self._logits(tokens)
        if return_type is None:
            return None
        if return_type == "logits":
            return logits
        loss = next_token_loss(logits, tokens, n_source=self.config.n_source, pad=self.config.pad)
        return loss if return_type == "loss" else (logits, loss)

    def _stream_before(
        self, layer: int, tokens: Int[Tensor, "batch pos"]
    ) -> Float[Tensor, "batch pos d_model"]:
        """The residual stream that a layer reads, as TransformerLens counts: n_layers is the end."""
        ONE_STACK.check(self, "stop_at_layer", instead="Run encode and decode by themselves.")
        n = self.config.n_layers
        if not -n <= layer <= n:
            raise ValueError(f"stop_at_layer: got {layer}; expected {-n} to {n}, or None.")
        with self.turn:
            x = self._embedded(tokens)
            for block in self.blocks[: layer + n if layer < 0 else layer]:
                x = block(x)
        return x

    def _ids(self, given: Any) -> Int[Tensor, "batch pos"]:
        """Token ids of what a pass was given, ids or text. Raises ValueError for what is neither, or does not fit."""
        tokens: Tensor = self.to_tokens(given) if is_text(given) else given
        self.check_tokens(tokens)
        return tokens

    def _logits(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_vocab"]:
        if self.encoder is None:
            return self.decode(tokens)
        n_source = self.config.n_source
        logits = self.decode(tokens[:, n_source:], self.encode(tokens[:, :n_source]))
        return F.pad(logits, (0, 0, n_source, 0))

    def encode(self, source: Int[Tensor, "batch source"]) -> Float[Tensor, "batch source d_model"]:
        """The encoder's output, which `decode` looks at; its padding is left out there as well."""
        assert self.encoder is not None, "a decoder alone has nothing to encode"
        self.given.real = source.ne(self._pad)
        memory: Tensor = self.encoder(source, self.W_E)
        return memory

    def decode(
        self,
        tokens: Int[Tensor, "batch pos"],
        memory: Float[Tensor, "batch source d_model"] | None = None,
        *,
        first: int = 0,
    ) -> Float[Tensor, "batch pos d_vocab"]:
        """Logits of the decoder; memory: what `encode` gave, of an encoder-decoder. first: the first token's position,
        where those before it are remembered."""
        x = self._embedded(tokens, first)
        for block in self.blocks:
            x = block(x) if memory is None else block(x, memory)
        x = self.ln_final(x)
        logits = self.unembed(x, self.W_E) if self.config.tied else self.unembed(x)
        if self.bigram is not None:
            logits = logits + self.hook_bigram(F.embedding(tokens, self.bigram))
        return logits

    def _embedded(
        self, tokens: Int[Tensor, "batch pos"], first: int = 0
    ) -> Float[Tensor, "batch pos d_model"]:
        """Tokens and their positions, from `first` on, in the residual stream."""
        positions = self.W_pos[first : first + tokens.shape[1]].expand(tokens.shape[0], -1, -1)
        embedded = F.embedding(tokens, self.W_E)
        if any(linear.sparse is not None for _, linear in self.linears()):
            embedded = embedded.flatten(0, 1).t().contiguous().t().unflatten(0, tokens.shape)
        if self.config.embed_scale:
            embedded = embedded * math.sqrt(self.config.d_model)
        return self.hook_embed(embedded) + self.hook_pos_embed(positions)

    def generate(self, tokens: Int[Tensor, "batch pos"], n_new: int, **options: Any) -> list[list[int]]:
        """What comes after each text: `circuits.model.generate.generate`, with its options and errors."""
        return generate(self, tokens, n_new, **options)

    # What each procedure needs to know of the parameters.

    def linear(self, layer: int, weight: str, stack: Stack = "decoder") -> Linear:
        """The affine map of a layer by the name of its weight (`W_Q W_K W_V W_O W_in W_out`, and so on)."""
        names = self._weights(stack)
        if weight not in names:
            raise ValueError(f"weight: got {weight!r}; expected one of {list(names)}.")
        found = self.layers_of(stack)[layer].get_submodule(names[weight].path)
        assert isinstance(found, Linear)
        return found

    def linears(self) -> Iterator[tuple[str, Linear | Unembed]]:
        """Every affine map, by the name of its weight: "0.W_Q" and so on, and "W_U"."""
        for at in self._weights_at():
            yield str(at), self.linear(*at)
        if not self.config.tied:
            yield "W_U", self.unembed

    def layers_of(self, stack: Stack) -> nn.ModuleList:
        """The layers of a stack. Raises ValueError for the encoder of a model without one."""
        if stack == "decoder":
            return self.blocks
        if self.encoder is None:
            raise ValueError("stack: got 'encoder'; expected 'decoder', the only one that this model has.")
        return self.encoder.blocks

    def embedding(self, stack: Stack) -> Float[Tensor, "d_vocab d_model"]:
        """The matrix by which a stack embeds its tokens."""
        own = None if stack == "decoder" or self.encoder is None else self.encoder.W_E
        return self.W_E if own is None else own

    def position_table(self, stack: Stack) -> Float[Tensor, "n_ctx d_model"]:
        """What a stack adds to its embedded tokens, by their position in its text."""
        table: Tensor = self.W_pos if stack == "decoder" or self.encoder is None else self.encoder.W_pos
        return table

    @property
    def W_U(self) -> Float[Tensor, "d_model d_vocab"]:
        """Unembedding weights."""
        return self.W_E.T if self.config.tied else self.unembed.W_U

    @property
    def stacks(self) -> tuple[Stack, ...]:
        """Its stacks of layers, in forward order."""
        return ("decoder",) if self.encoder is None else ("encoder", "decoder")

    def _weights(self, stack: Stack) -> dict[str, WeightRow]:
        """The weight matrices that a layer of a stack has."""
        crossed = self.encoder is not None and stack == "decoder"
        config = self.config
        return layer_weights(crossed=crossed, routed=config.experts > 0, factored=config.factor_ratio > 0)

    def weights_among(self, sites: Iterable[Site]) -> list[WeightAt]:
        """The weight matrices that lead from one of these sites to another, layer by layer."""
        return [at for at in weights_among(sites) if at.name in self._weights(at.stack)]

    def _weights_at(self) -> Iterator[WeightAt]:
        for stack in self.stacks:
            for layer in range(self.config.n_layers):
                yield from (WeightAt(layer, name, stack) for name in self._weights(stack))

    def matrices(self) -> Iterator[Matrix]:
        """Every tensor that counts in the budget: all weights and biases, without bigram table and sinks."""
        yield Matrix("W_E", self.W_E, "embed", None)
        yield from self._embeddings()
        for stack, layer in product(self.stacks, range(self.config.n_layers)):
            for name, row in self._weights(stack).items():
                linear = self.linear(layer, name, stack)
                at = f"{prefix(stack)}{layer}"
                yield Matrix(f"{at}.{name}", linear.weight, "block", row.unit_axis)
                yield Matrix(f"{at}.b_{name[2:]}", linear.bias, "block", None)
            attn: Any = self.layers_of(stack)[layer].attn
            for own in attn.own_matrices():
                yield own._replace(name=f"{prefix(stack)}{layer}.{own.name}")
        if not self.config.tied:
            yield Matrix("W_U", self.unembed.W_U, "embed", None)
        yield Matrix("b_U", self.unembed.b_U, "embed", None)

    def _embeddings(self) -> Iterator[Matrix]:
        """Position tables, where they are learned, and what embeds the source."""
        if self.config.positions == "learned":
            yield Matrix("W_pos", self.W_pos, "embed", None)
        if self.encoder is not None:
            if self.encoder.W_E is not None:
                yield Matrix("encoder.W_E", self.encoder.W_E, "embed", None)
            if self.config.positions == "learned":
                yield Matrix("encoder.W_pos", self.encoder.W_pos, "embed", None)

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

    @property
    def widths(self) -> dict[Site, int]:
        """Number of coordinates of every site, in forward order."""
        return self.config.widths

    @property
    def d_vocab(self) -> int:
        """Number of tokens, and of logits."""
        return len(self.W_E)

    @property
    def n_ctx(self) -> int:
        """Longest sequence, in tokens."""
        return self.config.n_ctx

    @property
    def like(self) -> Float[Tensor, "d_vocab d_model"]:
        """A tensor of the type of the weights, where they are."""
        return self.W_E

    def hook_name(self, site: Site) -> str:
        """The hook point of a site, as TransformerLens names hook points."""
        return f"{prefix(site.stack)}blocks.{site.layer}.{site.row.hook}"

    def places(
        self, tokens: Int[Tensor, "batch pos"], real: Bool[Tensor, "batch pos"], site: Site
    ) -> Bool[Tensor, "batch place"]:
        """True where a site's values are those of tokens that are `real`, and no padding.

        An encoder-decoder's sites have the places of the source or those of the target.
        """
        if self.encoder is None:
            return real
        n, of_source = self.config.n_source, site.stack == "encoder" or site.name in OF_SOURCE
        part = slice(0, n) if of_source else slice(n, None)
        return real[:, part] & tokens[:, part].ne(self._pad)

    @property
    def _pad(self) -> int:
        assert self.config.pad is not None, "an encoder-decoder has a token that fills rows up"
        return self.config.pad

    def sites(self) -> list[Site]:
        """Every site in forward order."""
        return self.config.sites

    def fingerprint(self) -> str:
        """A hash of config and weights, 16 hexadecimal digits; 0 and -0 count as the same weight."""
        digest = hashlib.sha256(json.dumps(self.config.hashed(), sort_keys=True).encode())
        for name in self.weight_names():
            digest.update(name.encode())
            digest.update(bits_of(self.weight_named(name) + 0.0))
        return digest.hexdigest()[:16]

    def check_tokens(self, tokens: Any) -> None:
        """Raise ValueError for tokens that are not [batch, pos], too long, or out of range."""
        check_tokens(tokens)
        check_ids(tokens, n_ctx=self.n_ctx, d_vocab=self.d_vocab)
