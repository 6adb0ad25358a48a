"""Figures: what is on them, whether it is true of the circuit, and that the same data draw the same."""

import itertools
import random
import time
from dataclasses import replace

import numpy as np
import plotly.io as pio
import pytest
import torch

from circuits.circuit.circuit import Circuit
from circuits.circuit.criterion import Criterion
from circuits.circuit.nodes import Edge, IOEdge, Node, NodeFacts
from circuits.model.sites import BY_SITES, SITES, all_sites
from circuits.plots import circuit_figure, controls_figure, history_figure, pruning_figure
from circuits.plots.circuit_page import reading_guide
from circuits.plots.picture import order as order_module
from circuits.plots.picture.circuit import circuit_picture as circuit_picture_of
from circuits.plots.picture.frame import curve
from circuits.plots.picture.labels import short_label
from circuits.plots.picture.layout import circuit_layout, residual_wires
from circuits.plots.picture.marks import COLOURS, FIXED_WIDTHS
from circuits.plots.picture.order import n_crossings, order, straighten
from circuits.plots.picture.weights import short_weight
from circuits.zoo import load
from tasks.tokenizer import printable

WIDTHS = {site: 512 if site.name == "mlp_neuron" else 128 for site in all_sites(2)}

SEEN, WHICH, OPEN = (Node(0, "attn_in", i) for i in (17, 40, 88))
QUERY, KEY, VALUE = Node(0, "attn_q", 50), Node(0, "attn_k", 55), Node(0, "attn_v", 53)
QUOTE, READ = Node(0, "attn_out", 5), Node(1, "mlp_in", 5)
SINGLE, DOUBLE = Node(1, "mlp_neuron", 411), Node(1, "mlp_neuron", 97)
TO_SINGLE, TO_DOUBLE = Node(1, "mlp_out", 63), Node(1, "mlp_out", 21)
NODES = (SEEN, WHICH, OPEN, QUERY, KEY, VALUE, QUOTE, READ, SINGLE, DOUBLE, TO_SINGLE, TO_DOUBLE)
EDGES = (
    Edge(OPEN, QUERY, 1.1),
    Edge(SEEN, KEY, 1.62),
    Edge(KEY, QUERY, 0.25),
    Edge(WHICH, VALUE, 2.04),
    Edge(VALUE, QUOTE, 1.35),
    Edge(READ, SINGLE, 1.21),
    Edge(READ, DOUBLE, -0.96),
    Edge(SINGLE, TO_SINGLE, 0.9),
    Edge(DOUBLE, TO_DOUBLE, 0.74),
)
IO_EDGES = (
    IOEdge("embed", "'", SEEN, 1.9),
    IOEdge("embed", '"', SEEN, 1.7),
    IOEdge("embed", "'", WHICH, 1.4),
    IOEdge("embed", '"', WHICH, -1.5),
    IOEdge("embed", "(", OPEN, 0.6),
    IOEdge("unembed", "'", TO_SINGLE, 2.1),
    IOEdge("unembed", '"', TO_SINGLE, -1.8),
    IOEdge("unembed", "'", TO_DOUBLE, -1.2),
    IOEdge("unembed", '"', TO_DOUBLE, 1.6),
)


def make_circuit(nodes=NODES, edges=EDGES, io_edges=IO_EDGES, n_layers=2, facts=None, **fields) -> Circuit:
    """An invented circuit; by default the one that closes a quote with the mark that opened it."""
    if facts is None:
        facts = {node: NodeFacts(mean=0.1 * i - 0.35, effect=0.05 + 0.07 * i) for i, node in enumerate(nodes)}
    return Circuit(
        nodes=tuple(nodes),
        edges=tuple(edges),
        io_edges=tuple(io_edges),
        widths={site: WIDTHS[site._replace(layer=0)] for site in all_sites(n_layers)},
        n_layers=n_layers,
        model_hash="0" * 16,
        values={site: torch.zeros(WIDTHS[site._replace(layer=0)]) for site in all_sites(n_layers)},
        facts=facts,
        metrics={"task_loss": 0.093, "task_accuracy": 1.0},
        **{"criterion": Criterion(task="quotes"), **fields},
    )


