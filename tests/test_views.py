"""Doors and tables: only views.py looks upwards, everything with a picture has one, and no text is markup."""

import ast
import inspect
import sys
from dataclasses import replace
from html import escape
from pathlib import Path

import pytest
import torch
from test_composition import induction_model
from test_plots import PRUNING, make_circuit, texts

import circuits.plots
from circuits.bridges.dilution import Cell, Dilution
from circuits.bridges.steering import Outcome, Steering
from circuits.circuit.circuit import Circuit
from circuits.circuit.compare import TransplantTable
from circuits.circuit.criterion import Criterion
from circuits.circuit.nodes import IOEdge
from circuits.composition import composition
from circuits.heads.report import HeadReport, HeadRow
from circuits.model.config import ModelConfig
from circuits.model.sites import SITES
from circuits.model.transformer import SparseTransformer
from circuits.plots import demo_page, nonzeros_figure, plot, pruning_figure, table, trust_page, write_page
from circuits.trust.report import Entry, TrustReport
from circuits.views import Cell as TableCell
from circuits.views import Decompiled, Plotted, html_table

ROOM = Path(circuits.plots.__file__).parent.parent
ABOVE = {"plots", "explorer", "interop", "sweep", "zoo", "bench", "commands", "__main__.py", "__init__.py"}
"""Rooms that may import the pictures: beside them or above."""
EVIL = '<script>alert(1)&"'


def imports(node: ast.AST) -> set[str]:
    """Dotted names that are imported anywhere under a node of a syntax tree."""
    found: set[str] = set()
    for inner in ast.walk(node):
        if isinstance(inner, ast.Import):
            found |= {alias.name for alias in inner.names}
        elif isinstance(inner, ast.ImportFrom) and inner.module:
            found |= {inner.module} | {f"{inner.module}.{alias.name}" for alias in inner.names}
    return found


def lazily(tree: ast.Module) -> set[str]:
    """Dotted names of this package that are imported inside functions, or for type checkers alone."""
    inside = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.If)]
    return {name for node in inside for name in imports(node) if name.startswith("circuits")}


def drawers(root: Path) -> set[str]:
    """Files below the pictures that import them, whether at the top or inside a function."""
    files = [p for p in root.rglob("*.py") if p.relative_to(root).parts[0] not in ABOVE]
    return {
        str(path.relative_to(root))
        for path in files
        if any((name + ".").startswith("circuits.plots.") for name in imports(ast.parse(path.read_text())))
    }


def test_only_the_door_leads_up_to_the_pictures():
    assert drawers(ROOM) == {"views.py"}


@pytest.mark.parametrize(
    "line",
    [
        "from circuits.plots import plot",
        "import circuits.plots.style",
        "from circuits import plots",
        "def f():\n    from circuits.plots.page import table",
    ],
)
def test_another_door_would_be_noticed(tmp_path, line):
    (tmp_path / "heads").mkdir()
    (tmp_path / "heads" / "report.py").write_text(line)
    (tmp_path / "bench.py").write_text("import plotly")
    assert drawers(tmp_path) == {"heads/report.py"}


def test_the_door_itself_imports_nothing_before_it_is_used():
    tree = ast.parse((ROOM / "views.py").read_text())
    top = {name for node in tree.body if not isinstance(node, ast.ClassDef) for name in imports(node)}
    assert not {name for name in top if name.startswith("circuits")}
    assert lazily(tree)


@pytest.mark.parametrize("path", sorted((ROOM / "plots").rglob("*.py")), ids=lambda path: path.name)
def test_pictures_import_at_the_top(path):
    assert not lazily(ast.parse(path.read_text()))


def test_pictures_read_sites_from_their_table():
    named = {
        path.name
        for path in (ROOM / "plots").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and node.value in SITES
    }
    assert named <= {"labels.py"}  # one word on what q, k, v and neurons do


def subclasses(kind: type) -> set[type]:
    return {kind, *(below for sub in kind.__subclasses__() for below in subclasses(sub))}


def test_whatever_has_plot_has_a_picture():
    shown = {kind for kind in subclasses(Plotted) if kind.__module__ != "circuits.views"}
    assert {"Circuit", "Training", "TrustReport", "TransplantTable", "Steering", "Dilution", "BridgeSet"} <= {
        kind.__name__ for kind in shown
    }
    for kind in shown:
        assert plot.dispatch(kind) is not plot.dispatch(object), kind


