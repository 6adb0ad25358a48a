"""Who writes to the residual stream, who reads it, and the small factors by which each does.

A head writes `W_V W_O` and reads through three ports: Q (`W_Q W_K^T`), K (its transpose) and V (`W_V W_O`). An MLP
neuron writes its row of `W_out` and reads through the port `in` (a gated one through `gate` too); of a router, which
reads as well, nothing is said. Every matrix M is replaced by a factor of the same Gram matrix, rank x d_model, so that
`||L R||` is `||M_writer M_reader||`.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuits.heads.stacks import group_weights, has_encoder
from circuits.heads.weights import HeadWeights, check_finite, head_weights
from circuits.model.mixers import Compose
from circuits.model.options import ONE_STACK, Says
from circuits.model.sites import Stack, prefix

Kind = Literal["head", "neuron", "cross"]
Port = Literal["Q", "K", "V", "in", "gate"]
LETTER: dict[Kind, str] = {"head": "H", "neuron": "N", "cross": "X"}
"""How a part is labelled: `L0H1`, `L0N12`, and `L0X1` for a head that looks at an encoder."""
PORTS: tuple[Port, ...] = ("Q", "K", "V", "in", "gate")
GRAM_NUMBERS, MANY = 2**24, 2**30
"""Numbers of Gram matrices that are held at a time; multiplications from which on those are used at all."""
SAYS = Says(
    compose=("none", "static"), act=None, arch=None, embed_scale=None, experts=None, factor_ratio=None
)
"""Products of weights: dynamic compositions of heads have no form in weights alone."""
INSTEAD = "Measure with composition_on_data(model, tokens), or look at composition_maps(model, tokens)."


class Writer(NamedTuple):
    """A head or an MLP neuron, as something that writes to the residual stream of its stack."""

    layer: int
    kind: Kind
    number: int
    stack: Stack = "decoder"

    def __str__(self) -> str:
        return f"{prefix(self.stack)}L{self.layer}{LETTER[self.kind]}{self.number}"


class Reader(NamedTuple):
    """A head or an MLP neuron, as something that reads the residual stream through one of its ports."""

    layer: int
    kind: Kind
    number: int
    port: Port
    stack: Stack = "decoder"

    @property
    def part(self) -> Writer:
        """The same head or neuron as a writer."""
        return Writer(self.layer, self.kind, self.number, self.stack)

    @property
    def reads(self) -> Stack:
        """The stack whose residual stream the port reads: keys and values of cross-attention read the encoder's."""
        return "encoder" if self.kind == "cross" and self.port in ("K", "V") else self.stack

    def __str__(self) -> str:
        return f"{self.part}.{self.port}"


