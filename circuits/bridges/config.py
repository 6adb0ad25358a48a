"""What decides a fit of bridges: pairs, coefficients of the loss, optimiser."""

import json
from dataclasses import asdict, dataclass
from typing import Any, Literal

from circuits.bridges.maps import Pair
from circuits.files import check_keys, require, with_tuples


@dataclass(frozen=True, kw_only=True)
class BridgeConfig:
    """Everything that decides how bridges are fitted. All terms of the loss are summed over locations."""

    pairs: tuple[Pair, ...] | None = None
    "Pairs (dense location, sparse location); None: every location, of two models of equal depth."
    topk_fraction: float | None = 0.25
    "Fraction of the sparse width that an encoder keeps, in (0, 1]; None: all."
    nmse_encode: float = 1.0
    "Coefficient: NMSE of the encoders, dense to sparse."
    nmse_decode: float = 1.0
    "Coefficient: NMSE of the decoders, sparse to dense."
    kl_dense_to_sparse: float = 1.0
    "Coefficient: KL of the hybrids that start dense and end sparse, against the dense model."
    kl_sparse_to_dense: float = 1.0
    "Coefficient: KL of the hybrids that start sparse and end dense, against the dense model."
    kl_plain: float = 1.0
    "Coefficient: KL of the sparse model against the dense one, where the sparse one trains."
    cross_entropy: float = 1.0
    "Coefficient: next-token loss of the sparse model, where it trains."
    hybrids_per_step: int | None = None
    "Locations whose hybrids are run in a step, drawn at random and weighted to stand for all; None: all."
    init: Literal["regression", "random"] = "regression"
    "Start of the maps beside a fixed sparse model: least squares on 64 sequences, or random weights."
    steps: int = 600
    "Steps beside a fixed sparse model; one that trains brings the steps of its own config."
    batch_size: int = 32
    "Sequences of a step beside a fixed sparse model; one that trains brings its own."
    lr: float = 3e-3
    "Peak learning rate of the maps (Adam); it rises over the first 1 % of steps, then falls linearly to 0."
    betas: tuple[float, float] = (0.9, 0.95)
    "Adam's averaging constants."
    n_val: int = 256
    "Validation sequences that the metrics are measured on."
    log_every: int = 20
    "Steps between entries of the history."
    seed: int = 0
    "Decides maps and batches."

    def __post_init__(self) -> None:
        object.__setattr__(self, "betas", tuple(self.betas))
        if self.pairs is not None:
            require(
                self, "pairs", 0 < len(set(self.pairs)) == len(self.pairs), "distinct pairs, at least one"
            )
        for name in ("steps", "batch_size", "n_val", "log_every"):
            require(self, name, getattr(self, name) >= 1, "a whole number of at least 1")
        for name in TERMS:
            require(self, name, getattr(self, name) >= 0, "a coefficient of at least 0")
        require(self, "lr", self.lr > 0, "a positive number")
        fraction, some = self.topk_fraction, self.hybrids_per_step
        require(self, "topk_fraction", fraction is None or 0 < fraction <= 1, "a number in (0, 1], or None")
        require(self, "hybrids_per_step", some is None or some >= 1, "at least 1 location, or None for all")
        require(self, "init", self.init in ("regression", "random"), "'regression' or 'random'")

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "BridgeConfig":
        """The inverse of `to_json`. Raises ValueError on an unknown key."""
        data = with_tuples(check_keys(cls, data), "betas")
        if data.get("pairs") is not None:
            data["pairs"] = tuple(Pair(*pair) for pair in data["pairs"])
        return cls(**data)


TERMS = (
    "nmse_encode",
    "nmse_decode",
    "kl_dense_to_sparse",
    "kl_sparse_to_dense",
    "kl_plain",
    "cross_entropy",
)
"""Terms of the loss, each with a coefficient of the same name."""
