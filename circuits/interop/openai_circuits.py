"""`viz_data.pt`: a circuit that was found in one of OpenAI's models, as one of ours."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from circuits.circuit.ablation import mean_values
from circuits.circuit.circuit import Circuit
from circuits.circuit.criterion import Criterion
from circuits.circuit.nodes import Node
from circuits.circuit.parts import edges_between
from circuits.interop.torch_file import load_tensors
from circuits.model.kinds import of_ours
from circuits.model.options import Says
from circuits.model.sites import Site, SiteName
from circuits.model.transformer import SparseTransformer
from circuits.reading import reading

PLACES: dict[str, SiteName] = {
    "attn.act_in": "attn_in",
    "attn.q": "attn_q",
    "attn.k": "attn_k",
    "attn.v": "attn_v",
    "attn.resid_delta": "attn_out",
    "mlp.act_in": "mlp_in",
    "mlp.post_act": "mlp_neuron",
    "mlp.resid_delta": "mlp_out",
}
"""What the format calls our sites."""
LAST = "final_resid"
"""The residual stream before the last norm, which is no site of ours."""
READS = Says(act=("gelu", "relu"), norm=None)
"""Models that can come from the format."""


@of_ours
def load_openai_circuit(
    path: str | Path,
    model: SparseTransformer,
    text: Int[Tensor, "batch pos"],
    *,
    task: str = "openai",
) -> Circuit:
    """The circuit of a `viz_data.pt`, with every nonzero weight between its nodes as an edge.

    model: the one it was found in, from `load_openai`. text: token ids that the ablation means are taken over, since
    the file has none. A choice of channels at the end of the residual stream is no site here: it is kept in the metrics
    (`final_resid`) and masks nothing. A stored loss is the sum of two cross-entropies; half of it is in the metrics as
    `stored_task_loss`. Raises UnreadableError (a ValueError) for another file, an unknown place, and indices that the
    model does not have.

    Examples:
        >>> eps = torch.finfo(torch.float32).eps
        >>> shape = circuits.ModelConfig(d_vocab=9, d_model=16, n_heads=2, d_head=8, norm_eps=eps)
        >>> model = circuits.SparseTransformer(shape)
        >>> kept = {"0.attn.v": torch.tensor([3]), "0.attn.resid_delta": torch.tensor([2])}
        >>> torch.save({"circuit_data": kept}, "viz_data.pt")
        >>> circuit = circuits.interop.load_openai_circuit("viz_data.pt", model, torch.zeros(1, 4, dtype=torch.long))
        >>> print(*circuit.nodes)
        0.attn_out.2 0.attn_v.3
    """
    READS.check(model, "load_openai_circuit", instead="Load the model that the circuit was found in.")
    whole = load_tensors(path, "a viz_data.pt")
    with reading(path, "a viz_data.pt"):
        places = whole.get("circuit_data")
        if not isinstance(places, Mapping):
            raise ValueError(f"path: {path} has no dictionary 'circuit_data'; expected a viz_data.pt.")
        kept = {name: _indices(name, value) for name, value in places.items()}
        last = kept.pop(LAST, None)
        nodes = sorted({Node.of(site, i) for site, own in _by_site(kept, model).items() for i in own})
        metrics = _metrics(whole, last)
    return Circuit(
        nodes=tuple(nodes),
        edges=tuple(edges_between(model, nodes)),
        widths=model.widths,
        n_layers=model.config.n_layers,
        d_head=model.config.d_head,
        criterion=Criterion(task=task, task_options=None, objective="task"),
        model_hash=model.fingerprint(),
        values={site: value.cpu() for site, value in mean_values(model, text).items()},
        metrics=metrics,
    )


def _indices(name: str, value: Any) -> list[int]:
    if not isinstance(value, Tensor) or value.ndim != 1 or value.is_floating_point():
        raise ValueError(
            f"circuit_data: {name} is {value!r}; expected a 1-dimensional tensor of whole numbers."
        )
    return [int(i) for i in value.tolist()]


def _by_site(kept: Mapping[str, list[int]], model: SparseTransformer) -> dict[Site, list[int]]:
    """The indices of each site. Raises ValueError for a place or an index that the model does not have."""
    found = {}
    for name, indices in kept.items():
        layer, _, place = name.partition(".")
        if place not in PLACES or not layer.isdecimal() or int(layer) >= model.config.n_layers:
            raise ValueError(
                f"circuit_data: got {name!r}; expected '{LAST}' or a layer below {model.config.n_layers} with one of "
                f"{list(PLACES)}. Is the circuit from another model?"
            )
        site = Site(int(layer), PLACES[place])
        if any(not 0 <= i < model.widths[site] for i in indices):
            raise ValueError(
                f"circuit_data: {name} has indices {min(indices)} to {max(indices)}; expected 0 to "
                f"{model.widths[site] - 1}. Is the circuit from another model?"
            )
        found[site] = indices
    return found


def _metrics(whole: Mapping[str, Any], last: list[int] | None) -> dict[str, Any]:
    importances = whole.get("importances")
    stored = importances.get("interv_loss") if isinstance(importances, Mapping) else None
    loss = {} if stored is None else {"stored_task_loss": float(torch.as_tensor(stored)) / 2}
    return {**loss, **({} if last is None else {LAST: last})}
