"""What decides a model: frozen, checked when made, JSON in and out."""

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from circuits.files import check_keys, with_tuples
from circuits.model.sites import ROWS, SITES, Site, SiteName, all_sites

ComposeKind = Literal["none", "static", "gate", "qw", "kw", "full"]
"""none: plain attention. static: W_b alone. gate: both gates. qw, kw: the query or key side. full: both sides."""

Activation = Literal["gelu", "relu"]
"""What an MLP's neurons do to their input; gelu is the exact one. Named as TransformerLens names them."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Shape and options of a `SparseTransformer`; JSON in and out."""

    d_vocab: int | None = None
    "Number of tokens; None: `train` fills in the vocabulary of its corpus."
    n_layers: int = 2
    "Blocks of attention and MLP."
    d_model: int = 128
    "Width of the residual stream."
    n_heads: int = 8
    "Attention heads of a layer."
    d_head: int = 16
    "Channels of a head; small, so that a q-k product stays readable (published: 16)."
    d_mlp: int = 512
    "MLP neurons of a layer."
    n_ctx: int = 64
    "Longest sequence, in tokens."
    topk_fraction: float | None = 0.25
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
    compose_rank: int = 2
    "Rank of the mixing part of a composition (published: 2)."
    norm_eps: float = 1e-5
    "Added to the mean square inside RMSNorm."
    act: Activation = "gelu"
    "Activation of the MLP's neurons."

    def __post_init__(self) -> None:
        for name in ("d_vocab", "n_layers", "d_model", "n_heads", "d_head", "d_mlp", "n_ctx"):
            value = getattr(self, name)
            if (value is not None or name != "d_vocab") and not (isinstance(value, int) and value >= 1):
                raise ValueError(f"{name}: got {value!r}; expected a whole number of at least 1.")
        if self.topk_fraction is not None and not 0 < self.topk_fraction <= 1:
            raise ValueError(
                f"topk_fraction: got {self.topk_fraction}; expected a number in (0, 1], or None for a dense "
                "model. A fraction of 0 would leave k = 0 and no activation at all."
            )
        unknown = set(self.topk_sites) - set(SITES)
        if unknown:
            raise ValueError(f"topk_sites: got {sorted(unknown)}; expected sites out of {SITES}.")
        if self.compose not in get_args(ComposeKind) or self.compose_rank < 1:
            raise ValueError(
                f"compose, compose_rank: got {self.compose!r}, {self.compose_rank}; expected one of "
                f"{get_args(ComposeKind)}, and a rank of at least 1."
            )
        if self.attention not in ("softmax", "compose") or (
            self.compose != "none" and self.attention != "compose"
        ):
            raise ValueError(
                f"attention: got {self.attention!r} with compose={self.compose!r}; expected 'softmax', or "
                "'compose' for composed heads. Pass attention=\"compose\" along with compose=."
            )
        if self.act not in get_args(Activation):
            raise ValueError(f"act: got {self.act!r}; expected one of {get_args(Activation)}.")
        if self.norm_eps <= 0:
            raise ValueError(f"norm_eps: got {self.norm_eps}; expected a positive number such as 1e-5.")

    @property
    def d_attn(self) -> int:
        """Channels of all heads together."""
        return self.n_heads * self.d_head

    @property
    def sites(self) -> list[Site]:
        """Every site, in forward order."""
        return all_sites(self.n_layers)

    def width(self, site: Site) -> int:
        """Number of coordinates of a site (q, k and v: over all heads together)."""
        return int(getattr(self, ROWS[site.name].width))

    @property
    def widths(self) -> dict[Site, int]:
        """Number of coordinates of every site, in forward order."""
        return {site: self.width(site) for site in self.sites}

    def topk(self, site: Site) -> int | None:
        """How many coordinates AbsTopK keeps at a site: `max(1, int(fraction * width))`; None = all."""
        if self.topk_fraction is None or site.name not in self.topk_sites:
            return None
        return max(1, int(self.topk_fraction * self.width(site)))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)

    def hashed(self) -> dict[str, Any]:
        """What a fingerprint hashes: the fields, in JSON types, that are not as `UNSAID` has them."""
        said = self.to_json()
        return {f.name: said[f.name] for f in fields(self) if getattr(self, f.name) != UNSAID[f.name]}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "ModelConfig":
        """The inverse of `to_json`. Raises ValueError on a key that is unknown or missing."""
        return cls(**with_tuples(check_keys(cls, data), "topk_sites"))


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
}
"""What a field is where a fingerprint leaves it out. Values here never change, whatever today's defaults are; a new
field joins with the value that leaves a model as models were before it."""
