"""What decides a model: frozen, checked when made, JSON in and out."""

import math
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal

from circuits.model.sites import ROWS, SITES, Site, SiteName, all_sites
from circuits.settings import Amount, Count, Positive, Settings, Whole, Within

ComposeKind = Literal["none", "static", "gate", "qw", "kw", "full"]
"""none: plain attention. static: W_b alone. gate: both gates. qw, kw: the query or key side. full: both sides."""

Activation = Literal["gelu", "gelu_new", "relu"]
"""What an MLP's neurons do to their input; gelu is the exact one, gelu_new the one of GPT-2, by a tanh. Named as
TransformerLens names them."""

Positions = Literal["learned", "sinusoid", "sinusoid_halves"]
"""learned: a table of weights. sinusoid: sine and cosine in turn; sinusoid_halves: all sines, then all cosines."""

Share = Annotated[
    float, Within("a number in (0, 1], since 0 would leave k = 0 and no activation at all", above=0, most=1)
]


LARGEST_TABLE = 4 * 10**9
"""Bytes that a bigram table takes in float32, at most."""

Layers = Annotated[int, Within("a whole number from 1 to 1,024", least=1, most=1024)]


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Settings):
    """Shape and options of a `SparseTransformer`; JSON in and out."""

    d_vocab: Count | None = None
    "Number of tokens; None: `train` fills in the vocabulary of its corpus."
    n_layers: Layers = 2
    "Blocks of attention and MLP."
    d_model: Count = 128
    "Width of the residual stream."
    n_heads: Count = 8
    "Attention heads of a layer."
    d_head: Count = 16
    "Channels of a head; small, so that a q-k product stays readable (published: 16)."
    d_mlp: Count = 512
    "MLP neurons of a layer."
    n_ctx: Count = 64
    "Longest sequence, in tokens."
    topk_fraction: Share | None = 0.25
    "Fraction of each site that AbsTopK keeps, in (0, 1]; None switches AbsTopK off (a dense model)."
    topk_sites: tuple[SiteName, ...] = SITES
    "Sites that AbsTopK acts on."
    sink: bool = True
    "One learned sink logit per head."
    bigram: bool = True
    "A dense table B with `logits += B[token]`, so that sparse weights need not spend themselves on bigrams."
    attention: Literal["softmax", "compose"] = "softmax"
    "compose: heads are composed before and after the softmax, as `compose` says."
    compose: ComposeKind = "none"
    "How heads are composed (see `mixers/compose.py`): none, static, gate, qw, kw or full."
    compose_rank: Count = 2
    "Rank of the mixing part of a composition (published: 2)."
    norm_eps: Positive = 1e-5
    "Added to the mean square inside RMSNorm."
    act: Activation = "gelu"
    "Activation of the MLP's neurons."
    arch: Literal["decoder", "encdec"] = "decoder"
    "encdec: an encoder of n_layers reads the source, and the decoder's n_layers look at it (see `encdec.py`)."
    n_source: Whole = 0
    "Encdec: places at the start of every row that hold the source, padding included; the target follows."
    pad: Whole | None = None
    "Encdec: the token that fills a row up. No one attends to it in the source, and no loss asks for it."
    norm: Literal["rms", "layer"] = "rms"
    "rms: RMSNorm without weights. layer: LayerNorm with gain and bias."
    norm_position: Literal["pre", "post"] = "pre"
    "pre: each sublayer reads a normed copy of the stream. post: the stream is normed after each sublayer (2017)."
    positions: Positions = "learned"
    "Where positions come from."
    tied: bool = False
    "One matrix embeds tokens (source and target alike) and, transposed, unembeds them."
    embed_scale: bool = False
    "Embeddings are multiplied by sqrt(d_model), and start that much smaller than 1 (2017)."
    experts: Whole = 0
    "Experts that the neurons of an MLP are divided into, a router choosing among them; 0: a plain MLP."
    experts_active: Whole = 0
    "Experts that are chosen for each token (sparse ones: 5 to 25 % of all)."
    factor_ratio: Amount = 0.0
    "Each weight matrix of a layer is a product of two; so many inner coordinates, in shorter sides of it. 0: whole."

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.compose != "none" and self.attention != "compose":
            raise ValueError(
                f"attention: got {self.attention!r} with compose={self.compose!r}; expected 'softmax', or "
                "'compose' for composed heads. Pass attention=\"compose\" along with compose=."
            )
        _check_table(self)
        _check_experts(self)
        _check_stacks(self)

    @classmethod
    def original(cls, **changes: Any) -> "ModelConfig":
        """The Transformer of 2017, but for its size: an encoder-decoder, dense, normed after each sublayer.

        n_source and pad have to be given. Source: Vaswani et al. 2017 (arXiv 1706.03762), sections 3.1 to 3.5.
        """
        published: dict[str, Any] = dict(
            arch="encdec",
            norm="layer",
            norm_position="post",
            positions="sinusoid",
            tied=True,
            embed_scale=True,
            act="relu",
            topk_fraction=None,
            sink=False,
            bigram=False,
        )
        return cls(**{**published, **changes})

    @property
    def d_attn(self) -> int:
        """Channels of all heads together."""
        return self.n_heads * self.d_head

    @property
    def factor_attn(self) -> int:
        """Inner coordinates of each weight matrix of attention, where it is a product; else 0."""
        return _inner(self.factor_ratio, self.d_model, self.d_attn)

    @property
    def factor_mlp(self) -> int:
        """Inner coordinates of each weight matrix of an MLP, where it is a product; else 0."""
        return _inner(self.factor_ratio, self.d_model, self.d_mlp)

    @property
    def sites(self) -> list[Site]:
        """Every site, in forward order: of the encoder, where there is one, then of the decoder."""
        if self.arch == "decoder":
            return all_sites(self.n_layers, routed=self.experts > 0, factored=self.factor_ratio > 0)
        return [*all_sites(self.n_layers, "encoder"), *all_sites(self.n_layers, crossed=True)]

    def width(self, site: Site) -> int:
        """Number of coordinates of a site (q, k and v: over all heads together)."""
        return int(getattr(self, ROWS[site.name].width))

    @property
    def widths(self) -> dict[Site, int]:
        """Number of coordinates of every site, in forward order."""
        return {site: self.width(site) for site in self.sites}

    @property
    def expert_size(self) -> int:
        """Neurons of each expert; experts lie side by side. Of a plain MLP, all of its neurons."""
        return self.d_mlp // max(1, self.experts)

    def topk(self, site: Site) -> int | None:
        """How many coordinates AbsTopK keeps at a site: `max(1, int(fraction * width))`; None = all.

        A router keeps its chosen experts.
        """
        if site.name == "router":
            return self.experts_active
        if self.topk_fraction is None or (site.row.like or site.name) not in self.topk_sites:
            return None
        return max(1, int(self.topk_fraction * self.width(site)))

    def hashed(self) -> dict[str, Any]:
        """What a fingerprint hashes: the fields, in JSON types, that are not as `UNSAID` has them."""
        said = self.to_json()
        return {f.name: said[f.name] for f in fields(self) if getattr(self, f.name) != UNSAID[f.name]}


