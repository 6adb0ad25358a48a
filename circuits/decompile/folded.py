"""What is left of a model when everything outside a circuit is a constant: the one source of `to_python` and the page.

A site is a short list of weights between nodes, and one number a coordinate for all the rest.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from circuits.circuit.circuit import Circuit
from circuits.circuit.masked import check_belongs
from circuits.circuit.nodes import edge_masks
from circuits.circuit.score import check_task
from circuits.model.options import Says
from circuits.model.sites import WEIGHTS, Site, SiteName, WeightAt
from circuits.model.transformer import SparseTransformer
from tasks import Task

INTO: dict[SiteName, str] = {row.target: name for name, row in WEIGHTS.items()}
"""The weight that leads to a site."""
SAYS = Says(act=("gelu", "relu"))
"""Heads that are not composed: a pattern is written out as one softmax of one product."""


def check_folds(model: SparseTransformer, circuit: Circuit, task: Task, analysis: str, instead: str) -> None:
    """Raise ValueError where what is outside the circuit is no constant, or the circuit is not the model's.

    analysis: who asks, for the message; instead: what to do where the model has composed heads, a sentence.
    """
    SAYS.check(model, analysis, instead=instead)
    check_belongs(model, circuit)
    check_task(model, task)
    if circuit.ablation not in ("mean", "zero"):
        raise ValueError(
            f"circuit: found under {circuit.ablation!r} ablation, whose values differ from place to place; expected "
            "'mean' or 'zero', which make everything outside the circuit a constant. Prune again with one of them."
        )
    left = [str(site) for site in model.sites() if site not in circuit.widths]
    if left:
        raise ValueError(
            f"circuit: it says nothing of site {left[0]}, which stays as it is in the model; expected a circuit of all "
            f"{len(model.sites())} sites, so that what it leaves out is a constant. Prune over all sites."
        )


def rest_of(model: SparseTransformer, circuit: Circuit, site: Site) -> Float[Tensor, " width"]:
    """What each coordinate of a site gets from its bias and from everything that is cut."""
    at = WeightAt(site.layer, INTO[site.name], site.stack)
    linear = model.linear(*at)
    widths = {end: circuit.widths[end] for end in (at.source, at.target)}
    here = [edge for edge in circuit.edges if edge.target.at == site]
    kept = edge_masks(here, widths, torch.empty(0, dtype=torch.bool))[at]
    cut = linear.weight.detach() * ~kept.to(linear.weight.device)
    source = circuit.values[at.source].to(cut)
    return (linear.bias.detach() + source @ cut).cpu()


def answers_of(task: Task) -> list[int]:
    """Ids of the tokens that are ever right or wrong in the task, as 512 training pairs show them; sorted."""
    sample = task.batch(512, split="train", seed=0)
    return sorted(set(sample.answer.tolist()) | set(sample.foil.tolist()))


def packable(table: Tensor) -> Tensor:
    """A table as float32 on the CPU, contiguous."""
    return table.detach().to("cpu", torch.float32).contiguous()
