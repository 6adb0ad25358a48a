"""How much a trust report looks at."""

from dataclasses import dataclass

from circuits.settings import Count, Positive, Seed, Settings, Whole


@dataclass(frozen=True, kw_only=True)
class TrustConfig(Settings):
    """How much a trust report looks at."""

    n_pairs: Count = 64
    "Prompt pairs, of the test split, that checks run on (sufficiency, margins, minimality: those of the criterion)."
    n_random: Count = 20
    "Random circuits, and random nodes, that the circuit is compared with; 19 is the least for p < 0.05."
    n_added: Count = 200
    """Random nodes outside that the minimality test adds, one at a time: as few as 20 fail one circuit in three whose
    weakest node is matched by 2 % of them."""
    n_knockouts: Count = 16
    "Random knockouts for completeness."
    n_greedy: Whole = 3
    "Steps of the search for the worst knockout."
    control_steps: Whole = 150
    "Steps of gate training for each nonsense control, by default pruning's own; 0 leaves the controls out."
    control_lr: Positive = 3e-2
    "Peak learning rate of that training, by default pruning's own."
    prune_seeds: Whole = 0
    "Further pruning runs whose circuits are compared with this one (minutes each at the default settings)."
    target_loss: Positive | None = None
    "Loss asked of the circuit, in nats; None: that of its criterion."
    seed: Seed = 0
    "Decides prompts and random draws."
