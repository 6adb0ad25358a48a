"""The hand-made models by name: a circuit that is known, hidden among decoys."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch

from circuits.circuit.ablation import mean_values
from circuits.circuit.circuit import Circuit
from circuits.circuit.criterion import Criterion
from circuits.circuit.masked import run_circuit
from circuits.circuit.nodes import Edge, Node
from circuits.circuit.parts import io_edges
from circuits.circuit.score import margins, score_margins
from circuits.handmade import models, rules
from circuits.handmade.board import Board, add_decoys, nodes_of
from circuits.handmade.hard import HARD
from circuits.model.config import ModelConfig
from circuits.model.transformer import SparseTransformer
from circuits.pruning.redundancy import Situation
from tasks import Corpus, Task, load_corpus
from tasks.brackets import Brackets
from tasks.quotes import Quotes
from tasks.tokenizer import CharTokenizer


@dataclass(frozen=True, kw_only=True)
class Handmade:
    """A model whose circuit is known."""

    model: SparseTransformer
    "Compiled by hand; nothing in it was trained."
    task: Task
    "What the circuit does."
    circuit: Circuit
    "The true circuit: every node and edge that the task needs, and nothing else."
    corpus: Corpus = field(repr=False)
    "Text for the ablation means."
    second: Task | None = None
    "Another task that the same model performs, with other parts unless `other` says which."
    other: Circuit | None = None
    "The true circuit of the second task, where the two share parts."
    loose: frozenset[Node] = frozenset()
    "Nodes of the circuit that the model can do without, each alone: they have doubles."
    situation: Situation = "unique"
    "How the model holds the task."

    @property
    def core(self) -> tuple[Node, ...]:
        """The nodes that the model cannot do without, each alone."""
        return tuple(node for node in self.circuit.nodes if node not in self.loose)

    @property
    def turned(self) -> "Handmade":
        """The same model with its second task as the first. Raises ValueError where no circuit is known for that."""
        if self.second is None or self.other is None:
            raise ValueError(f"made: {self.task.name!r} shares its model with no task of a known circuit.")
        return replace(self, task=self.second, circuit=self.other, second=self.task, other=self.circuit)


@dataclass(frozen=True, kw_only=True)
class _Recipe:
    lay: Callable[[Board], list[Edge]]
    task: Callable[[], Task]
    corpus: Callable[[], Corpus]


def _rule(lay: Callable[[Board], list[Edge]], task: Callable[[], rules.RuleTask]) -> _Recipe:
    return _Recipe(lay=lay, task=task, corpus=lambda: rules.lines_of(task()))


def _mini() -> Corpus:
    return load_corpus("mini")


_RECIPES: dict[str, _Recipe] = {
    "quotes": _Recipe(lay=models.lay_quotes, task=Quotes, corpus=_mini),
    "brackets": _Recipe(lay=models.lay_brackets, task=lambda: Brackets(length=2), corpus=_mini),
    "induction": _rule(models.lay_induction, rules.induction_task),
    "copying": _rule(models.lay_copy, rules.copy_task),
    "majority": _rule(models.lay_majority, rules.majority_task),
    "modular": _rule(models.lay_modular, rules.sum_task),
}


def quotes(seed: int = 0, *, decoys: int = 100, decoy_heads: int = 1, second: str | None = None) -> Handmade:
    """Closing quotes: a head finds the opening quote, one neuron decides. See `build` for the arguments.

    Examples:
        >>> circuits.handmade.quotes().circuit.n_nodes
        8
    """
    return build("quotes", seed, decoys=decoys, decoy_heads=decoy_heads, second=second)


def brackets(
    seed: int = 0, *, decoys: int = 100, decoy_heads: int = 1, second: str | None = None
) -> Handmade:
    """Bracket depth: a head averages open brackets, one neuron is the threshold. See `build`.

    Examples:
        >>> circuits.handmade.brackets().circuit.n_nodes
        6
    """
    return build("brackets", seed, decoys=decoys, decoy_heads=decoy_heads, second=second)


def induction(
    seed: int = 0, *, decoys: int = 100, decoy_heads: int = 1, second: str | None = None
) -> Handmade:
    """Induction: two heads, the second finding by what the first wrote (K-composition). See `build`.

    Examples:
        >>> circuits.handmade.induction().model.config.n_layers
        2
    """
    return build("induction", seed, decoys=decoys, decoy_heads=decoy_heads, second=second)


def copying(seed: int = 0, *, decoys: int = 100, decoy_heads: int = 1, second: str | None = None) -> Handmade:
    """Copying the first letter, in two bits. See `build` for the arguments.

    Examples:
        >>> circuits.handmade.copying().task.solve("dbacb*")
        'd'
    """
    return build("copying", seed, decoys=decoys, decoy_heads=decoy_heads, second=second)


def majority(
    seed: int = 0, *, decoys: int = 100, decoy_heads: int = 1, second: str | None = None
) -> Handmade:
    """Majority of three votes, one head to a vote. See `build` for the arguments.

    Examples:
        >>> circuits.handmade.majority().task.solve("+--+-++-+++-")
        '+'
    """
    return build("majority", seed, decoys=decoys, decoy_heads=decoy_heads, second=second)


def modular(seed: int = 0, *, decoys: int = 100, decoy_heads: int = 1, second: str | None = None) -> Handmade:
    """Addition of three digits modulo ten, by steps made of neurons. See `build` for the arguments.

    Examples:
        >>> circuits.handmade.modular().task.solve("7+5+1=")
        '3'
    """
    return build("modular", seed, decoys=decoys, decoy_heads=decoy_heads, second=second)


MODELS: dict[str, Callable[..., Handmade]] = {
    "quotes": quotes,
    "brackets": brackets,
    "induction": induction,
    "copying": copying,
    "majority": majority,
    "modular": modular,
}
"""The builder of each hand-made model, by name."""


def build(
    name: str,
    seed: int = 0,
    *,
    decoys: int = 100,
    decoy_heads: int = 1,
    second: str | None = None,
    topk_fraction: float | None = None,
) -> Handmade:
    """A model with the circuit called `name`, hidden among decoys drawn from `seed`.

    decoys: random weights in each matrix; decoy_heads: heads (and twice as many neurons) a layer that read
    what the circuit reads; second: name of another circuit laid beside the first, in other parts;
    topk_fraction: as in `ModelConfig` (at 0.5 the true values are still among those that AbsTopK keeps).
    Raises ValueError for an unknown name, or for more decoys than there is room for.

    Examples:
        >>> made = circuits.handmade.build("copying", decoys=20)
        >>> made.task.solve("dbacb*"), made.circuit.metrics["task_accuracy"]
        ('d', 1.0)
    """
    for argument, value in (("name", name), ("second", second)):
        if value not in _RECIPES and not (value is None and argument == "second"):
            raise ValueError(f"{argument}: got {value!r}; expected one of {sorted(_RECIPES)}.")
    if second == name or not 0 <= decoy_heads <= 2 or decoys < 0:
        raise ValueError(
            f"second, decoy_heads, decoys: got {second!r}, {decoy_heads}, {decoys} beside {name!r}; expected "
            "another name, 0 to 2 heads a layer, and 0 or more weights a matrix."
        )
    recipe = _RECIPES[name]
    n_layers = 2 if "induction" in (name, second) else 1
    board = Board(_config(n_layers, topk_fraction), CharTokenizer())
    edges = recipe.lay(board)
    if second is not None:
        _RECIPES[second].lay(board)
    add_decoys(board, seed, weights=decoys, heads=decoy_heads)
    task, corpus = recipe.task(), recipe.corpus()
    return Handmade(
        model=board.model.eval().requires_grad_(False),
        task=task,
        circuit=_true_circuit(board.model, task, corpus, edges),
        corpus=corpus,
        second=_RECIPES[second].task() if second is not None else None,
    )


def build_hard(name: str, seed: int = 0, *, decoys: int = 100, decoy_heads: int = 1) -> Handmade:
    """A model of `circuits.handmade.hard`, with AbsTopK at work, hidden among decoys as in `build`.

    Its circuit holds every part that takes part, doubles among them, so it is not minimal. Raises ValueError for an
    unknown name.

    Examples:
        >>> name = next(iter(circuits.handmade.HARD))
        >>> made = circuits.handmade.build_hard(name)
        >>> made.situation, len(made.core) < made.circuit.n_nodes
        ('redundant', True)
    """
    if name not in HARD:
        raise ValueError(f"name: got {name!r}; expected one of {sorted(HARD)}.")
    hard = HARD[name]
    board = Board(_config(1, 0.5), CharTokenizer())
    laid = hard.lay(board)
    add_decoys(board, seed, weights=decoys, heads=decoy_heads)
    model, task, text = board.model.eval().requires_grad_(False), hard.task(), hard.text()
    second = hard.second() if hard.second is not None else None
    return Handmade(
        model=model,
        task=task,
        circuit=_true_circuit(model, task, text, laid.edges),
        corpus=text,
        second=second,
        other=_true_circuit(model, second, text, list(laid.second)) if second is not None else None,
        loose=laid.loose,
        situation=hard.situation,
    )


def _config(n_layers: int, topk_fraction: float | None) -> ModelConfig:
    return ModelConfig(
        d_vocab=CharTokenizer().d_vocab,
        n_layers=n_layers,
        d_model=32,
        n_heads=8,
        d_head=4,
        d_mlp=16,
        n_ctx=24,
        topk_fraction=topk_fraction,
        bigram=False,
    )


def _true_circuit(model: SparseTransformer, task: Task, corpus: Corpus, edges: list[Edge]) -> Circuit:
    generator = torch.Generator().manual_seed(0)
    text = corpus.windows(512, model.config.n_ctx, split="train", generator=generator)
    batch = task.batch(256, split="test", seed=0)
    nodes = nodes_of(edges)
    circuit = Circuit(
        nodes=nodes,
        edges=tuple(edges),
        io_edges=tuple(io_edges(model, nodes, batch, task.tokenizer)),
        widths=model.config.widths,
        n_layers=model.config.n_layers,
        criterion=Criterion.of(task, calibrate=False, n_eval=64, n_test=256),
        model_hash=model.fingerprint(),
        values=mean_values(model, text),
    )
    targets = batch.tokens_and_targets()
    with torch.no_grad():
        score = score_margins(margins(run_circuit(model, circuit, targets.tokens), targets))
    return circuit.with_metrics(task_loss=score.loss, task_accuracy=score.accuracy)
