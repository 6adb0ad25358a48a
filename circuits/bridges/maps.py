"""Pairs of locations, the two affine maps between each, and the passes that cross from model to model."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from circuits.bridges.sides import Model, Role, Side
from circuits.model.config import Share
from circuits.model.kinds import of_ours
from circuits.model.layers import AbsTopK, Linear
from circuits.model.stored import FLOATS, check_tensor, opened, save_stored
from circuits.model.transformer import SparseTransformer
from circuits.reading import demand
from circuits.settings import Whole, checked
from circuits.views import Plotted
from tasks.tokenizer_files import check_same_tokenizer

SCHEMA = "sparse-circuits/bridges/1"


class Pair(NamedTuple):
    """A location of the dense model and the one of the sparse model that it is tied to."""

    dense: str
    """Location of the dense model, such as `0.attn`."""
    sparse: str
    """Location of the sparse model."""

    def __str__(self) -> str:
        return self.dense if self.dense == self.sparse else f"{self.dense}~{self.sparse}"


class Maps(nn.Module):
    """Bridge encoder `AbsTopK(h W_e + b_e)`, dense to sparse, and bridge decoder `h W_d + b_d`, back."""

    def __init__(self, d_dense: int, d_sparse: int, topk_fraction: float | None) -> None:
        super().__init__()
        self.encoder = Linear(d_dense, d_sparse, d_dense**-0.5)
        self.decoder = Linear(d_sparse, d_dense, d_sparse**-0.5)
        self.topk = AbsTopK(None if topk_fraction is None else max(1, int(topk_fraction * d_sparse)))

    def encode(self, h: Float[Tensor, "*batch d_dense"]) -> Float[Tensor, "*batch d_sparse"]:
        """What the sparse model would hold where the dense one holds `h`; at most k nonzeros."""
        return self.topk(self.encoder(h.to(self.encoder.weight)))

    def decode(self, h: Float[Tensor, "*batch d_sparse"]) -> Float[Tensor, "*batch d_dense"]:
        """What the dense model would hold where the sparse one holds `h`."""
        return self.decoder(h.to(self.decoder.weight))


@dataclass(frozen=True, kw_only=True, eq=False)
class BridgeSet(Plotted):
    """All bridges between a dense and a sparse model. It works with these two models and no others."""

    dense: Model
    "The dense model; never changed."
    sparse: SparseTransformer
    "The sparse model: the one given, or the one that was trained together with the bridges."
    pairs: tuple[Pair, ...]
    "The tied locations, in the order in which they were given."
    maps: nn.ModuleList
    "`Maps` of each pair."
    topk_fraction: float | None
    "Fraction of the sparse width that encoders keep; None: all."
    first: int = 0
    "Positions at the start of each text that bridges leave alone: there a hybrid keeps the model's own values."
    metrics: dict[str, Any] = field(default_factory=dict)
    "Validation metrics: `locations` holds a row for each pair; see `bridge_metrics`."
    history: list[dict[str, int | float]] = field(default_factory=list)
    "Losses over the steps of fitting."

    def __repr__(self) -> str:
        return f"BridgeSet({len(self.pairs)} pairs: {', '.join(map(str, self.pairs))})"

    @cached_property
    def sides(self) -> dict[str, Side]:
        """The two models behind one interface, by role."""
        return {"dense": Side(self.dense, "dense"), "sparse": Side(self.sparse, "sparse")}

    def index(self, pair: Pair | str) -> int:
        """Position of a pair, given as such, by its name, or by a location that only one pair has."""
        names = [str(p) for p in self.pairs]
        if str(pair) in names:
            return names.index(str(pair))
        found = [i for i, p in enumerate(self.pairs) if pair in (p.dense, p.sparse)]
        if len(found) != 1:
            raise ValueError(
                f"location: got {str(pair)!r}; expected one of {names}, the pairs of this BridgeSet."
            )
        return found[0]

    def at(self, pair: Pair | str) -> tuple[Pair, Maps]:
        """A pair and its maps; see `index`. Raises ValueError for a location without a bridge."""
        i = self.index(pair)
        maps = self.maps[i]
        assert isinstance(maps, Maps)
        return self.pairs[i], maps

    def hybrid(
        self, tokens: Int[Tensor, "batch pos"], *crossings: Pair | str, start: Role = "dense"
    ) -> Float[Tensor, "batch pos d_vocab"]:
        """Logits of a pass that starts in one model and changes to the other at each crossing, in order.

        Each model runs its own forward pass; at a crossing the whole residual stream, from position `first` on, is
        mapped and put in the place of the other model's. No crossing: the plain model. Raises ValueError for a
        location without a bridge, or a crossing that lies before the one through which its model was entered.
        """
        if start not in ("dense", "sparse"):
            raise ValueError(f"start: got {start!r}; expected 'dense' or 'sparse'.")
        ties = [self.at(crossing) for crossing in crossings]
        return cross(self.sides, tokens, ties, start, first=self.first)

    def fingerprints(self) -> dict[str, str]:
        """Hashes of the two models' weights."""
        return {role: side.fingerprint() for role, side in self.sides.items()}

    def summary(self) -> dict[str, Any]:
        """The worst location of every metric, flat and in plain JSON types.

        nothing_to_recover_*: at how many locations mean ablation costs nothing, so that no share was recovered.
        max_position_0_share: the greatest share of a location's sum of squares that position 0 holds, of both models;
        near 1, errors and means of that location are those of one position: fit with `first=1`.
        """
        rows = self.metrics.get("locations", [])
        shares = {
            name: [row[f"recovered_{name}"] for row in rows]
            for name in ("dense_to_sparse", "sparse_to_dense")
        }
        worst = {
            **{
                f"min_recovered_{name}": min((share for share in own if share is not None), default=None)
                for name, own in shares.items()
            },
            **{
                f"nothing_to_recover_{name}": n
                for name, own in shares.items()
                if (n := sum(share is None for share in own))
            },
            "max_nmse_encode": max((r["nmse_encode"] for r in rows), default=None),
            "max_nmse_decode": max((r["nmse_decode"] for r in rows), default=None),
            "max_position_0_share": max(_position_0_shares(rows), default=None),
        }
        return {
            "n_pairs": len(self.pairs),
            **worst,
            **{k: v for k, v in self.metrics.items() if k.startswith("loss")},
        }

    def save(self, path: str | Path) -> Path:
        """Write the maps and all that is known of them to one safetensors file, in one step; returns its path.

        The models are not in it: save the sparse one with `save_checkpoint`.
        """
        header = {
            "schema": SCHEMA,
            "fingerprints": self.fingerprints(),
            "pairs": [list(pair) for pair in self.pairs],
            "topk_fraction": self.topk_fraction,
            "first": self.first,
            "metrics": self.metrics,
            "history": self.history,
        }
        tensors = {name: value.detach().cpu().contiguous() for name, value in self.maps.state_dict().items()}
        return save_stored(path, tensors, header)


