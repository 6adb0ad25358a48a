"""All that the page shows of a circuit, as one JSON object: picture, program, tokens, prompts and notes."""

from typing import Any

import torch
from torch import Tensor

from circuits.circuit.circuit import Circuit
from circuits.circuit.masked import check_belongs
from circuits.circuit.nodes import Effect, Node, NodeFacts, numbers_of
from circuits.circuit.score import LOSS
from circuits.decompile.links import Ends, node_ends
from circuits.decompile.observe import Observed, Place
from circuits.explorer.program import circuit_program
from circuits.explorer.way import closed_further, gates_closed
from circuits.model.kinds import of_subjects
from circuits.model.subject import Subject
from circuits.model.transformer import SparseTransformer
from circuits.plots.picture.circuit import circuit_picture
from circuits.plots.picture.layout import Layout
from circuits.plots.picture.ranks import end_text, is_token
from circuits.pruning.stability import Stability
from circuits.trust.report import TrustReport
from tasks import Task
from tasks.tokenizer import BPE, CharTokenizer, Tokenizer, WordTokenizer, printable

SCHEMA = "sparse-circuits/explorer/1"
"""Name and version of the layout of the object."""
MOST = 12
"""Effects that are listed at a node, each way."""
PAIRS = 12
"""Pairs of prompts, the first ones, over which loss and values are shown."""


@of_subjects
def circuit_view(
    model: Subject,
    circuit: Circuit,
    task: Task,
    *,
    n_prompts: int = 50,
    n_pairs: int = 64,
    trust: TrustReport | None = None,
    stability: Stability | None = None,
) -> dict[str, Any]:
    """What page and widget show: plain JSON types, the same for the same arguments.

    n_prompts: prompt pairs to choose from; n_pairs: those that decide where a node is said to be high;
    trust: the report whose verdicts stand beside the picture; stability: says which nodes are core, contingent or
    noise. A model that is not ours (a LensSubject) has no program that the page could run: it is read there, on the
    first of the prompts, and answers come from Python. Raises ValueError when the circuit is of another model, when
    what is outside it is no constant, or the task does not fit.

    Examples:
        >>> found = circuits.load("quotes-handmade")
        >>> view = circuits.explorer.circuit_view(found.model, found.circuit, found.task, n_prompts=2, n_pairs=8)
        >>> view["task"]
        'quotes'
    """
    ours = model if isinstance(model, SparseTransformer) else None
    program = circuit_program(ours, circuit, task) if ours else None
    check_about(circuit, trust)
    if ours is None:
        check_belongs(model, circuit)
        seen_by = {"trust": None if trust is None else _trust(trust)}
        return _read(model, circuit, task, n_pairs, stability) | seen_by
    seen = Observed(ours, circuit, task, n_pairs)
    return {
        "schema": SCHEMA,
        "task": circuit.task,
        "model": circuit.model_hash,
        "ablation": circuit.ablation,
        "calibrated": circuit.criterion.calibrated,
        "effect": f"{circuit.criterion.unit} of {LOSS[circuit.criterion.objective]}".strip(),
        "loss": circuit.loss if circuit.loss == circuit.loss else None,
        "n_edges": circuit.n_edges,
        "picture": _picture(circuit, circuit_picture(circuit, task=task), stability),
        "program": program,
        "tokens": _tokens(task.tokenizer),
        "prompts": _prompts(task, n_prompts),
        "n_shown": PAIRS,
        "notes": _notes(ours, seen, circuit, task),
        "further": closed_further(circuit, seen),
        "gates": gates_closed(circuit),
        "trust": None if trust is None else _trust(trust),
    }


