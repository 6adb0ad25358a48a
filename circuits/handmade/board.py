"""The board that circuits are laid on by hand: a model of zeros, with named residual channels and free parts.

RMSNorm divides by the size of the whole residual stream, so that anything written anywhere would change what
everything reads. A *ballast* channel, large and equal for every token, holds that size nearly constant: a
normed channel is the channel over `SCALE`, to about one percent. Reading weights are given in residual units
and multiplied by `SCALE` here.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from circuits.circuit.nodes import Edge, Node
from circuits.model.config import ModelConfig
from circuits.model.sites import WEIGHTS, Site, SiteName
from circuits.model.transformer import SparseTransformer
from tasks import Tokenizer

SCALE = 6.0
"""Root mean square of the residual stream, nearly all of it ballast."""
READS_STREAM = ("W_Q", "W_K", "W_V", "W_in")


class Board:
    """A model under construction, and the parts of it that are in use.

    `touched` collects, for each site, the coordinates that a laid circuit relies on; decoys keep their
    distance from those.
    """

    def __init__(self, config: ModelConfig, tokenizer: Tokenizer) -> None:
        self.config, self.tokenizer = config, tokenizer
        self.model = SparseTransformer(config, tokenizer=tokenizer)
        self._free_channels = iter(range(config.d_model))
        self._free_heads = {layer: iter(range(config.n_heads)) for layer in range(config.n_layers)}
        self._free_neurons = {layer: iter(range(config.d_mlp)) for layer in range(config.n_layers)}
        self.touched: set[Node] = set()
        self.answers: set[int] = set()
        for parameter in self.model.parameters():
            parameter.data.zero_()
        self.ballast = self.channel()
        self.model.W_E.data[:, self.ballast] = SCALE * config.d_model**0.5

    # Parts that are still free.

    def channel(self) -> int:
        """A residual channel that nobody uses yet."""
        return next(self._free_channels)

    def head(self, layer: int) -> int:
        """The first coordinate, in q, k and v, of a head that nobody uses yet."""
        first = self.decoy_head(layer)
        for slot in range(self.config.d_head):
            # Where a head looks is a matter of all its queries and keys, used or not.
            self.touched |= {Node(layer, site, first + slot) for site in ("attn_q", "attn_k")}
        return first

    def decoy_head(self, layer: int) -> int:
        """Like `head`, for a head that no circuit relies on."""
        return next(self._free_heads[layer]) * self.config.d_head

    def neuron(self, layer: int) -> int:
        """An MLP neuron that nobody uses yet."""
        return next(self._free_neurons[layer])

    # Tokens and positions.

    def embed(self, channel: int, values: dict[str, float]) -> None:
        """Give each token text its value in a residual channel."""
        for text, value in values.items():
            self.model.W_E.data[self.tokenizer.id(text), channel] = value

    def place(self, channel: int, values: dict[int, float]) -> None:
        """Give each position its value in a residual channel."""
        for position, value in values.items():
            self.model.W_pos.data[position, channel] = value

    def unembed(self, channel: int, gains: dict[str, float]) -> None:
        """Let a residual channel raise the logit of each token by its gain (nats a residual unit)."""
        for text, gain in gains.items():
            token = self.tokenizer.id(text)
            self.answers.add(token)
            self.model.unembed.W_U.data[channel, token] = gain * SCALE

    def offset(self, offsets: dict[str, float]) -> None:
        """Constant logits (nats)."""
        for text, value in offsets.items():
            self.model.unembed.b_U.data[self.tokenizer.id(text)] = value

    # Weights.

    def wire(self, layer: int, weight: str, source: int, target: int, value: float) -> Edge:
        """Set one weight and return the edge; what reads the residual stream is given in residual units."""
        value *= SCALE if weight in READS_STREAM else 1.0
        self.model.linear(layer, weight).weight.data[source, target] = value
        a, b = (Node(layer, site, i) for site, i in zip(WEIGHTS[weight].sites, (source, target), strict=True))
        self.touched |= {a, b}
        return Edge(a, b, float(self.model.linear(layer, weight).weight.detach()[source, target]))

    def bias(self, layer: int, weight: str, target: int, value: float) -> None:
        """Set the bias that goes with a weight matrix."""
        self.model.linear(layer, weight).bias.data[target] = value

    def attend_by(self, layer: int, head: int, slot: int, reads: dict[int, float]) -> list[Edge]:
        """Scores that the keys alone decide: the sum of gain * channel over `reads`, in nats.

        The query channel is a constant, so it is no node of the circuit.
        """
        self.bias(layer, "W_Q", head + slot, self.config.d_head**0.5)
        self.touched.add(Node(layer, "attn_q", head + slot))
        return [self.wire(layer, "W_K", channel, head + slot, gain) for channel, gain in reads.items()]

    def match(self, layer: int, head: int, slot: int, query: int, key: int, gain: float) -> list[Edge]:
        """Scores of gain * (query's channel) * (key's channel), in nats."""
        root = (gain * self.config.d_head**0.5) ** 0.5
        q, k = (Node(layer, name, head + slot) for name in ("attn_q", "attn_k"))
        return [
            self.wire(layer, "W_Q", query, head + slot, root),
            self.wire(layer, "W_K", key, head + slot, root),
            Edge(k, q, self.config.d_head**-0.5),
        ]

    def move(
        self, layer: int, head: int, slot: int, source: int, target: int, gain: float = 1.0
    ) -> list[Edge]:
        """Carry gain * a channel from where the head looks into another channel."""
        return [
            self.wire(layer, "W_V", source, head + slot, gain),
            self.wire(layer, "W_O", head + slot, target, 1.0),
        ]

    def ramp(
        self, layer: int, source: int, target: int, *, slope: float, start: float, gain: float
    ) -> list[Edge]:
        """One neuron: gain * gelu(slope * (channel - start)) into another channel."""
        neuron = self.neuron(layer)
        self.bias(layer, "W_in", neuron, -slope * start)
        return [
            self.wire(layer, "W_in", source, neuron, slope),
            self.wire(layer, "W_out", neuron, target, gain),
        ]


def nodes_of(edges: Iterable[Edge]) -> tuple[Node, ...]:
    """Both ends of every edge, sorted."""
    return tuple(sorted({node for edge in edges for node in (edge.source, edge.target)}))


def add_decoys(board: Board, seed: int, *, weights: int, heads: int) -> None:
    """Sow random weights, and random heads and neurons, that do nothing for any laid circuit.

    A decoy may read all but the ballast and the neurons of a circuit, whose values are large. What it writes
    to a coordinate that a circuit relies on, or to the logit of an answer, is a hundredth of what it writes
    elsewhere.
    """
    generator = torch.Generator().manual_seed(seed)
    for layer in range(board.config.n_layers):
        for _ in range(heads):
            _decoy_head(board, layer, generator)
    for name, matrix, barred, faint in _places(board):
        scale = SCALE if name in (*READS_STREAM, "W_U") else 1.0
        _sow(matrix, weights, barred, faint, generator, scale=scale)


def _decoy_head(board: Board, layer: int, generator: torch.Generator) -> None:
    """A head and a neuron with as much to say as real ones, reading channels that the circuits read."""
    head = board.decoy_head(layer)
    used = sorted({node.index for node in board.touched if node.site in ("attn_in", "mlp_in")})
    for slot in range(2):
        for weight in ("W_Q", "W_K", "W_V"):
            source = used[int(torch.randint(len(used), (1,), generator=generator))]
            _set(board.model.linear(layer, weight).weight, source, head + slot, SCALE * _normal(generator))
        channel = _unused_channel(board, generator)
        _set(board.model.linear(layer, "W_O").weight, head + slot, channel, _normal(generator))
        neuron = board.neuron(layer)
        _set(board.model.linear(layer, "W_in").weight, channel, neuron, SCALE * _normal(generator))
        _set(
            board.model.linear(layer, "W_out").weight,
            neuron,
            _unused_channel(board, generator),
            _normal(generator),
        )


def _places(board: Board) -> list[tuple[str, Tensor, list[int], list[int]]]:
    """Every weight matrix, the rows that decoys must not read, and the columns they may touch but faintly."""
    model, ballast = board.model, [board.ballast]
    on_stream = sorted({n.index for n in board.touched if n.site not in _INNER} | {board.ballast})
    found: list[tuple[str, Tensor, list[int], list[int]]]
    found = [("W_E", model.W_E, [], on_stream), ("W_pos", model.W_pos, [], on_stream)]
    for layer in range(board.config.n_layers):
        for name, row in WEIGHTS.items():
            target = row.target
            inner = {n.index for n in board.touched if n.at == Site(layer, target)}
            columns = sorted(inner) if target in _INNER else on_stream
            neurons = [n.index for n in board.touched if n.at == Site(layer, "mlp_neuron")]
            rows = ballast if name in READS_STREAM else sorted(neurons) if name == "W_out" else []
            found.append((name, model.linear(layer, name).weight, rows, columns))
    return [*found, ("W_U", model.unembed.W_U, ballast, sorted(board.answers))]


_INNER: tuple[SiteName, ...] = ("attn_q", "attn_k", "attn_v", "mlp_neuron")


def _sow(
    matrix: Tensor, n: int, barred: list[int], faint: list[int], generator: torch.Generator, *, scale: float
) -> None:
    """Add `n` random entries where the matrix has zeros."""
    strength = torch.full((matrix.shape[1],), 0.3 * scale)
    strength[faint] *= 0.01
    free = matrix == 0
    free[barred] = False
    places = free.flatten().nonzero().flatten()
    chosen = places[torch.randperm(len(places), generator=generator)[:n]]
    values = torch.randn(len(chosen), generator=generator) * strength[chosen % matrix.shape[1]]
    matrix.data.view(-1)[chosen] = values


def _unused_channel(board: Board, generator: torch.Generator) -> int:
    used = {n.index for n in board.touched if n.site not in _INNER} | {board.ballast}
    free = [i for i in range(board.config.d_model) if i not in used]
    return free[int(torch.randint(len(free), (1,), generator=generator))]


def _normal(generator: torch.Generator) -> float:
    return float(torch.randn((), generator=generator))


def _set(matrix: Tensor, row: int, column: int, value: float) -> None:
    matrix.data[row, column] = value
