"""The runs that every check is made of: the model with some nodes kept, on one fixed set of prompts."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from circuits.circuit.circuit import Circuit
from circuits.circuit.masked import run_masked
from circuits.circuit.nodes import Edge, Node, all_nodes, edge_masks, node_masks
from circuits.circuit.score import Score, fitted_scale, margins, score_margins
from circuits.model.sites import Site, WeightAt
from circuits.model.transformer import SparseTransformer
from tasks import Batch
from tasks.base import Targets


class Bench:
    """A model, a circuit and prompts, clean ones first; runs any set of nodes on them.

    Margins are as the masked model gives them; only the task loss of a circuit is taken after the logit
    calibration that it was pruned with.
    """

    def __init__(self, model: SparseTransformer, circuit: Circuit, batch: Batch) -> None:
        self.model, self.circuit = model, circuit
        self.targets = batch.to(model.W_E.device).tokens_and_targets()
        self.n_pairs = len(batch)
        settings = circuit.metrics.get("prune", {})
        self.scale = float(circuit.metrics.get("logit_scale", 1.0))
        self.refit = bool(settings.get("calibrate", False))
        self.target_accuracy = float(settings.get("target_accuracy", 0.0))
        self.values = {site: value.to(model.W_E) for site, value in circuit.values.items()}
        self.every = all_nodes(circuit.widths)

    def logits(
        self, nodes: Iterable[Node], edges: Sequence[Edge] | None = None
    ) -> Float[Tensor, "rows d_vocab"]:
        """Logits at the answer position with these nodes kept and, if given, of the weights these edges."""
        with torch.no_grad():
            logits = run_masked(
                self.model, self.targets.tokens, self.masks(nodes), self.values, self._edge_masks(edges)
            )
        return logits[torch.arange(len(logits)), self.targets.position]

    def margins(self, nodes: Iterable[Node], edges: Sequence[Edge] | None = None) -> Float[Tensor, " rows"]:
        """Logit of the answer minus logit of the foil, for each prompt."""
        return self.margin_of(self.logits(nodes, edges))

    def margin_of(self, logits: Float[Tensor, "rows d_vocab"]) -> Float[Tensor, " rows"]:
        """Answer minus foil, from logits at the answer position."""
        pair = logits.gather(1, torch.stack([self.targets.answer, self.targets.foil], dim=1))
        return pair[:, 0] - pair[:, 1]

    def loss(self, nodes: Iterable[Node]) -> float:
        """Two-way loss in nats of a part of the model."""
        return score_margins(self.margins(nodes)).loss

    def circuit_margins(self, gone: Iterable[Node] = ()) -> Float[Tensor, " rows"]:
        """Margins of the circuit, less some nodes."""
        return self.margins(*self.circuit_without(gone))

    def circuit_score(self) -> Score:
        """Task score of the circuit, calibrated as when it was pruned."""
        return score_margins(self.scale * self.circuit_margins())

    def best_score(self, nodes: Iterable[Node], edges: Sequence[Edge] | None = None) -> Score:
        """The score by which pruning decides: after a calibration of its own, if pruning calibrates."""
        margin = self.margins(nodes, edges)
        return score_margins(margin * (fitted_scale(margin) if self.refit else 1.0))

    def circuit_without(self, gone: Iterable[Node] = ()) -> tuple[list[Node], list[Edge]]:
        """Nodes and edges of the circuit, less some nodes."""
        gone = set(gone)
        nodes = [node for node in self.circuit.nodes if node not in gone]
        edges = [e for e in self.circuit.edges if e.source not in gone and e.target not in gone]
        return nodes, edges

    def model_without(self, gone: Iterable[Node]) -> list[Node]:
        """All nodes of the model, less some."""
        gone = set(gone)
        return [node for node in self.every if node not in gone]

    def patched_margins(
        self, nodes: Iterable[Node], *, in_circuit: bool, share: float = 1.0
    ) -> Float[Tensor, " pairs"]:
        """Margins on clean prompts while nodes take their values from the corrupted prompt of the pair.

        share: how far towards those values, 1 = all the way.
        """
        n, masks, edges = self.n_pairs, None, None
        if in_circuit:
            masks, edges = self.masks(self.circuit.nodes), self._edge_masks(self.circuit.edges)

        def swap(value: Tensor, hook: Any, node: Node) -> Tensor:
            flat = value.flatten(2).clone()
            flat[:n, :, node.index] += share * (flat[n:, :, node.index] - flat[:n, :, node.index])
            return flat.view(value.shape)

        # Hooks run in the order in which they were added, so the mask of a kept node passes the swapped value.
        hooks: list[Any] = [(self.model.hook_name(node.at), partial(swap, node=node)) for node in nodes]
        with torch.no_grad(), self.model.hooks(fwd_hooks=hooks):
            logits = run_masked(self.model, self.targets.tokens, masks or {}, self.values, edges)
        clean = Targets(*(part[:n] for part in self.targets))
        return margins(logits[:n], clean)

    def masks(self, nodes: Iterable[Node]) -> dict[Site, Tensor]:
        """1 = keep, for these nodes."""
        return node_masks(nodes, self.circuit.widths, self.model.W_E)

    def mask_gradients(self, masks: dict[Site, Tensor]) -> dict[Site, Tensor]:
        """d two-way loss / d mask, with these masks (which need gradients)."""
        with torch.enable_grad():
            logits = run_masked(self.model, self.targets.tokens, masks, self.values)
            loss = F.softplus(-margins(logits, self.targets)).mean()
            return dict(zip(masks, torch.autograd.grad(loss, list(masks.values())), strict=True))

    def _edge_masks(self, edges: Sequence[Edge] | None) -> Mapping[WeightAt, Tensor] | None:
        if edges is None:
            return None
        return edge_masks(edges, self.circuit.widths, self.model.W_E)


def greedy(candidates: Sequence[Node], gain: Callable[[list[Node]], float], steps: int) -> list[Node]:
    """Add, one by one, the candidate with the greatest gain while the gain grows."""
    chosen: list[Node] = []
    best = 0.0
    for _ in range(steps):
        scored = [(gain([*chosen, c]), c) for c in candidates if c not in chosen]
        if not scored or max(scored)[0] <= best:
            break
        best, node = max(scored)
        chosen.append(node)
    return chosen