def _inner(ratio: float, *sides: int) -> int:
    """Inner coordinates of a product of two matrices: at least one, unless there is no product."""
    return max(1, round(ratio * min(sides))) if ratio else 0


def _check_table(config: ModelConfig) -> None:
    """Raise ValueError for a bigram table that would take more than `LARGEST_TABLE`."""
    n_bytes = 4 * (config.d_vocab or 0) ** 2
    if config.bigram and n_bytes > LARGEST_TABLE:
        raise ValueError(
            f"bigram: got True with d_vocab={config.d_vocab}; expected a dense table [d_vocab, d_vocab] of at most "
            f"{LARGEST_TABLE / 1e9:g} GB, and this one would take {n_bytes / 1e9:,.1f} GB. Pass bigram=False, or take "
            f"a tokenizer of at most {math.isqrt(LARGEST_TABLE // 4):,} tokens."
        )


def _check_experts(config: ModelConfig) -> None:
    """Raise ValueError for experts that neurons cannot be divided into, or chosen among."""
    n, chosen = config.experts, config.experts_active
    if n == 0 and chosen:
        raise ValueError(
            f"experts: got 0 with experts_active={chosen}; expected at least {chosen} experts to choose among. Pass "
            "experts= along with experts_active=."
        )
    if n and not 1 <= chosen <= n:
        raise ValueError(
            f"experts_active: got {chosen} with experts={n}; expected 1 to {n} of them for each token."
        )
    if n and config.d_mlp % n:
        raise ValueError(
            f"experts: got {n} with d_mlp={config.d_mlp}; expected a number that divides d_mlp, so that each has as "
            "many neurons."
        )


def _check_stacks(config: ModelConfig) -> None:
    """Raise ValueError for options of an encoder-decoder that miss one another, or that a decoder has no use for."""
    if config.arch == "decoder":
        if config.n_source or config.pad is not None:
            raise ValueError(
                f"arch: got 'decoder' with n_source={config.n_source} and pad={config.pad}; expected 'encdec', or no "
                'source and no padding. Pass arch="encdec" along with them.'
            )
        return
    if not 1 <= config.n_source <= config.n_ctx - 2 or config.pad is None:
        raise ValueError(
            f"n_source: got {config.n_source} with pad={config.pad} and n_ctx={config.n_ctx}; expected 1 to n_ctx - 2 "
            "places of a row for the source, and the token that fills it up. A task says both: task.shape()."
        )
    if config.experts:
        raise ValueError(
            f"experts: got {config.experts} with arch='encdec'; expected 0: what is said of an encoder-decoder is said "
            "of plain MLPs. Take arch='decoder'."
        )
    if config.factor_ratio:
        raise ValueError(
            f"factor_ratio: got {config.factor_ratio:g} with arch='encdec'; expected 0: cross-attention has whole "
            "matrices alone. Take arch='decoder'."
        )
    if config.attention != "softmax":
        raise ValueError(
            f"attention: got {config.attention!r} with arch='encdec'; expected 'softmax': composed heads are causal, "
            "and an encoder is not."
        )


UNSAID: dict[str, Any] = {
    "d_vocab": None,
    "n_layers": 2,
    "d_model": 128,
    "n_heads": 8,
    "d_head": 16,
    "d_mlp": 512,
    "n_ctx": 64,
    "topk_fraction": 0.25,
    "topk_sites": (
        "attn_in",
        "attn_q",
        "attn_k",
        "attn_v",
        "attn_out",
        "mlp_in",
        "mlp_neuron",
        "mlp_out",
    ),
    "sink": True,
    "bigram": True,
    "attention": "softmax",
    "compose": "none",
    "compose_rank": 2,
    "norm_eps": 1e-5,
    "act": "gelu",
    "arch": "decoder",
    "n_source": 0,
    "pad": None,
    "norm": "rms",
    "norm_position": "pre",
    "positions": "learned",
    "tied": False,
    "embed_scale": False,
    "experts": 0,
    "experts_active": 0,
    "factor_ratio": 0.0,
}
"""What a field is where a fingerprint leaves it out. Values here never change, whatever today's defaults are; a new
field joins with the value that leaves a model as models were before it."""
