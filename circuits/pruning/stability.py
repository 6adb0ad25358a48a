"""How much of a circuit comes back when it is looked for again: other seeds, other prompts, other settings."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

from scipy import stats

from circuits.circuit.circuit import Circuit
from circuits.circuit.nodes import Node, is_pair
from circuits.circuit.score import UnsolvedError
from circuits.model.kinds import of_ours
from circuits.model.transformer import SparseTransformer
from circuits.pruning.config import PruneConfig
from circuits.pruning.procedure import prune
from circuits.views import html_table
from tasks import Corpus, Task, other_prompts

Kind = Literal["core", "contingent", "noise"]
"""core: in every circuit, and at 95 % confidence in more than half of all there are; noise: at that confidence in less
than half; contingent: neither, so it depends on the run."""
SETTINGS: dict[str, dict[str, int | float]] = {
    "as given": {},
    "a third of the penalty": {"penalty": 1 / 3},
    "longer and slower": {"steps": 2, "lr": 1 / 2},
}
"""Factors on the settings of a run, in words."""


class Kept(NamedTuple):
    """How often a part was kept."""

    n: int
    """Circuits that have it."""
    low: float
    """Lower end of the 95 % interval of its share (Wilson)."""
    high: float
    """Upper end."""
    kind: Kind
    """What that makes it."""


@dataclass(frozen=True, kw_only=True)
class Stability:
    """Each part of any of the circuits, by how many of them have it."""

    runs: tuple[str, ...]
    "What each circuit was found with, in words."
    sizes: tuple[tuple[int, int], ...]
    "Nodes and edges of each."
    nodes: Mapping[Node, Kept] = field(repr=False)
    "Every node that some circuit has, the most frequent first."
    edges: Mapping[tuple[Node, Node], Kept] = field(repr=False)
    "Every weight that some circuit has, the most frequent first."

    def counts(self) -> dict[str, dict[str, int]]:
        """Core, contingent and noise parts, among nodes and among edges."""
        return {
            name: {
                kind: sum(kept.kind == kind for kept in parts.values())
                for kind in ("core", "contingent", "noise")
            }
            for name, parts in (("nodes", self.nodes), ("edges", self.edges))
        }

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "runs": list(self.runs),
            "sizes": [list(size) for size in self.sizes],
            "nodes": {str(node): kept._asdict() for node, kept in self.nodes.items()},
            "edges": {f"{a} > {b}": kept._asdict() for (a, b), kept in self.edges.items()},
        }

    def __str__(self) -> str:
        lines = [f"{len(self.runs)} circuits: {self.counts()}"]
        for node, kept in self.nodes.items():
            lines.append(f"  {kept.kind:<11} {node!s:<24} {kept.n} of {len(self.runs)}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        rows = [
            [str(node), kept.kind, f"{kept.n} of {len(self.runs)}", f"{kept.low:.2f} to {kept.high:.2f}"]
            for node, kept in self.nodes.items()
        ]
        return html_table(["node", "", "kept by", "95 % interval"], rows)


def stability(circuits: Mapping[str, Circuit]) -> Stability:
    """Which parts circuits share, each named by what it was found with.

    Raises ValueError for fewer than two, or for circuits of different models.
    """
    found = list(circuits.values())
    if len(found) < 2 or len({circuit.model_hash for circuit in found}) > 1:
        raise ValueError(
            f"circuits: got {len(found)} of {len({c.model_hash for c in found})} models; expected two or more circuits "
            "of one model. Prune again with other seeds."
        )
    weights = [[(e.source, e.target) for e in circuit.edges if not is_pair(e)] for circuit in found]
    return Stability(
        runs=tuple(circuits),
        sizes=tuple((circuit.n_nodes, circuit.n_edges) for circuit in found),
        nodes=_kept([circuit.nodes for circuit in found]),
        edges=_kept(weights),
    )


def searches(
    task: Task,
    config: PruneConfig,
    *,
    n_ctx: int,
    seeds: int = 3,
    settings: Mapping[str, Mapping[str, int | float]] = SETTINGS,
) -> list[tuple[str, Task, PruneConfig]]:
    """What a card prunes: what each search is called, its prompts (of at most `n_ctx` tokens) and its settings."""
    own = [
        (f"seed {seed}, {name}", task, replace(_scaled(config, factors), seed=config.seed + seed))
        for seed in range(seeds)
        for name, factors in settings.items()
    ]
    others = other_prompts(task).items()
    return own + [(name, other, config) for name, other in others if other.n_ctx <= n_ctx]


@of_ours
def stability_card(
    model: SparseTransformer,
    task: Task,
    config: PruneConfig | None = None,
    *,
    seeds: int = 3,
    settings: Mapping[str, Mapping[str, int | float]] = SETTINGS,
    corpus: Corpus | None = None,
    progress: bool = True,
) -> Stability:
    """Prune again under every pair of seed and setting, and on every other kind of prompts that the model can do.

    A seed decides gates and prompts together, so seeds are bootstraps of both. Minutes a circuit.

    Examples:
        >>> found = circuits.load("quotes-handmade")
        >>> quick = circuits.PruneConfig(starts=1, steps=40, n_eval=32, n_test=32)
        >>> card = circuits.pruning.stability_card(
        ...     found.model, found.task, quick, seeds=2, settings={"as given": {}}, corpus=found.corpus, progress=False
        ... )
        >>> card.sizes
        ((8, 5), (8, 5))
    """
    found = {}
    for name, prompts, changed in searches(
        task, config or PruneConfig(), n_ctx=model.n_ctx, seeds=seeds, settings=settings
    ):
        try:
            found[name] = prune(model, prompts, changed, corpus=corpus, progress=progress)
        except UnsolvedError:
            if prompts == task:
                raise
    return stability(found)


def _scaled(config: PruneConfig, factors: Mapping[str, int | float]) -> PruneConfig:
    """The settings with some numbers multiplied; whole numbers stay whole."""
    now = {name: getattr(config, name) for name in factors}
    return replace(config, **{name: type(value)(value * factors[name]) for name, value in now.items()})


def _kept(sets: Sequence[Sequence[Any]]) -> dict[Any, Kept]:
    counts = Counter(part for parts in sets for part in set(parts))
    ordered = sorted(counts, key=lambda part: (-counts[part], part))
    return {part: _judged(counts[part], len(sets)) for part in ordered}


def _judged(n: int, of: int) -> Kept:
    low, high = stats.binomtest(n, of).proportion_ci(method="wilson")
    kind: Kind = "core" if n == of and low > 0.5 else "noise" if high < 0.5 else "contingent"
    return Kept(n, float(low), float(high), kind)