def random_circuit(n_nodes: int, n_layers: int, seed: int) -> Circuit:
    rng = random.Random(seed)
    nodes: set[Node] = set()
    while len(nodes) < n_nodes:
        site = rng.choice(SITES)
        nodes.add(
            Node(rng.randrange(n_layers), site, rng.randrange(30 if site.endswith(("in", "out")) else 128))
        )
    kept = sorted(nodes)
    edges = [
        Edge(a, b, rng.gauss(0, 1))
        for a, b in itertools.product(kept, kept)
        if a.layer == b.layer and (a.site, b.site) in BY_SITES and rng.random() < 0.15
    ]
    readers = [node for node in kept if node.site.endswith("_in")]
    io = [IOEdge("embed", token, node, rng.gauss(0, 1)) for token in "ab" for node in readers[::3]]
    return make_circuit(kept, edges, io, n_layers)


def trace(figure, name):
    return next(trace for trace in figure.data if trace.name == name)


def drawn_lines(figure, look):
    """(width, number of lines) of every trace that draws lines of this look."""
    traces = [t for t in figure.data if t.legendgroup == look and t.mode == "lines" and t.x[0] is not None]
    return [(t.line.width, list(t.x).count(None)) for t in traces]


def texts(figure):
    return [annotation.text for annotation in figure.layout.annotations]


def test_one_mark_a_node_and_one_line_an_edge():
    figure = circuit_figure(make_circuit())
    assert sorted(trace(figure, "nodes").customdata) == sorted(map(str, NODES))
    weights = [*(e for e in EDGES if e.source != KEY), *IO_EDGES]
    assert sum(n for _, n in drawn_lines(figure, "positive")) == sum(e.weight > 0 for e in weights)
    assert sum(n for _, n in drawn_lines(figure, "negative")) == sum(e.weight < 0 for e in weights)
    assert drawn_lines(figure, "score") == [(FIXED_WIDTHS["score"], 1)]
    assert drawn_lines(figure, "residual") == [(FIXED_WIDTHS["residual"], 1)]
    assert sorted(trace(figure, "tokens").customdata) == ['token:"', "token:'", "token:("]
    assert sorted(trace(figure, "logits").customdata) == ['logit:"', "logit:'"]


def test_tokens_come_first_and_logits_last():
    figure = circuit_figure(make_circuit())
    inner = trace(figure, "nodes").x
    assert max(trace(figure, "tokens").x) < min(inner) <= max(inner) < min(trace(figure, "logits").x)
    upright = circuit_figure(make_circuit(), orientation="vertical")
    inner = trace(upright, "nodes").y
    assert max(trace(upright, "tokens").y) < min(inner) <= max(inner) < min(trace(upright, "logits").y)


def test_columns_follow_the_forward_pass_and_only_sites_with_nodes_have_one():
    layout = circuit_layout(make_circuit(), d_head=16)
    names = [(column.layer, column.name) for column in layout.columns]
    assert names[0] == (None, "tokens")
    assert names[1:-1] == [(s.layer, s.name) for s in all_sites(2) if any(n.at == s for n in NODES)]
    assert names[-1] == (None, "logits")
    places = [column.along for column in layout.columns]
    assert places == sorted(set(places))


def test_width_rises_with_the_weight_and_colour_tells_its_sign():
    weights = (0.1, -0.5, 1.0, -2.0, 3.0)
    channel, neurons = Node(0, "mlp_in", 0), [Node(0, "mlp_neuron", i) for i in range(len(weights))]
    edges = [Edge(channel, neuron, weight) for neuron, weight in zip(neurons, weights, strict=True)]
    figure = circuit_figure(make_circuit([channel, *neurons], edges, ()))
    nodes = trace(figure, "nodes")
    ends = dict(zip(zip(nodes.x, nodes.y, strict=True), nodes.customdata, strict=True))
    widths = {}
    for t in figure.data:
        if t.mode == "lines" and t.x[0] is not None:
            weight = weights[Node.parse(ends[t.x[-2], t.y[-2]]).index]
            widths[abs(weight)] = t.line.width
            assert t.line.color == COLOURS["positive" if weight > 0 else "negative"]
    assert len(widths) == len(weights)
    assert [widths[weight] for weight in sorted(widths)] == sorted(widths.values())
    assert max(widths.values()) > 4 * min(widths.values()) >= 4


