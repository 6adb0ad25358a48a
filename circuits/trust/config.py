"""How much a trust report looks at."""

from dataclasses import asdict, dataclass
from typing import Any

from circuits.files import check_keys, require


@dataclass(frozen=True, kw_only=True)
class TrustConfig:
    """How much a trust report looks at."""

    n_pairs: int = 64
    "Prompt pairs, of the test split, that every check runs on (sufficiency and minimality: those of the criterion)."
    n_random: int = 20
    "Random circuits, and random nodes, that the circuit is compared with; 19 is the least for p < 0.05."
    n_knockouts: int = 16
    "Random knockouts for completeness."
    n_greedy: int = 3
    "Steps of the search for the worst knockout."
    control_steps: int = 100
    "Steps of gate training for each nonsense control; 0 leaves the controls out."
    control_lr: float = 1e-2
    "Peak learning rate of that training."
    prune_seeds: int = 0
    "Further pruning runs whose circuits are compared with this one (minutes each at the default settings)."
    target_loss: float | None = None
    "Loss asked of the circuit, in nats; None: that of its criterion."
    seed: int = 0
    "Decides prompts and random draws."

    def __post_init__(self) -> None:
        for name in ("n_pairs", "n_random", "n_knockouts"):
            require(self, name, getattr(self, name) >= 1, "a whole number of at least 1")
        for name in ("n_greedy", "control_steps", "prune_seeds"):
            require(self, name, getattr(self, name) >= 0, "a whole number of at least 0")
        for name in ("control_lr", "target_loss"):
            value = getattr(self, name)
            require(self, name, value is None or value > 0, "a positive number")

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "TrustConfig":
        """The inverse of `to_json`. Raises ValueError on an unknown key."""
        return cls(**check_keys(cls, data))