def load_bridges(path: str | Path, *, dense: Model, sparse: SparseTransformer) -> BridgeSet:
    """Read what `BridgeSet.save` wrote.

    Raises UnreadableError (a ValueError) for another file, or for other models than its own, and ValueError for models
    of different tokenizers.

    Examples:
        >>> kept = circuits.load("mini-python-sparse").bridges
        >>> path = kept.save("bridges.safetensors")
        >>> circuits.load_bridges(path, dense=kept.dense, sparse=kept.sparse).dense is kept.dense
        True
    """
    check_same_tokenizer(
        dense.tokenizer,
        sparse.tokenizer,
        name="sparse",
        got="a model",
        expected="one in the dense model's tokens",
        do="Load both with the tokenizer that they were trained with.",
    )
    sides = {"dense": Side(dense, "dense"), "sparse": Side(sparse, "sparse")}
    with opened(path, SCHEMA, "bridges", "BridgeSet.save") as (file, header):
        for role, side in sides.items():
            check_model(side, header["fingerprints"][role], path)
        pairs = _stored_pairs(header["pairs"], sides)
        topk_fraction = checked("topk_fraction", header["topk_fraction"], Share | None)
        first = _stored_first(header.get("first", 0), sides)
        _check_maps(file, sides, len(pairs))
        maps = new_maps(sides["dense"], sides["sparse"], pairs, topk_fraction, seed=0)
        maps.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
        return BridgeSet(
            dense=dense,
            sparse=sparse,
            pairs=pairs,
            maps=maps.requires_grad_(False),
            topk_fraction=topk_fraction,
            first=first,
            metrics=_object(header["metrics"], "metrics"),
            history=[_object(entry, "history") for entry in header["history"]],
        )


def _object(data: Any, name: str) -> dict[str, Any]:
    demand(isinstance(data, dict), f"{name}: got {data!r}", "a JSON object")
    return dict(data)


def _position_0_shares(rows: Sequence[dict[str, Any]]) -> list[float]:
    """Those that metrics hold; files from before they were measured hold none."""
    names = ("position_0_share_dense", "position_0_share_sparse")
    return [row[name] for row in rows for name in names if name in row]


def _stored_first(data: Any, sides: dict[str, Side]) -> int:
    """The positions that bridges of a file leave alone; files from before there were any say nothing."""
    first = int(checked("first", data, Whole))
    shared = min(side.n_ctx for side in sides.values())
    demand(first < shared, f"first: got {first}", f"less than {shared}, the context that the models share")
    return first


