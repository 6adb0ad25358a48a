"""Effects of nodes on later ones, measured: the lines of a circuit in a model whose weights lead nowhere by themselves.

A dense model's residual stream carries everything to everything, so that no weight says which node another one reads.
Each effect here is the attribution of one direct path: what a node says differently on the corrupted prompt, times the
gradient of the margin along that path, with every other node of the circuit held at its own value and everything
outside the circuit at its replacement. Source: Syed et al. 2023 (arXiv 2310.10348); path patching, whose slope this is:
Goldowsky-Dill et al. 2023 (arXiv 2304.05969).
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from circuits.circuit.masked import run_masked
from circuits.circuit.nodes import Effect, Node, node_masks
from circuits.circuit.score import margins
from circuits.model.compute import with_gradients
from circuits.model.kinds import of_subjects
from circuits.model.sites import Site
from circuits.model.subject import Subject
from tasks import Batch
from tasks.base import Targets

NEGLIGIBLE = 0.01
"""Share of the greatest effect up to which one is left out."""
EMBEDDED = "hook_embed"
"""Where tokens enter."""
At = Site | None
"""A site, or None for the embedded tokens."""


@of_subjects
@with_gradients
def effects_between(
    model: Subject, nodes: Iterable[Node], values: Mapping[Site, Tensor], batch: Batch
) -> list[Effect]:
    """Effects of tokens and nodes on later nodes and on the margin, strongest first; one backward pass a node.

    values: what takes the place of everything that is none of the nodes. batch: pairs over which effects are averaged.
    Effects of less than a hundredth of the greatest are left out.
    """
    batch = batch.to(model.like.device)
    run = _Run(model, nodes, values)
    clean = run.once(Targets(batch.clean, batch.answer, batch.foil, batch.position))
    with torch.no_grad():
        corrupt = run.once(Targets(batch.corrupt, batch.answer, batch.foil, batch.position))
    change = {at: clean.leaves[at].detach() - corrupt.leaves[at] for at in clean.leaves}
    found = _attributed(run, clean, change)
    most = max((abs(effect.size) for effect in found), default=0.0)
    return sorted((e for e in found if abs(e.size) > NEGLIGIBLE * most), key=lambda e: -abs(e.size))


class _Pass:
    """What a pass left: at each site the kept numbers as computed, and the copies of them that it went on with."""

    def __init__(self) -> None:
        self.raw: dict[At, Tensor] = {}
        self.leaves: dict[At, Tensor] = {}
        self.margin: Tensor


class _Run:
    """A model with only some nodes kept, each cut off from what made it, so that gradients run along direct paths."""

    def __init__(self, model: Subject, nodes: Iterable[Node], values: Mapping[Site, Tensor]) -> None:
        self.model = model
        self.values = {site: value.to(model.like) for site, value in values.items()}
        self.widths = {site: model.widths[site] for site in values}
        kept = set(nodes)
        self.nodes = {
            site: own for site in model.widths if (own := sorted(node for node in kept if node.at == site))
        }
        self.masks = node_masks(kept, self.widths, model.like)

    def once(self, targets: Targets) -> _Pass:
        """A pass in which every kept number goes on as a leaf."""
        seen = _Pass()
        hooks: list[Any] = [(EMBEDDED, partial(self._cut, seen, None))]
        hooks += [(self.model.hook_name(site), partial(self._cut, seen, site)) for site in self.nodes]
        with self.model.hooks(fwd_hooks=hooks):
            logits = run_masked(self.model, targets.tokens, self.masks, self.values)
        seen.margin = margins(logits, targets)
        return seen

    def _cut(self, seen: _Pass, site: At, value: Tensor, hook: Any) -> Tensor:
        flat = value.flatten(2).clone()
        columns = self.columns(site, flat.shape[-1]).to(flat.device)
        seen.raw[site] = flat[..., columns]
        seen.leaves[site] = leaf = seen.raw[site].detach().requires_grad_(torch.is_grad_enabled())
        return flat.index_copy(2, columns, leaf).view(value.shape)

    def columns(self, site: At, n: int) -> Tensor:
        """Places of the kept nodes' numbers among the `n` of a site, node after node."""
        if site is None:
            return torch.arange(n)
        own = n // self.widths[site]
        return torch.cat(
            [torch.arange(node.index * own, (node.index + 1) * own) for node in self.nodes[site]]
        )

    def parts(
        self, site: At, tensor: Float[Tensor, "batch pos kept"]
    ) -> Sequence[tuple[Node | None, Tensor]]:
        """The numbers of a site, node by node."""
        if site is None:
            return [(None, tensor)]
        return list(zip(self.nodes[site], tensor.chunk(len(self.nodes[site]), dim=2), strict=True))


def _attributed(run: _Run, clean: _Pass, change: Mapping[At, Tensor]) -> list[Effect]:
    """Every effect, from the margin backwards: when a site's turn comes, all that it leads to has had its own."""
    order = list(clean.leaves)
    slopes = {at: torch.zeros_like(leaf) for at, leaf in clean.leaves.items()}
    found = _from(run, clean.margin.sum(), None, order, clean, slopes, change)
    for place in range(len(order) - 1, 0, -1):
        site, before = order[place], order[:place]
        for (node, raw), (_, slope) in zip(
            run.parts(site, clean.raw[site]), run.parts(site, slopes[site]), strict=True
        ):
            found += _from(run, (raw * slope.detach()).sum(), node, before, clean, slopes, change)
    return found


def _from(
    run: _Run,
    reached: Tensor,
    target: Node | None,
    sources: Sequence[At],
    clean: _Pass,
    slopes: dict[At, Tensor],
    change: Mapping[At, Tensor],
) -> list[Effect]:
    """Effects of all sources on one target; adds what they do through it to their slopes."""
    if not reached.requires_grad:
        return []
    leaves = [clean.leaves[at] for at in sources]
    gradients = torch.autograd.grad(reached, leaves, retain_graph=True, allow_unused=True)
    found = []
    for at, gradient in zip(sources, gradients, strict=True):
        if gradient is not None:
            slopes[at] += gradient
            moved = (change[at] * gradient).sum(1).mean(0)
            found += [Effect(node, target, float(own.sum())) for node, own in _split(run, at, moved)]
    return [effect for effect in found if effect.size != 0]


def _split(run: _Run, at: At, moved: Float[Tensor, " kept"]) -> list[tuple[Node | None, Tensor]]:
    return [(node, own[0, 0]) for node, own in run.parts(at, moved[None, None])]