@dataclass(frozen=True, kw_only=True)
class Matrices:
    """Weights that meet in the residual stream, one group of equal rank, with the other half of each matrix.

    `outer` touches the residual stream (rows of d_model for writers, columns for readers after transposing:
    always rank x d_model); `inner` [rank, rank] stands for the other half, with the same Gram matrix.
    """

    outer: Float[Tensor, "part rank d_model"]
    "W_O of heads, rows of W_out; the transposed W_Q, W_K, W_V of readers, columns of W_in."
    inner: Float[Tensor, "part rank rank"]
    "Triangular factor of the matrix on the other side; 1 for neurons."

    @property
    def factors(self) -> Float[Tensor, "part rank d_model"]:
        """`inner @ outer`: everything a composition score needs to know."""
        return self.inner @ self.outer

    def rows(self, which: Tensor) -> "Matrices":
        """Some of the parts."""
        return Matrices(outer=self.outer[which], inner=self.inner[which])


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Writers and readers of a model, heads first, with their matrices in the same order."""

    writers: tuple[Writer, ...]
    readers: tuple[Reader, ...]
    written: tuple[Matrices, ...]
    "Heads, then neurons (where asked for)."
    read: tuple[Matrices, ...]
    "Heads port by port, then neurons port by port."
    later: Bool[Tensor, "writer reader"]
    "True where the reader comes after the writer."


def parts_of(
    model: Any,
    neurons: bool | Sequence[tuple[int, int]] = False,
    layers: Collection[int] | None = None,
) -> Parts:
    """Every head of a model and the given MLP neurons, as (layer, index); True: all of them.

    layers: only what is in these (None: all). Static compositions of heads are multiplied in. Raises ValueError for a
    neuron that the model does not have, and for dynamic compositions, which have no form in weights alone.
    """
    SAYS.check(model, "composition from weights", instead=INSTEAD)
    writers, written, readers, read = _heads_of(model)
    chosen = _chosen_neurons(model, neurons)
    if chosen:
        more_writers, W_out = _neuron_writers(model, chosen)
        more_readers, W_in = _neuron_readers(model, chosen)
        check_finite({"W_out of neurons": W_out.outer, "W_in of neurons": W_in.outer})
        writers, readers = [*writers, *more_writers], [*readers, *more_readers]
        written, read = [*written, W_out], [*read, W_in]
    if layers is not None:
        _check_layers(layers, {w.layer for w in writers})
        writers, written = _in_layers(writers, written, layers)
        readers, read = _in_layers(readers, read, layers)
    parallel = bool(getattr(model.cfg, "parallel_attn_mlp", False))
    later = torch.tensor([[_is_later(w, r, parallel) for r in readers] for w in writers])
    return Parts(
        writers=tuple(writers), readers=tuple(readers), written=tuple(written), read=tuple(read), later=later
    )


def _check_layers(layers: Collection[int], known: set[int]) -> None:
    wrong = [layer for layer in layers if layer not in known]
    if wrong or not layers:
        raise ValueError(f"layers: got {sorted(layers)}; expected some of the model's, {sorted(known)}.")


def _in_layers(
    names: list[Any], groups: list[Matrices], layers: Collection[int]
) -> tuple[list[Any], list[Matrices]]:
    """The parts of some layers, and their matrices in the same order."""
    kept = torch.tensor([name.layer in layers for name in names])
    own = [
        group.rows(which.nonzero()[:, 0])
        for group, which in zip(groups, kept.split([len(group.outer) for group in groups]), strict=True)
    ]
    return [name for name in names if name.layer in layers], own


def _heads_of(model: Any) -> tuple[list[Writer], list[Matrices], list[Reader], list[Matrices]]:
    if not has_encoder(model):
        heads = with_static_maps(model, head_weights(model))
        return *_head_writers(heads), *_head_readers(heads)
    writers, written, readers, read = [], [], [], []
    for (stack, kind), heads in group_weights(model).items():
        names, matrices = _head_writers(heads)
        writers += [w._replace(kind=kind, stack=stack) for w in names]
        written += matrices
        ports, matrices = _head_readers(heads)
        readers += [r._replace(kind=kind, stack=stack) for r in ports]
        read += matrices
    return writers, written, readers, read


def with_static_maps(model: Any, heads: HeadWeights) -> HeadWeights:
    """Heads of a model with compose="static" as plain heads, exactly; plain ones as they are.

    Head m asks with all queries, `sum_n (I + W_pre)[n, m] W_Q^n W_K^n^T`, and head n moves what all output
    circuits carry, `sum_m (I + W_post)[n, m] W_V^m W_O^m`: each has n_heads * d_head channels.
    """
    attns = [model.blocks[layer].attn for layer in heads.layers]
    if not any(isinstance(getattr(attn, "compose_pre", None), Compose) for attn in attns):
        return heads
    pre, post = (
        torch.stack([_static_map(getattr(attn, stage), heads) for attn in attns])
        for stage in ("compose_pre", "compose_post")
    )

    def mixed(weight: Tensor, maps: Tensor) -> Tensor:
        """[layer, to, d_model, (from d_head)], each head's channels times its entry of the map."""
        return torch.einsum("lnm,lndh->lmdnh", maps, weight).flatten(3)

    ones = torch.ones_like(pre)
    return replace(
        heads,
        b_Q=mixed(heads.b_Q[:, :, None], pre)[:, :, 0],
        b_K=mixed(heads.b_K[:, :, None], ones)[:, :, 0],
        W_Q=mixed(heads.W_Q, pre),
        W_K=mixed(heads.W_K, ones),
        W_V=mixed(heads.W_V, post.transpose(1, 2)),
        W_O=mixed(heads.W_O.transpose(-2, -1), ones).transpose(-2, -1),
    )


def _static_map(compose: Compose, heads: HeadWeights) -> Float[Tensor, "head head"]:
    eye = torch.eye(heads.n_heads).to(heads.W_Q)
    return eye if compose.static is None else eye + compose.static.detach().to(eye)


def product_norms(
    written: Sequence[Float[Tensor, "_ _ d_model"]], read: Sequence[Float[Tensor, "_ _ d_model"]]
) -> Float[Tensor, "writer reader"]:
    """`||L_w R_r^T||_F` of every pair of factors: by their products, or by Gram matrices where those are cheaper."""
    blocks = []
    for left in written:
        row = [
            by_grams(left, right) if grams_are_cheaper(left, right) else by_products(left, right)
            for right in read
        ]
        blocks.append(torch.cat(row, dim=1))
    return torch.cat(blocks).sqrt()


def by_products(
    left: Float[Tensor, "writer _ d_model"], right: Float[Tensor, "reader _ d_model"]
) -> Float[Tensor, "writer reader"]:
    """`||L R^T||^2` of every pair, as it is defined."""
    product = (left.flatten(0, 1) @ right.flatten(0, 1).T).square_()
    shape = (len(left), left.shape[1], len(right), right.shape[1])
    return product.view(shape).sum((1, 3))