def test_residual_wires_look_unlike_weights():
    figure = circuit_figure(make_circuit())
    (thin,) = {width for width, _ in drawn_lines(figure, "residual")}
    assert thin < max(width for width, _ in drawn_lines(figure, "positive"))
    assert COLOURS["residual"] not in (COLOURS["positive"], COLOURS["negative"], COLOURS["score"])
    score = next(t for t in figure.data if t.legendgroup == "score")
    assert score.line.dash != "solid"


def test_pointing_at_a_node_tells_site_index_mean_effect_and_weights():
    figure = circuit_figure(make_circuit())
    nodes = trace(figure, "nodes")
    text = nodes.hovertext[list(nodes.customdata).index(str(VALUE))]
    for part in (
        "v 53",
        "layer 0",
        "attn_v",
        "index 53",
        "head 3",
        "mean +0.15",
        "ablation effect +0.4",
        "+2.04",
        "+1.35",
    ):
        assert part in text, part
    assert "ch 40 (0.attn_in)" in text
    assert "ch 5 (0.attn_out)" in text


def test_pointing_at_a_line_tells_both_ends_and_the_weight():
    hovers = trace(circuit_figure(make_circuit()), "lines").hovertext
    assert "ch 5 (1.mlp_in) → neuron 97 (1.mlp_neuron)<br>weight \u22120.96" in hovers
    assert any("residual channel" in text for text in hovers)
    assert any(text.startswith("k 55 (0.attn_k) · q 50 (0.attn_q)<br>score pair") for text in hovers)


def test_area_grows_with_the_ablation_effect_and_unmeasured_nodes_are_hollow():
    figure = circuit_figure(
        make_circuit(facts={SEEN: NodeFacts(0, 0.1), WHICH: NodeFacts(0, 0.9), OPEN: NodeFacts(0, -1)})
    )
    nodes = trace(figure, "nodes")
    size = dict(zip(nodes.customdata, nodes.marker.size, strict=True))
    colour = dict(zip(nodes.customdata, nodes.marker.color, strict=True))
    assert size[str(OPEN)] == size[str(QUERY)] < size[str(SEEN)] < size[str(WHICH)]
    assert colour[str(QUERY)] != colour[str(SEEN)]


def test_labels_name_layers_sites_heads_nodes_and_tokens():
    shown = texts(circuit_figure(make_circuit()))
    for text in (
        "<b>layer 0</b>",
        "<b>layer 1</b>",
        "head 3",
        "q 50",
        "v 53",
        "neuron 411",
        "ch 17",
        "'",
        '"',
        "(",
    ):
        assert text in shown, text
    assert any(text.startswith("mlp_neuron") for text in shown)
    assert "+2.04" in shown
    assert "\u22120.96" in shown


