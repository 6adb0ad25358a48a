"""A ranking: a score for every node, or every edge, and the parts that are kept when only the best n are."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from circuits.circuit.adversary import Shares
from circuits.circuit.nodes import Edge, Node
from circuits.model.sites import Site, WeightAt

Kind = Literal["nodes", "edges"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Ranking:
    """How much each part matters, by one method, greatest first; parts of equal score keep their order."""

    method: str
    "Name of the method in `METHODS`."
    kind: Kind
    "What is ranked: coordinates of sites, or nonzero weights."
    scores: Mapping[Site, Tensor] | Mapping[WeightAt, Tensor]
    "Nodes: [width] a site. Edges: [d_in, d_out] a weight matrix, minus infinity where it has a zero."

    @property
    def n_parts(self) -> int:
        """Parts that are ranked."""
        return int(self._flat.isfinite().sum())

    def kept(self, n: int) -> Shares:
        """1 at the n best parts and 0 elsewhere, as masks that `MaskedModel.margins_under` runs."""
        flat = torch.zeros_like(self._flat)
        flat[self._order[:n]] = 1
        parts = flat.split([score.numel() for score in self.scores.values()])
        keys: Iterable[Site | WeightAt] = self.scores.keys()
        shapes = [score.shape for score in self.scores.values()]
        return {key: part.view(shape) for key, shape, part in zip(keys, shapes, parts, strict=True)}

    def nodes(self) -> list[Node]:
        """Every node, best first. Raises ValueError for a ranking of edges."""
        if self.kind != "nodes":
            raise ValueError(f"kind: got a ranking of {self.kind} by {self.method!r}; expected one of nodes.")
        every = [Node.of(key, i) for key, score in self.scores.items() for i in range(len(score))]  # type: ignore[arg-type]
        return [every[i] for i in self._order.tolist()]

    def edges(self, weights: Mapping[WeightAt, Tensor]) -> list[Edge]:
        """Every edge, best first, with its weight. Raises ValueError for a ranking of nodes."""
        if self.kind != "edges":
            raise ValueError(f"kind: got a ranking of {self.kind} by {self.method!r}; expected one of edges.")
        every: list[Edge | None] = []
        for at, score in self.scores.items():
            assert isinstance(at, WeightAt)
            own: list[Edge | None] = [None] * score.numel()
            for i, j in score.isfinite().nonzero().tolist():
                weight = float(weights[at][i, j])
                own[i * score.shape[1] + j] = Edge(Node.of(at.source, i), Node.of(at.target, j), weight)
            every += own
        return [edge for i in self._order.tolist() if (edge := every[i]) is not None]

    @property
    def _flat(self) -> Float[Tensor, " parts"]:
        return torch.cat([score.flatten() for score in self.scores.values()])

    @property
    def _order(self) -> Tensor:
        return self._flat.sort(descending=True, stable=True).indices[: self.n_parts]