def _stored_pairs(data: Any, sides: dict[str, Side]) -> tuple[Pair, ...]:
    """The pairs of a file, each of a location that its model has."""
    demand(isinstance(data, list), f"pairs: got {data!r}", "a list")
    for pair in data:
        right = isinstance(pair, list) and len(pair) == 2
        right = right and all(
            place in side.locations for place, side in zip(pair, sides.values(), strict=True)
        )
        demand(right, f"pairs: got {pair!r}", "a location of each model")
    pairs = tuple(Pair(*pair) for pair in data)
    demand(len(set(pairs)) == len(pairs), f"pairs: got {data!r}", "each pair once")
    return pairs


def _check_maps(file: Any, sides: dict[str, Side], n: int) -> None:
    """Raise UnreadableError unless the file holds the tensors of `n` maps between these models, and nothing else."""
    d_dense, d_sparse = sides["dense"].d_model, sides["sparse"].d_model
    shapes = {"encoder": (d_dense, d_sparse), "decoder": (d_sparse, d_dense)}
    for i in range(n):
        for name, (d_in, d_out) in shapes.items():
            check_tensor(file, f"{i}.{name}.weight", [d_in, d_out], FLOATS)
            check_tensor(file, f"{i}.{name}.bias", [d_out], FLOATS)
    demand(
        len(file.keys()) == 4 * n,
        f"path: it holds {len(file.keys())} tensors",
        f"{4 * n}, four for each pair",
    )


@of_ours
def identity_bridges(model: SparseTransformer) -> BridgeSet:
    """Bridges between a model and itself that change nothing: every hybrid is the plain model.

    Examples:
        >>> model = circuits.load("quotes-128").model
        >>> tokens = tasks.load_task("quotes").batch(2, split="test", seed=0).clean
        >>> bridges = circuits.bridges.identity_bridges(model)
        >>> torch.equal(bridges.hybrid(tokens, "embed", "0.attn", start="dense"), model(tokens))
        True
    """
    pairs = tuple(Pair(place, place) for place in Side(model, "sparse").locations)
    side = Side(model, "sparse")
    maps = new_maps(side, side, pairs, None, seed=0)
    with torch.no_grad():
        for each in maps.modules():
            if isinstance(each, Linear):
                each.weight.copy_(torch.eye(side.d_model))
    maps.requires_grad_(False)
    return BridgeSet(dense=model, sparse=model, pairs=pairs, maps=maps, topk_fraction=None)


def new_maps(
    dense: Side, sparse: Side, pairs: Sequence[Pair], topk_fraction: float | None, *, seed: int
) -> nn.ModuleList:
    """Maps of every pair with random weights, on the sparse model's device."""
    with torch.inference_mode(False), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        maps = [Maps(dense.d_model, sparse.d_model, topk_fraction) for _ in pairs]
    return nn.ModuleList(maps).to(sparse.device)


def cross(
    sides: dict[str, Side],
    tokens: Tensor,
    ties: Sequence[tuple[Pair, Maps]],
    start: Role,
    *,
    first: int = 0,
) -> Float[Tensor, "batch pos d_vocab"]:
    """The pass behind `BridgeSet.hybrid`; differentiable in the maps and in both models."""
    now: Role = start
    entered: dict[str, Any] = {}
    for pair, maps in ties:
        side, place = sides[now], getattr(pair, now)
        if entered and side.locations.index(place) < side.locations.index(next(iter(entered))):
            raise ValueError(
                f"crossings: got {[str(p) for p, _ in ties]} from {start}, which leaves the {now} model at {place!r}, "
                f"before it was entered at {next(iter(entered))!r}; expected locations in forward order."
            )
        _, kept = side.run(tokens, keep=[place], replace=entered)
        value = maps.encode(kept[place]) if now == "dense" else maps.decode(kept[place])
        now = other(now)
        entered = {getattr(pair, now): put(value, first)}
    return sides[now].run(tokens, replace=entered)[0]


def put(value: Float[Tensor, "batch pos d_model"], first: int = 0) -> Any:
    """An edit that replaces whatever is there, from position `first` on, by `value`."""
    if first == 0:
        return lambda x: value.to(x)
    return lambda x: torch.cat([x[:, :first], value[:, first:].to(x)], dim=1)


def other(role: Role) -> Literal["dense", "sparse"]:
    """The model on the far side."""
    return "sparse" if role == "dense" else "dense"


def check_model(side: Side, expected: str, path: str | Path) -> None:
    """Raise ValueError when a model is not the one that saved bridges belong to."""
    found = side.fingerprint()
    if found != expected:
        raise ValueError(
            f"{side.role}: the bridges of {path} belong to {side.role} model {expected}, but this model is {found}; "
            "expected the same weights. Load the checkpoint that they were fitted with, or fit new bridges."
        )