def test_head_boxes_hold_their_nodes_and_do_not_overlap():
    heads = [Node(0, "attn_v", 16 * head + i) for head in range(5) for i in range(2)]
    channels = [Node(0, "attn_in", i) for i in range(10)]
    rng = random.Random(1)
    edges = [Edge(a, b, 1.0) for a in channels for b in heads if rng.random() < 0.3]
    layout = circuit_layout(make_circuit([*heads, *channels], edges, ()), d_head=16)
    assert [box.head for box in layout.boxes] == [0, 1, 2, 3, 4]
    for box in layout.boxes:
        inside = [n for n in heads if box.across[0] <= layout.place[n][1] <= box.across[1]]
        assert {n.index // 16 for n in inside} == {box.head}
        assert len(inside) == 2


def test_d_head_is_the_circuits_own_unless_another_is_given():
    circuit = replace(make_circuit(edges=[Edge(KEY, QUERY, 32**-0.5)], io_edges=()), d_head=32)
    assert "head 1" in texts(circuit_figure(circuit))
    assert "head 3" in texts(circuit_figure(circuit, d_head=16))


@pytest.mark.parametrize("d_head", [0, 24, 256])
def test_a_d_head_that_does_not_divide_is_refused(d_head):
    with pytest.raises(ValueError, match=rf"d_head: got {d_head}; expected a divisor of the 128 q channels"):
        circuit_figure(make_circuit(), d_head=d_head)


def test_an_unknown_orientation_is_refused():
    with pytest.raises(ValueError, match="orientation: got 'diagonal'; expected 'horizontal' or 'vertical'"):
        circuit_figure(make_circuit(), orientation="diagonal")


@pytest.mark.parametrize("orientation", ["horizontal", "vertical"])
@pytest.mark.parametrize(
    "circuit",
    [
        make_circuit([], [], ()),
        make_circuit([SINGLE], [], ()),
        make_circuit(edges=[], io_edges=()),
        make_circuit(facts={}),
        random_circuit(24, 2, 0),
        random_circuit(200, 4, 1),
    ],
    ids=["empty", "one node", "no edges", "no facts", "24 nodes", "200 nodes"],
)
def test_every_size_is_drawn(circuit, orientation):
    figure = circuit_figure(circuit, orientation=orientation)
    assert len(trace(figure, "nodes").x or ()) == circuit.n_nodes
    assert len(pio.to_json(figure)) < 2_000_000
    assert f"{circuit.n_nodes} node" in figure.layout.title.text


def test_a_big_circuit_drops_labels_and_a_small_one_keeps_them():
    small, big = circuit_figure(make_circuit()), circuit_figure(random_circuit(200, 4, 1))
    assert "neuron 411" in texts(small)
    assert not any(text.startswith(("ch ", "neuron ", "q ")) for text in texts(big))
    assert len(big.data) < 80


def test_the_same_circuit_gives_the_same_figure_whatever_the_order_of_its_parts():
    first = circuit_figure(make_circuit())
    facts = dict(make_circuit().facts)
    second = circuit_figure(make_circuit(NODES[::-1], EDGES[::-1], IO_EDGES[::-1], facts=facts))
    assert first.to_json() == second.to_json()
    assert (
        circuit_figure(random_circuit(60, 3, 2)).to_json()
        == circuit_figure(random_circuit(60, 3, 2)).to_json()
    )


def test_title_and_subtitle():
    figure = circuit_figure(make_circuit(), title="a <b> title")
    assert figure.layout.title.text.startswith("a &lt;b&gt; title<br>")
    assert "12 nodes · 9 edges · task loss 0.093 nats" in figure.layout.title.text
    assert (
        "zero-ablated"
        in circuit_figure(make_circuit(criterion=Criterion(task="quotes", ablation="zero"))).layout.title.text
    )


def test_circuit_plot_is_circuit_figure():
    circuit = make_circuit()
    assert circuit.plot(title="x") == circuit_figure(circuit, title="x")


def test_importing_leaves_plotly_templates_alone():
    assert pio.templates.default == "plotly"


@pytest.mark.parametrize(
    ("token", "shown"),
    [
        ("'", "'"),
        ('"', '"'),
        ("]]", "]]"),
        ("\n", "⏎"),
        (" return", "·return"),
        ("\t", "⇥"),
        ("", "(empty)"),
    ],
)
def test_tokens_are_printable(token, shown):
    assert printable(token) == shown


def test_tokens_are_not_read_as_markup():
    figure = circuit_figure(make_circuit(io_edges=[IOEdge("embed", "<b>", SEEN, 1.0)]))
    assert "&lt;b&gt;" in texts(figure)
    assert "<b>&lt;b&gt;</b>" not in trace(figure, "tokens").hovertext


def test_wires_string_a_channel_from_first_writer_to_last_reader():
    nodes = [
        Node(0, "attn_in", 3),  # reads before anything kept writes
        Node(0, "attn_out", 3),
        Node(0, "mlp_in", 3),
        Node(1, "attn_in", 3),
        Node(1, "mlp_out", 3),  # nothing kept reads after it
        Node(1, "attn_in", 4),
    ]
    assert residual_wires(nodes) == [(nodes[1], nodes[2]), (nodes[2], nodes[3])]


def test_long_lines_pass_beside_marks():
    far = Node(1, "mlp_in", 9)
    layout = circuit_layout(
        make_circuit((*NODES, far), EDGES, (*IO_EDGES, IOEdge("embed", "'", far, 1.0))), d_head=16
    )
    (line,) = (line for link, line in layout.lines if link.target == far)
    assert len(line) > 2
    for along, across in line[1:-1]:
        for node, place in layout.place.items():
            if node not in ("token:'", far):
                assert (along, round(across, 3)) != (place[0], round(place[1], 3))


def test_lines_to_one_node_of_a_head_stay_apart():
    edges = [*EDGES, Edge(SEEN, VALUE, -0.5)]
    layout = circuit_layout(make_circuit(edges=edges), d_head=16)
    before = {line[-2] for link, line in layout.lines if link.target == VALUE}
    assert len({across for _, across in before}) == 2
    assert len({along for along, _ in before}) == 1


def test_curves_keep_to_their_ends_and_never_overshoot():
    line = [(0.0, 0.0), (1.0, 2.0), (1.5, 2.0), (2.5, 5.0), (3.5, 5.5)]
    points = curve(line)
    assert set(line) <= set(points)
    assert [c for _, c in points] == sorted(c for _, c in points)
    assert [a for a, _ in points] == sorted(a for a, _ in points)


def test_order_undoes_crossings_and_keeps_bodies_together():
    ranks = [["a", "b", "c"], ["x", "y", "z"]]
    joints = [("a", "z", 1.0), ("b", "y", 1.0), ("c", "x", 1.0)]
    assert n_crossings(ranks, joints) == 3
    ordered, left = order(ranks, joints, lambda item: item)
    assert left == n_crossings(ordered, joints) == 0
    together, _ = order(ranks, joints, lambda item: "body" if item in "xz" else item)
    assert "xz" in "".join(together[1]) or "zx" in "".join(together[1])


def test_straighten_keeps_the_gaps_and_the_order():
    rng = random.Random(0)
    ranks = [[f"{r}{i}" for i in range(6)] for r in range(4)]
    joints = [(rng.choice(ranks[r]), rng.choice(ranks[r + 1]), 1.0) for r in range(3) for _ in range(8)]
    place = straighten(ranks, joints, lambda item: item, lambda a, b: 1.0)
    for rank in ranks:
        assert all(place[b] - place[a] >= 1.0 - 1e-9 for a, b in itertools.pairwise(rank))
    free = straighten([["a"], ["b"]], [("a", "b", 1.0)], lambda item: item, lambda a, b: 1.0)
    assert free["a"] == pytest.approx(free["b"], abs=1e-6)


HISTORY = [
    {
        "step": step,
        "loss": 4 - step / 100,
        "density": 1 / (1 + step / 4),
        "lr": 1e-3,
        "tokens_per_s": 40_000.0,
    }
    | ({"val_loss": 4.1 - step / 100} if step % 50 == 0 else {})
    for step in range(0, 200, 10)
]
PRUNING = [
    {"step": step, "task_loss": 0.7 - step / 400, "n_open": 2000 - 9 * step} for step in range(0, 200, 10)
]


def test_history_shows_both_losses_density_and_learning_rate():
    figure = history_figure(HISTORY)
    assert [t.name for t in figure.data] == ["train", "density", "learning rate", "validation"]
    assert list(trace(figure, "validation").x) == [0, 50, 100, 150]
    assert figure.layout.yaxis2.type == "log"
    assert {t.yaxis for t in figure.data} == {"y", "y2", "y3"}
    assert "40,000 tokens/s" in figure.layout.title.text
    assert {"loss (nats)", "density", "learning rate"} <= set(texts(figure))


def test_history_without_validation_or_with_one_row():
    bare = [{key: row[key] for key in ("step", "loss", "density", "lr")} for row in HISTORY]
    assert len(history_figure(bare).data) == 3
    assert len(history_figure(HISTORY[:1]).data) == 4


def test_pruning_shows_loss_and_open_gates():
    figure = pruning_figure(PRUNING, target=0.15)
    assert list(trace(figure, "open gates").y) == [row["n_open"] for row in PRUNING]
    assert set(trace(figure, "target 0.15").y) == {0.15}
    assert figure.layout.yaxis2.type is None
    steep = [*PRUNING, {"step": 200, "task_loss": 0.1, "n_open": 12}]
    assert pruning_figure(steep).layout.yaxis2.type == "log"


@pytest.mark.parametrize("draw", [history_figure, pruning_figure])
def test_a_history_that_lacks_something_is_refused(draw):
    with pytest.raises(ValueError, match="history: got no rows"):
        draw([])
    with pytest.raises(ValueError, match=r"history: row 1 lacks \['step'\]"):
        draw([HISTORY[0] | PRUNING[0], {k: v for k, v in (HISTORY[1] | PRUNING[1]).items() if k != "step"}])


def test_controls_figure_has_a_mark_for_every_loss():
    keys = ("true_loss", "swapped_loss", "unrelated_loss", "random_model_loss")
    cases = {name: dict.fromkeys(keys, loss) for name, loss in (("sparse", 0.1), ("dense", 0.2))}
    figure = controls_figure({"cases": cases})
    assert [trace.name for trace in figure.data] == [
        "true task",
        "swapped answers",
        "unrelated answers",
        "random model",
    ]
    assert all(list(trace.x) == [0.2, 0.1] for trace in figure.data)
    assert list(figure.data[0].y) == ["dense", "sparse"]


def test_white_marks_are_explained_where_there_are_any():
    measured = {node: NodeFacts(0.0, 0.1) for node in NODES}
    said = [note.text for note in circuit_figure(make_circuit(facts=measured)).layout.annotations]
    assert not any("not measured" in text for text in said)
    measured.pop(QUOTE)
    said = [note.text for note in circuit_figure(make_circuit(facts=measured)).layout.annotations]
    assert any("White: not measured." in text for text in said)


@pytest.mark.parametrize("n", [1, 5, 63, 64, 65, 500])
def test_crossings_are_those_of_every_pair(n: int) -> None:
    ends = np.random.default_rng(n).integers(0, max(2, n // 3), (n, 2))
    pairs = [(ends[i] - ends[j]).prod() < 0 for i in range(n) for j in range(i)]
    assert order_module._crossings_in_gap(ends) == sum(pairs)


@pytest.mark.slow
def test_two_thousand_nodes_are_laid_out_in_seconds() -> None:
    from docs.experiments.explorer import wide

    started = time.process_time()
    layout = circuit_picture_of(wide(2000).circuit)
    assert len([key for key in layout.place if not isinstance(key, str)]) == 2000
    assert time.process_time() - started < 20


def test_positions_and_tokens_of_both_prompts_are_drawn_and_what_nothing_reaches_is_called_constant():
    inputs = [
        IOEdge("position", "position 3", SEEN, 0.5),
        IOEdge("several", "40 other tokens", SEEN, -1.0),
        IOEdge("shared", " ", WHICH, 0.25),
        IOEdge("unembed", "'", TO_SINGLE, 1.0),
    ]
    figure = circuit_figure(make_circuit(edges=[Edge(KEY, QUERY, 0.25)], io_edges=inputs))
    shown = texts(figure)
    assert {"position 3", "40 other tokens", "·", "'"} <= set(shown)
    fed = {node: short_label(node) in shown for node in (SEEN, WHICH)}
    assert fed == {SEEN: True, WHICH: True}
    assert {f"{short_label(node)}<br><i>constant</i>" for node in (QUERY, KEY, VALUE, QUOTE)} <= set(shown)
    silent = texts(circuit_figure(make_circuit(edges=[Edge(KEY, QUERY, 0.25)], io_edges=())))
    assert f"{short_label(OPEN)}<br><i>constant</i>" not in silent, (
        "an older circuit does not tell what its channels get"
    )


def test_where_rows_are_close_a_constant_is_named_on_one_line():
    """A second line would cover the mark below."""
    shown = texts(load("translate").circuit.plot())
    assert "neuron 122 = constant" in shown


def test_weights_are_written_short_and_never_as_a_zero_that_they_are_not():
    written = {0.5: "+0.50", -1.254: "\u22121.25", 180.0: "+180", 0.0031: "+0.003", 2e-5: "+2e-05"}
    assert {weight: short_weight(weight).replace("e\u2212", "e-") for weight in written} == written


def test_the_guide_speaks_of_what_is_drawn():
    paired, alone = make_circuit(), make_circuit(edges=[], nodes=[SEEN, KEY])
    assert "dotted" in reading_guide(paired)
    assert "dotted" not in reading_guide(alone)
    assert "against a constant" in reading_guide(alone)
    assert "values" not in reading_guide(alone)
