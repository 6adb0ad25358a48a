"""`beeg_config.json`: what decides a model in OpenAI's format, and the same model in our words.

Everything here follows the description of the format. What our model cannot compute is refused by the name that the
option has there; what only matters while training (dropout, checkpointing, kernels) is read and left alone.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from circuits.model.config import ModelConfig
from circuits.model.options import Says
from circuits.model.sites import SITES
from circuits.settings import Amount, Count, Settings, fitted, require

LAYER_EPS = 1e-5
"""What its LayerNorm adds to the variance; its RMSNorm adds the epsilon of the type of the activations."""
SAVES = Says(act=("gelu", "relu"), norm=None)
"""What the format has words for: attention without composed heads, a decoder, norms that come first."""
OLD_NAMES = {"n_mlp": "d_mlp"}
"""What older files call some options."""
_ONLY: dict[str, tuple[Any, str]] = {
    "residual_activation_type": ("identity", "the residual stream here passes no activation"),
    "d_pos_emb": (
        None,
        "positions here are added to the residual stream, never concatenated to what is read",
    ),
    "sinusoidal_cat_pos_emb": (False, "positions here are added, never concatenated"),
    "use_tied_aux_matrix": (False, "the model here has no auxiliary matrix"),
}
"""Options with one value that this model can have, and why no other."""


@dataclass(frozen=True, kw_only=True)
class OpenAIConfig(Settings):
    """The options of the format, by their own names; those that it does not need have its own defaults."""

    block_size: Count
    "Longest sequence, in tokens."
    vocab_size: Count
    "Number of tokens."
    n_layer: Count
    "Layers."
    n_head: Count
    "Heads of a layer."
    d_model: Count
    "Width of the residual stream."
    d_head: Count | None = None
    "Channels of a head; None: d_model / n_head."
    d_mlp: Count | None = None
    "Neurons of a layer; None: 4 d_model."
    dropout: Amount = 0.0
    "Training only."
    bias: bool = True
    "Whether affine maps have biases; without, ours are zero."
    ln_bias: bool = True
    "Whether LayerNorm has one."
    rms_norm: bool = False
    "RMSNorm, else LayerNorm."
    residual_activation_type: str = "identity"
    "Identity alone."
    activation_type: Literal["gelu", "relu"] = "gelu"
    "Of neurons."
    afrac: float | None = None
    "Share of a site that AbsTopK keeps: k = int(afrac * width); None: no AbsTopK."
    afrac_loctypes: str = "attn_in,attn_out,mlp_in,mlp_out"
    "Sites that AbsTopK acts on, with commas between them."
    debug_nans: bool = False
    "Training only."
    tied_unembed: bool = True
    "Whether the embedding unembeds."
    tokenizer_name: str = "tinypython_2k"
    "Name of what made the tokens."
    grad_checkpointing: bool = True
    "Training only."
    enable_bigram_table: bool = False
    "Whether there is one."
    learnable_bigram_table: bool = False
    "Whether it trains."
    d_pos_emb: int | None = None
    "None alone."
    dropout_cat_pos_emb: bool = False
    "Without `d_pos_emb` it does nothing."
    sinusoidal_cat_pos_emb: bool = False
    "False alone."
    enable_sparse_kernels: bool = False
    "Training only."
    flash: bool = True
    "How attention is computed; sinks need it there."
    sink: bool = False
    "One sink logit a head."
    use_tied_aux_matrix: bool = False
    "False alone."

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, (only, why) in _ONLY.items():
            require(self, name, getattr(self, name) == only, f"{only!r}, since {why}")
        require(self, "flash", self.flash or not self.sink, "True along with sink, which its code drops else")
        unknown = sorted(set(self.sites) - set(SITES))
        require(self, "afrac_loctypes", not unknown, f"sites out of {SITES}; {unknown} are none of ours")
        self._check_afrac()

    def _check_afrac(self) -> None:
        if self.afrac is None or not self.sites:
            return
        require(self, "afrac", 0 < self.afrac <= 1, "a share in (0, 1], or null")
        for site in self.sites:
            width = {"mlp_neuron": self.neurons}.get(site, self.d_model)
            width = self.n_head * self.channels if site in ("attn_q", "attn_k", "attn_v") else width
            kept = int(self.afrac * width)
            require(self, "afrac", kept > 0, f"at least 1 / {width}: int(afrac * {width}) = 0 zeroes {site}")

    @property
    def channels(self) -> int:
        """Of a head."""
        return self.d_head or self.d_model // self.n_head

    @property
    def neurons(self) -> int:
        """Of a layer."""
        return self.d_mlp or 4 * self.d_model

    @property
    def sites(self) -> tuple[str, ...]:
        """The sites of `afrac_loctypes`."""
        return tuple(name for name in self.afrac_loctypes.split(",") if name)

    @classmethod
    def read(cls, data: Mapping[str, Any]) -> "OpenAIConfig":
        """From the JSON of a file, old or new. Raises ValueError on unknown, missing and unsupported options."""
        given = {OLD_NAMES.get(name, name): value for name, value in data.items()}
        return cls(**fitted(cls, given))

    def ours(self, dtype: torch.dtype) -> ModelConfig:
        """The same model in our words; dtype: the type that it runs in, which decides the epsilon of RMSNorm."""
        on = self.afrac is not None and bool(self.sites)
        return ModelConfig(
            d_vocab=self.vocab_size,
            n_layers=self.n_layer,
            d_model=self.d_model,
            n_heads=self.n_head,
            d_head=self.channels,
            d_mlp=self.neurons,
            n_ctx=self.block_size,
            topk_fraction=self.afrac if on else None,
            topk_sites=tuple(site for site in SITES if site in self.sites) if on else SITES,
            sink=self.sink,
            bigram=self.enable_bigram_table,
            norm="rms" if self.rms_norm else "layer",
            norm_eps=epsilon(dtype) if self.rms_norm else LAYER_EPS,
            act=self.activation_type,
            tied=self.tied_unembed,
        )

    @classmethod
    def of(
        cls, config: ModelConfig, dtype: torch.dtype, *, learnable: bool, tokenizer: str
    ) -> "OpenAIConfig":
        """The words of the format for one of our models. Raises ValueError for an epsilon that it has no place for."""
        eps = epsilon(dtype) if config.norm == "rms" else LAYER_EPS
        require(
            config,
            "norm_eps",
            math.isclose(config.norm_eps, eps, rel_tol=1e-6),
            f"{eps!r}, which a {config.norm} norm has in this format. Train with ModelConfig(norm_eps=...)",
        )
        require(
            config, "n_heads", config.d_model % config.n_heads == 0, "a divisor of d_model, as its code asks"
        )
        activation = config.act
        assert activation != "gelu_new", "SAVES refuses it"
        return cls(
            block_size=config.n_ctx,
            vocab_size=config.d_vocab or 0,
            n_layer=config.n_layers,
            n_head=config.n_heads,
            d_model=config.d_model,
            d_head=config.d_head,
            d_mlp=config.d_mlp,
            rms_norm=config.norm == "rms",
            activation_type=activation,
            afrac=config.topk_fraction,
            afrac_loctypes=",".join(config.topk_sites),
            tied_unembed=config.tied,
            tokenizer_name=tokenizer,
            grad_checkpointing=False,
            enable_bigram_table=config.bigram,
            learnable_bigram_table=config.bigram and learnable,
            sink=config.sink,
        )


def epsilon(dtype: torch.dtype) -> float:
    """What torch's RMSNorm adds to the mean square where nothing is said: the spacing of numbers at 1."""
    return float(torch.finfo(dtype).eps)