def test_an_unknown_thing_is_told_what_has_a_picture():
    with pytest.raises(TypeError, match=r"thing: got a dict; expected one of .*Circuit, .*SparseTransformer"):
        plot({})
    with pytest.raises(AttributeError, match="it offers .*circuit_figure"):
        circuits.plots.circle_figure  # noqa: B018


def test_no_two_files_offer_the_same_name():
    modules = [module for name, module in sys.modules.items() if name.startswith("circuits.plots.")]
    offered = [name for module in modules for name in getattr(module, "__all__", ())]
    assert sorted(["plot", *offered]) == sorted(circuits.plots.__all__)
    assert len(offered) == len(set(offered))
    assert all(hasattr(circuits.plots, name) for name in circuits.plots.__all__)


def test_a_new_picture_is_one_new_file(tmp_path, monkeypatch):
    (tmp_path / "newest.py").write_text(
        "from circuits.plots import plot\n"
        "__all__ = ['Thing', 'newest_figure']\n"
        "class Thing:\n    pass\n"
        "@plot.register\n"
        "def newest_figure(thing: Thing, *, title: str = 'new') -> str:\n    return title\n"
    )
    monkeypatch.setattr(circuits.plots, "__path__", [*circuits.plots.__path__, str(tmp_path)])
    found = circuits.plots._public_names()
    assert set(found) - set(circuits.plots.__all__) == {"Thing", "newest_figure"}
    assert plot(found["Thing"]()) == "new"
    assert plot(found["Thing"](), title="x") == "x"
    sys.modules.pop("circuits.plots.newest")


def outcome(*shape: int) -> Outcome:
    return Outcome(p_answer=torch.full(shape, 0.4), p_foil=torch.full(shape, 0.2))


def steering() -> Steering:
    return Steering(
        location="0.attn", channels=(3,), strengths=(0.0, 1.0), steered=outcome(2, 4), sparse=outcome(2, 4),
        random_channel=outcome(3, 2, 4), random_direction=outcome(3, 2, 4),
    )  # fmt: skip


def dilution() -> Dilution:
    cells = tuple(
        Cell(length=n, distractors=0, n=8, depth_margin=1 / n, shallow_margin=1.0, circuit_error=0.1,
             sparse_error=0.1, dense_error=0.1 * n, dense_shallow_error=0.0)
        for n in (1, 2)
    )  # fmt: skip
    return Dilution(cells=cells, skipped=())


def transplants(name: str = "a") -> TransplantTable:
    return TransplantTable(
        circuits=(name,), tasks=(name,), loss=((0.1,),), accuracy=((1.0,),), full_loss=(0.1,), overlap=((1.0,),)
    )  # fmt: skip


@pytest.mark.parametrize("make", [make_circuit, steering, dilution])
def test_plot_passes_options_on(make):
    thing = make()
    assert thing.plot(title="my own") == plot(thing, title="my own")
    assert thing.plot(title="my own").layout.title.text.startswith("my own")
    with pytest.raises(TypeError, match="colour"):
        thing.plot(colour="red")


@pytest.mark.parametrize("kind", [kind for kind in plot.registry if issubclass(kind, Plotted)])
def test_help_of_plot_names_every_option_that_its_picture_has(kind):
    asked, drawn = (inspect.signature(f).parameters for f in (kind.plot, plot.dispatch(kind)))
    assert list(asked)[1:] == list(drawn)[1:]
    assert all(option.kind is inspect.Parameter.KEYWORD_ONLY for option in list(asked.values())[1:])
    usual = {name: option.default for name, option in list(drawn.items())[1:]}
    assert all(option.default in (None, usual[name]) for name, option in list(asked.items())[1:])


def test_a_transplant_table_has_a_picture():
    assert transplants().plot() == circuits.plots.transplant_figure(transplants())


def report(text: str = "quotes") -> TrustReport:
    entry = Entry(
        name=text, meaning=f"{text} {'long ' * 20}.", value=1.0, baseline=0.5, verdict="fail", unit=text
    )
    return TrustReport(task=text, model_hash=text, n_nodes=1, n_edges=0, entries=(entry,), seconds=0.0)


def head_report() -> HeadReport:
    row = HeadRow(
        layer=0, head=0, copying=0.5, previous_from_weights=None, duplicate_nats=0.1, induction_nats=-0.2,
        partner=EVIL, previous=0.9, duplicate=None, induction=0.0, sink=0.0,
    )  # fmt: skip
    return HeadReport(rows=(row,), n_tokens=8)