def _read(
    model: Subject, circuit: Circuit, task: Task, n_pairs: int, stability: Stability | None
) -> dict[str, Any]:
    """A view without a program: of the first prompt, as the whole model answers it."""
    seen = Observed(model, circuit, task, n_pairs)
    tokens = seen.targets.tokens[0, : int(seen.targets.position[0]) + 1].tolist()
    texts = [task.tokenizer.token(token) for token in tokens]
    picture = _picture(circuit, circuit_picture(circuit), stability)
    for mark, node in zip(picture["nodes"], circuit.nodes, strict=True):
        mark["value"] = float(seen.column(node)[0, len(tokens) - 1])
    return {
        "schema": SCHEMA,
        "task": circuit.task,
        "subtitle": f"{len(circuit.effects)} measured effects \u00b7 everything else {circuit.ablation}-ablated "
        "\u00b7 a wrapped model: read here, run in Python",
        "model": circuit.model_hash,
        "ablation": circuit.ablation,
        "calibrated": circuit.criterion.calibrated,
        "loss": circuit.loss if circuit.loss == circuit.loss else None,
        "n_edges": circuit.n_edges,
        "picture": picture,
        "program": None,
        "tokens": {"kind": None, "texts": texts, "shown": texts},
        "given": list(range(len(texts))),
        "answers": _answers(model, seen, task),
        "prompts": [],
        "notes": {
            str(node): _note(seen, node, _measured_ends(circuit, node)) | {"sides": _sides(seen, node)}
            for node in circuit.nodes
        },
    }


def _sides(seen: Observed, node: Node) -> list[list[float]]:
    """A node's value on both prompts of each pair, [clean, corrupted], at the token where they differ most."""
    both, ends = seen.column(node), seen.targets.position
    n = len(both) // 2
    return [_apart(both[i, : ends[i] + 1], both[n + i, : ends[i] + 1]) for i in range(min(n, PAIRS))]


def _apart(clean: Tensor, corrupt: Tensor) -> list[float]:
    """Both values at the token where they differ most; the last one where they do not."""
    at = len(clean) - 1 - int((clean - corrupt).abs().flip(0).argmax())
    return [float(clean[at]), float(corrupt[at])]


def _answers(model: Subject, seen: Observed, task: Task) -> list[list[Any]]:
    """The whole model's most likely next tokens after the first prompt, with their probabilities."""
    with torch.no_grad():
        logits = model(seen.targets.tokens[:1])[0, int(seen.targets.position[0])]
    found = logits.softmax(-1).topk(min(4, logits.numel()))
    pairs = zip(found.indices.tolist(), found.values.tolist(), strict=True)
    return [[task.tokenizer.token(token), share] for token, share in pairs]


def _measured_ends(circuit: Circuit, node: Node) -> Ends:
    """What a node was measured to read and to move, strongest first."""

    def said(effect: Effect, end: Node | None, other: str) -> str:
        return f"{end or other} ({effect.size:+.2f} logits, measured)"

    reads = [said(e, e.source, "the prompt's tokens") for e in circuit.effects if e.target == node]
    writes = [said(e, e.target, "the answer over the foil") for e in circuit.effects if e.source == node]
    nothing = "no effect of a hundredth of the greatest"
    return Ends(reads=tuple(reads[:MOST] or [nothing]), writes=tuple(writes[:MOST] or [nothing]))


def check_about(circuit: Circuit, trust: TrustReport | None) -> None:
    """Raise ValueError when a report is of another circuit."""
    if trust is None:
        return
    got = (trust.task, trust.model_hash, trust.n_nodes, trust.n_edges)
    expected = (circuit.task, circuit.model_hash, circuit.n_nodes, circuit.n_edges)
    if got != expected:
        raise ValueError(
            f"trust: got a report on (task, model, nodes, edges) {got}; expected {expected}, those of the circuit. "
            "Make it from this circuit: circuits.trust_report(model, circuit, task)."
        )


def _trust(report: TrustReport) -> dict[str, Any]:
    entries = [
        {"name": e.name, "meaning": e.meaning, "verdict": e.verdict, "shown": list(e.shown()), "unit": e.unit}
        for e in report.entries
    ]
    return {"verdict": report.verdict, "entries": entries}


