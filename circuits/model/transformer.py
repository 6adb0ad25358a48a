"""The model: a GPT-2-shaped decoder built to be weight-sparse and taken apart.

    x = W_E[token] + W_pos[position]
    x += attn(norm(x));  x += mlp(norm(x))        (per layer)
    logits = norm(x) W_U + b_U + bigram[token]

RMSNorm has no weights, so zero keeps its meaning and TransformerLens's residual-stream arithmetic is exact.
At the sites of a layer AbsTopK keeps the k largest magnitudes of each token. A dense model is the same class
with `topk_fraction=None`. Every pass (masked, ablated, bridged, hooked) is this one `forward`.
"""

import hashlib
import json
from collections.abc import Iterator
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from transformer_lens.config import TransformerLensConfig

from circuits.model.affine import AffineMap
from circuits.model.cache import acts_at
from circuits.model.config import ModelConfig
from circuits.model.hooks import HookPoint
from circuits.model.layers import AbsTopK, Linear, Matrix, RMSNorm, Unembed
from circuits.model.lens import LensModel, lens_config
from circuits.model.mixers import MIXERS
from circuits.model.mlp import MLP
from circuits.model.sites import WEIGHTS, Site, Stack
from circuits.model.subject import bits_of
from circuits.model.tokens import check_tokens

RETURN_TYPES = ("logits", "loss", "both", None)
"""What a forward pass can be asked for."""


class Block(nn.Module):
    """One layer: attention, then MLP, each read from and added to the residual stream."""

    hook_out_is_single_residual_stream = True
    hook_aliases: dict[str, str]
    """What tells TransformerLens that attn_out is no sum of heads: tools that need one refuse, and name AbsTopK."""

    def __init__(self, config: ModelConfig, lens: TransformerLensConfig, layer: int) -> None:
        super().__init__()
        self.cfg = lens
        self.ln1, self.ln2 = RMSNorm(config.norm_eps), RMSNorm(config.norm_eps)
        self.attn, self.mlp = MIXERS[config.attention](config, lens, layer), MLP(config, layer)
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

    @property
    def submodules(self) -> dict[str, nn.Module]:
        """By name: where TransformerLens's tools look whether anything comes between heads and residual stream."""
        return dict(self.named_children())

    def forward(self, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        """The residual stream after this layer."""
        x = self.hook_resid_pre(x)
        x = self.hook_resid_mid(x + self.hook_attn_out(self.topk_attn_out(self.attn(x, self.ln1))))
        mlp_in = self.hook_mlp_in(x) if self.cfg.use_hook_mlp_in else x
        return self.hook_resid_post(x + self.hook_mlp_out(self.topk_mlp_out(self.mlp(self.ln2(mlp_in)))))


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
        self.tokenizer = tokenizer
        # Weights made in inference mode could never be learned, nor anything through them.
        with torch.inference_mode(False), torch.random.fork_rng(devices=[]):
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
        return_type: Literal["logits", "loss", "both"] | None = "logits",
    ) -> Any:
        """Logits [batch, pos, d_vocab]; with return_type "loss", mean next-token loss in nats; "both": a pair.

        None runs the model for its hooks alone and returns None. While another thread has hooks on the model, or
        sparse compute, the pass waits. Raises ValueError for tokens that are not [batch, pos], a sequence longer than
        n_ctx, a token out of range or an unknown return_type.
        """
        if return_type not in RETURN_TYPES:
            raise ValueError(f"return_type: got {return_type!r}; expected one of {RETURN_TYPES}.")
        self._check_tokens(tokens)
        if return_type in ("loss", "both") and tokens.shape[1] < 2:
            raise ValueError(
                f"tokens: got sequences of {tokens.shape[1]} token for a loss; expected at least 2, so that there is a "
                "next one to predict."
            )
        with self.turn:
            logits = self._logits(tokens)
        if return_type is None:
            return None
        if return_type == "logits":
            return logits
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
        return loss if return_type == "loss" else (logits, loss)

    def _logits(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_vocab"]:
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
        return logits

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
            attn: Any = self.blocks[layer].attn
            for own in attn.own_matrices():
                yield own._replace(name=f"{layer}.{own.name}")
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
        return f"blocks.{site.layer}.{site.row.hook}"

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

    def _check_tokens(self, tokens: Any) -> None:
        check_tokens(tokens)
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