def by_grams(
    left: Float[Tensor, "writer _ d_model"], right: Float[Tensor, "reader _ d_model"]
) -> Float[Tensor, "writer reader"]:
    """The same as `<L^T L, R^T R>`: d_model^2 numbers a part, of which half are enough, some rows of them at a time."""
    width = left.shape[-1]
    step = max(1, GRAM_NUMBERS // (width * (len(left) + len(right))))
    total = torch.zeros(len(left), len(right)).to(left)
    for start in range(0, width, step):
        grams = [part[..., start : start + step].mT @ part[..., start:] for part in (left, right)]
        grams[0][..., grams[0].shape[1] :] *= (
            2  # those beyond the diagonal block stand for their mirror images too
        )
        total += grams[0].flatten(1) @ grams[1].flatten(1).T
    return total.clamp_min_(0)


def grams_are_cheaper(
    left: Float[Tensor, "writer _ d_model"], right: Float[Tensor, "reader _ d_model"]
) -> bool:
    """Whether Gram matrices take less than half of the multiplications, of so many that it can be felt."""
    (n_left, rank_left, width), (n_right, rank_right, _) = left.shape, right.shape
    products = n_left * rank_left * width * n_right * rank_right
    grams = width**2 * (n_left * n_right + n_left * rank_left + n_right * rank_right) // 2
    return products > MANY and products > 2 * grams


def norms(groups: Sequence[Float[Tensor, "_ _ d_model"]]) -> Float[Tensor, " part"]:
    """Frobenius norm of every factor."""
    return torch.cat([group.flatten(1).norm(dim=1) for group in groups])


def divided(product: Float[Tensor, "..."], sizes: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """`product / sizes`, and 0 where a matrix is all zero."""
    return torch.where(sizes > 0, product / sizes.clamp_min(torch.finfo(sizes.dtype).tiny), 0.0)


def triangular(weight: Float[Tensor, "part d_model rank"]) -> Float[Tensor, "part rank rank"]:
    """T with `T^T T = W^T W`: T stands for W wherever only norms of products are asked for."""
    T = torch.linalg.qr(weight, mode="r").R
    missing = weight.shape[-1] - T.shape[-2]
    return torch.nn.functional.pad(T, (0, 0, 0, missing)) if missing > 0 else T


def _head_writers(heads: HeadWeights) -> tuple[list[Writer], list[Matrices]]:
    writers = [Writer(layer, "head", h) for layer in heads.layers for h in range(heads.n_heads)]
    V, out = heads.W_V.flatten(0, 1), heads.W_O.flatten(0, 1)
    return writers, [Matrices(outer=out, inner=triangular(V))]


def _head_readers(heads: HeadWeights) -> tuple[list[Reader], list[Matrices]]:
    names = [(layer, h) for layer in heads.layers for h in range(heads.n_heads)]
    ports: tuple[Port, ...] = ("Q", "K", "V")
    Q, K, V, out_T = (W.flatten(0, 1) for W in (heads.W_Q, heads.W_K, heads.W_V, heads.W_O.transpose(-2, -1)))
    readers = [Reader(layer, "head", h, port) for port in ports for layer, h in names]
    outer = torch.cat([Q, K, V]).transpose(-2, -1)
    inner = triangular(torch.cat([K, Q, out_T]))
    return readers, [Matrices(outer=outer, inner=inner)]


def _neuron_writers(model: Any, chosen: Sequence[tuple[int, int]]) -> tuple[list[Writer], Matrices]:
    outer = torch.stack([model.blocks[layer].mlp.W_out.detach()[n] for layer, n in chosen]).float()
    return [Writer(layer, "neuron", n) for layer, n in chosen], _rank_one(outer)


def _neuron_readers(model: Any, chosen: Sequence[tuple[int, int]]) -> tuple[list[Reader], Matrices]:
    readers, columns = [], []
    names: tuple[tuple[Port, str], ...] = (("in", "W_in"), ("gate", "W_gate"))
    for port, name in names:
        for layer, n in chosen:
            weight = getattr(model.blocks[layer].mlp, name, None)
            if weight is not None:
                readers.append(Reader(layer, "neuron", n, port))
                columns.append(weight.detach()[:, n])
    return readers, _rank_one(torch.stack(columns).float())


def _rank_one(rows: Float[Tensor, "part d_model"]) -> Matrices:
    return Matrices(outer=rows[:, None], inner=torch.ones(len(rows), 1, 1).to(rows))


def _chosen_neurons(model: Any, neurons: bool | Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    if neurons is False:
        return []
    ONE_STACK.check(model, "composition of neurons", instead="Leave neurons out: heads are compared.")
    sizes = {layer: len(block.mlp.W_out) for layer, block in model.blocks_with("mlp")}
    if neurons is True:
        return [(layer, n) for layer, size in sizes.items() for n in range(size)]
    for layer, n in neurons:
        if not 0 <= n < sizes.get(layer, 0):
            raise ValueError(
                f"neurons: got {(layer, n)}; expected (layer, index) with a layer out of {list(sizes)} and an "
                f"index below {sizes.get(layer, min(sizes.values(), default=0))}."
            )
    return list(neurons)


def _is_later(writer: Writer, reader: Reader, parallel: bool) -> bool:
    if writer.stack != reader.reads:
        return False
    if writer.stack != reader.stack:
        return True  # the encoder is done before the decoder looks at it
    if writer.layer != reader.layer:
        return writer.layer < reader.layer
    if writer.kind == "head" and reader.kind == "cross":
        return True
    return writer.kind == "head" and reader.kind == "neuron" and not parallel