def _picture(circuit: Circuit, layout: Layout, stability: Stability | None) -> dict[str, Any]:
    """Places in columns and rows, as `circuit_layout` has them; what runs keep a part as its `kind` or `kept`."""
    ends = [key for key in layout.place if isinstance(key, str)]
    nodes = {} if stability is None else {node: kept.kind for node, kept in stability.nodes.items()}
    edges: dict[Any, str] = (
        {} if stability is None else {pair: kept.kind for pair, kept in stability.edges.items()}
    )
    core = set(circuit.core)
    return {
        "nodes": [
            _mark(circuit, node, layout, is_core=node in core) | {"kind": nodes.get(node)}
            for node in circuit.nodes
        ],
        "ends": [{"id": key, "label": _text(key), "at": layout.place[key]} for key in ends],
        "lines": [
            {
                "source": str(a),
                "target": str(b),
                "kind": kind,
                "weight": weight,
                "points": points,
                "kept": edges.get((a, b)),
            }
            for (a, b, kind, weight), points in layout.lines
        ],
        "columns": [column._asdict() for column in layout.columns],
        "boxes": [box._asdict() | {"inside": _layer(box.layer)} for box in layout.boxes],
    }


def _text(key: str) -> str:
    return printable(end_text(key)) if is_token(key) else end_text(key)


def _mark(circuit: Circuit, node: Node, layout: Layout, *, is_core: bool) -> dict[str, Any]:
    """A node; `core` says whether the model itself cannot do without it, None where that was not measured."""
    facts = circuit.facts.get(node, NodeFacts(float("nan"), float("nan")))
    effect = facts.effect if facts.effect == facts.effect else None
    core = is_core if facts.model_loss == facts.model_loss else None
    row = node.at.row
    label = f"{'ch' if row.stream else row.label} {node.index}"
    own = numbers_of(circuit.values[node.at], node, circuit.widths[node.at])
    held = float(own.reshape(-1, own.shape[-1]).mean(0).norm() if own.numel() > 1 else own)
    return {
        "id": str(node), "label": label, "layer": _layer(node.layer), "at": layout.place[node],
        "effect": effect, "held": held, "core": core,
    }  # fmt: skip


def _layer(layer: int) -> str:
    """What folds as one: the page runs models of one stack."""
    return f"layer {layer}"


def _tokens(tokenizer: Tokenizer) -> dict[str, Any]:
    """The vocabulary, and how text is cut into it; kind None: only in Python, so that no prompt can be typed."""
    ids = range(tokenizer.d_vocab)
    kinds: dict[type, str] = {CharTokenizer: "char", WordTokenizer: "word"}
    kind = kinds.get(type(tokenizer))
    texts = [tokenizer.token(i) if isinstance(tokenizer, BPE) else tokenizer.decode([i]) for i in ids]
    return {"kind": kind, "texts": texts, "shown": [tokenizer.token(i) for i in ids]}


def _prompts(task: Task, n: int) -> list[dict[str, Any]]:
    """Test pairs, without their padding."""
    batch = task.batch(n, split="test", seed=0)
    rows = zip(batch.clean, batch.corrupt, batch.answer, batch.foil, batch.lengths, strict=True)
    return [
        {
            "clean": clean[:length].tolist(),
            "corrupt": corrupt[:length].tolist(),
            "answer": int(answer),
            "foil": int(foil),
        }
        for clean, corrupt, answer, foil, length in rows
    ]


def _notes(
    model: SparseTransformer, seen: Observed, circuit: Circuit, task: Task
) -> dict[str, dict[str, Any]]:
    return {str(node): _note(seen, node, ends) for node, ends in node_ends(model, circuit, task).items()}


def _note(seen: Observed, node: Node, ends: Ends) -> dict[str, Any]:
    return {
        "constant": seen.constant(node),
        "highest": [_place(place) for place in seen.places(node, highest=True)],
        "lowest": [_place(place) for place in seen.places(node, highest=False)],
        "reads": list(ends.reads),
        "writes": list(ends.writes),
    }


def _place(place: Place) -> dict[str, Any]:
    return {"texts": list(place.texts), "value": place.value}
