"""What decides a fit of bridges: pairs, coefficients of the loss, optimiser."""

import json
from dataclasses import asdict, dataclass
from typing import Any, Literal

from circuits.bridges.maps import Pair
from circuits.settings import Amount, Count, Decay, Density, Positive, Seed, Settings, Whole, require


@dataclass(frozen=True, kw_only=True)
class BridgeConfig(Settings):
    """Everything that decides how bridges are fitted. All terms of the loss are summed over locations."""

    pairs: tuple[Pair, ...] | None = None
    "Pairs (dense location, sparse location); None: every location, of two models of equal depth."
    topk_fraction: Density | None = 0.25
    "Fraction of the sparse width that an encoder keeps, in (0, 1]; None: all."
    first: Whole = 0
    "Positions at the start of each text that bridges leave alone; 1 where a dense model's first one dwarfs the others."
    nmse_encode: Amount = 1.0
    "Coefficient: NMSE of the encoders, dense to sparse."
    nmse_decode: Amount = 1.0
    "Coefficient: NMSE of the decoders, sparse to dense."
    kl_dense_to_sparse: Amount = 1.0
    "Coefficient: KL of the hybrids that start dense and end sparse, against the dense model."
    kl_sparse_to_dense: Amount = 1.0
    "Coefficient: KL of the hybrids that start sparse and end dense, against the dense model."
    kl_plain: Amount = 1.0
    "Coefficient: KL of the sparse model against the dense one, where the sparse one trains."
    cross_entropy: Amount = 1.0
    "Coefficient: next-token loss of the sparse model, where it trains."
    hybrids_per_step: Count | None = None
    "Locations whose hybrids are run in a step, drawn at random and weighted to stand for all; None: all."
    init: Literal["regression", "random"] = "regression"
    "Start of the maps beside a fixed sparse model: least squares on 64 sequences, or random weights."
    steps: Count = 600
    "Steps beside a fixed sparse model; one that trains brings the steps of its own config."
    batch_size: Count = 32
    "Sequences of a step beside a fixed sparse model; one that trains brings its own."
    lr: Positive = 3e-3
    "Peak rate of the maps (Adam), relative to the spread of values; up over the first 1 % of steps, then down to 0."
    betas: tuple[Decay, Decay] = (0.9, 0.95)
    "Adam's averaging constants."
    n_val: Count = 256
    "Validation sequences that the metrics are measured on."
    log_every: Count = 20
    "Steps between entries of the history."
    seed: Seed = 0
    "Decides maps and batches."

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pairs is not None:
            require(
                self, "pairs", 0 < len(set(self.pairs)) == len(self.pairs), "distinct pairs, at least one"
            )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return json.loads(json.dumps(asdict(self)))


TERMS = (
    "nmse_encode",
    "nmse_decode",
    "kl_dense_to_sparse",
    "kl_sparse_to_dense",
    "kl_plain",
    "cross_entropy",
)
"""Terms of the loss, each with a coefficient of the same name."""