def evil_circuit() -> Circuit:
    circuit = make_circuit()
    tokens = tuple(IOEdge(io.kind, EVIL, io.node, io.weight) for io in circuit.io_edges)
    return replace(circuit, criterion=Criterion(task=EVIL), io_edges=tokens)


@pytest.mark.parametrize("make", [evil_circuit, lambda: report(EVIL), head_report])
def test_what_a_notebook_shows_is_escaped(make):
    shown = make()._repr_html_()
    assert escape(EVIL) in shown
    assert "<script" not in shown
    assert shown.count("<table>") == shown.count("<thead>") == shown.count("</table>") == 1


def test_compositions_are_escaped():
    shown = composition(induction_model(), n_null=20, max_null=20)._repr_html_()
    assert " -&gt; " in shown
    assert "->" not in shown


def test_what_a_page_shows_is_escaped(tmp_path):
    rows = table([{EVIL: EVIL}, {EVIL: 2 * EVIL}])
    history = [pruning_figure(PRUNING, title=EVIL)]
    pages = [
        write_page(tmp_path / "rows.html", title=EVIL, blocks=[EVIL, rows, transplants(EVIL).plot()]),
        demo_page(tmp_path / "demo.html", evil_circuit(), {EVIL: EVIL, "n_nodes": 3}, history),
        trust_page(tmp_path / "trust.html", report(EVIL)),
    ]
    for path in pages:
        text = path.read_text()
        assert escape(EVIL) in text, path
        assert "<script>alert" not in text, path


def test_tokens_of_a_picture_are_escaped_for_plotly():
    shown = texts(evil_circuit().plot())
    assert escape(EVIL, quote=False) in shown
    assert EVIL not in shown


def test_html_table():
    text = html_table(["a & b", TableCell("n", "number")], [[TableCell("<b>", style='color:"red"'), "1"], []])
    assert text == (
        '<table>\n<thead><tr><th>a &amp; b</th><th class="number">n</th></tr></thead>\n<tbody>\n'
        '<tr><td style="color:&quot;red&quot;">&lt;b&gt;</td><td>1</td></tr>\n<tr></tr>\n</tbody>\n</table>'
    )


def test_doors_need_no_room_in_a_class_with_slots():
    class Slotted(Plotted, Decompiled):
        __slots__ = ()

    assert not hasattr(Slotted(), "__dict__")


def test_weights_by_hand():
    config = ModelConfig(d_vocab=5, n_layers=2, d_model=4, n_heads=2, d_head=2, d_mlp=3)
    model = SparseTransformer(config)
    for parameter in model.parameters():
        parameter.data.zero_()
    model.linear(1, "W_Q").weight.data[:, 2] = 1.0  # the first channel of head 1
    model.linear(1, "W_O").weight.data[0, :3] = 1.0  # the first channel of head 0
    model.linear(0, "W_in").weight.data[1, 2] = 1.0
    model.unembed.b_U.data[0] = 1.0
    figure = plot(model)
    bars, cells = figure.data
    names = list(figure.layout.yaxis.ticktext)
    weights = ["W_Q", "W_K", "W_V", "W_O", "W_in", "W_out"]
    assert names == ["W_E", "W_pos", *weights, *weights, "W_U", "biases"]
    assert sum(int(text.replace(",", "")) for text in bars.text) == model.n_nonzero() == 4 + 3 + 1 + 1
    assert bars.text[8] == "4"
    assert bars.x[8] == 4 / 16
    assert [list(cells.z[8]), list(cells.z[11]), list(cells.z[2])] == [[0, 4], [3, 0], [0, 0]]
    assert list(cells.z[6]) == [None, None]
    assert "1 of 3 neurons have a weight" in texts(figure)
    assert "1 of 4 q channels have a weight" in bars.hovertext[8]
    assert bars.hovertext[8].startswith("W_Q of layer 1<br>4 of 16 nonzero (25.00%)")
    assert f"9 of {sum(m.parameter.numel() for m in model.matrices()):,} entries" in figure.layout.title.text


@pytest.mark.parametrize("heads", [1, 8, 64])
def test_weights_of_any_model_are_drawn(heads):
    config = ModelConfig(
        d_vocab=5,
        n_layers=8,
        d_model=8,
        n_heads=heads,
        d_head=1,
        d_mlp=4,
        attention="compose",
        compose="full",
    )
    figure = nonzeros_figure(SparseTransformer(config), title="dense")
    assert {"compose_pre", "compose_post"} <= set(figure.layout.yaxis.ticktext)
    assert len(figure.data[1].z[2]) == heads
    assert (figure.data[1].texttemplate is None) == (heads == 64)
