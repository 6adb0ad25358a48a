"""Pages: one file, nothing fetched, the same bytes each time, no errors in a browser."""

import re
import subprocess

import plotly.graph_objects as go
import pytest
from test_plots import HISTORY, PRUNING, make_circuit

from circuits.plots import (
    Html,
    circuit_figure,
    demo_page,
    figure_to_png,
    heading,
    headline,
    history_figure,
    pruning_figure,
    table,
    write_page,
)
from circuits.plots.snapshot import BROWSER_OPTIONS, PATIENCE, find_browser

FETCHES = re.compile(
    r"<(?:script|link|img|iframe|source)\b[^>]*\b(?:src|href)\s*=|@import|url\(\s*['\"]?https?:", re.I
)
PLOTLY = re.compile(r"<script>/\*\*.*?plotly\.js.*?</script>", re.S)

REPORT = {
    "seconds_train": 92.3,
    "seconds_prune": 61.2,
    "val_loss": 1.3532,
    "density": 0.02,
    "n_nonzero": 8187,
    "task_loss": 0.093,
    "task_accuracy": 1.0,
    "n_nodes": 12,
    "n_edges": 9,
    "one_minimal": True,
    "seed": 0,
}

needs_browser = pytest.mark.skipif(
    find_browser() is None,
    reason="opens a page in headless chromium, and neither chromium nor chrome is installed",
)


def demo(path):
    figures = [history_figure(HISTORY), pruning_figure(PRUNING, target=0.15)]
    return demo_page(path, make_circuit(), REPORT, figures)


def own_markup(text: str) -> str:
    """The page without plotly.js, which names sites of map tiles that nothing here asks for."""
    without, n = PLOTLY.subn("", text)
    assert n == 1
    return without


def test_a_page_asks_the_network_for_nothing(tmp_path):
    own = own_markup(demo(tmp_path / "demo.html").read_text())
    assert not FETCHES.search(own)
    assert not re.search(r"""(?:src|href)\s*=\s*["']?(?:https?:)?//""", own)
    assert "cdn" not in own
    assert "default-src 'none'" in own


def test_plotly_is_inlined_once_and_only_for_figures(tmp_path):
    figure = circuit_figure(make_circuit())
    two = write_page(tmp_path / "two.html", title="two", blocks=[figure, figure]).read_text()
    assert len(PLOTLY.findall(two)) == 1
    assert two.count("Plotly.newPlot(") - PLOTLY.search(two)[0].count("Plotly.newPlot(") == 2
    none = write_page(tmp_path / "none.html", title="none", blocks=["only text"]).read_text()
    assert len(none) < 10_000
    assert "<p>only text</p>" in none


def test_the_same_blocks_give_the_same_bytes(tmp_path):
    assert demo(tmp_path / "a.html").read_bytes() == demo(tmp_path / "b.html").read_bytes()


def test_text_is_escaped_and_markup_is_not(tmp_path):
    blocks = ["1 < 2 & <script>", Html("<hr>"), heading("a < b"), headline({"<i>": "<b>"})]
    text = write_page(tmp_path / "page.html", title="<t>", blocks=blocks).read_text()
    assert "<p>1 &lt; 2 &amp; &lt;script&gt;</p>" in text
    assert "\n<hr>\n" in text
    assert "<h2>a &lt; b</h2>" in text
    assert "<b>&lt;b&gt;</b><span>&lt;i&gt;</span>" in text
    assert "<title>&lt;t&gt;</title>" in text


def test_a_figure_cannot_close_its_script(tmp_path):
    figure = go.Figure(go.Scatter(x=[1], y=[1], text=["</script><script>alert(1)"]))
    text = own_markup(write_page(tmp_path / "page.html", title="t", blocks=[figure]).read_text())
    assert text.count("</script>") == 1


def test_another_type_of_block_is_refused_and_nothing_is_written(tmp_path):
    with pytest.raises(ValueError, match="blocks: number 1 is a dict; expected a plotly Figure, Html or str"):
        write_page(tmp_path / "page.html", title="t", blocks=["fine", {}])
    assert list(tmp_path.iterdir()) == []


def test_a_page_is_replaced_in_one_step(tmp_path):
    path = tmp_path / "deep" / "page.html"
    write_page(path, title="first", blocks=["x"])
    write_page(path, title="second", blocks=["x"])
    assert "second" in path.read_text()
    assert [file.name for file in path.parent.iterdir()] == ["page.html"]


def test_table():
    rows = [
        {"name": "a < b", "n": 1234, "x": -0.5, "ok": True},
        {"name": "c", "n": 5, "x": float("nan"), "ok": False},
    ]
    text = table(rows, {"x": "+.2f"})
    assert '<th>name</th><th class="number">n</th><th class="number">x</th><th>ok</th>' in text
    assert (
        '<td>a &lt; b</td><td class="number">1,234</td><td class="number">\u22120.50</td><td>yes</td>' in text
    )
    assert '<td>c</td><td class="number">5</td><td class="number">\u2013</td><td>no</td>' in text
    assert "<tbody>\n</tbody>" in table([])


def test_demo_page_says_the_numbers_and_names_every_node(tmp_path):
    own = own_markup(demo(tmp_path / "demo.html").read_text())
    for card in (
        "<b>12</b><span>nodes",
        "<b>0.093</b><span>task loss",
        "<b>100.0%</b>",
        "<b>2.00%</b><span>density",
    ):
        assert card in own, card
    assert "<td>one_minimal</td><td>yes</td>" in own
    for node in ("ch 17", "q 50", "neuron 411", "ch 63"):
        assert f"<td>{node}</td>" in own, node
    assert own.count("Plotly.newPlot(") == 3


@pytest.mark.browser
@needs_browser
def test_a_page_opens_in_a_browser_without_errors(tmp_path):
    page = demo(tmp_path / "demo.html")
    command = [
        find_browser(),
        *BROWSER_OPTIONS,
        f"--user-data-dir={tmp_path}/profile",
        "--enable-logging=stderr",
    ]
    done = subprocess.run(
        [*command, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=PATIENCE
    )
    assert not [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    drawn = own_markup(done.stdout)
    assert drawn.count('class="main-svg"') >= 3
    assert "neuron 411" in drawn
    assert "NaN" not in re.sub(r"<script>.*?</script>", "", drawn, flags=re.S)


@pytest.mark.browser
@needs_browser
def test_figure_to_png_draws_at_the_asked_size(tmp_path):
    figure = circuit_figure(make_circuit())
    data = figure_to_png(figure, tmp_path / "out" / "circuit.png", width=700, scale=1).read_bytes()
    assert data.startswith(b"\x89PNG")
    width, height = (int.from_bytes(data[at : at + 4], "big") for at in (16, 20))
    assert (width, height) == (700, figure.layout.height)
    assert len(data) > 10_000


def test_figure_to_png_without_a_browser_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match=r"found none of .* on PATH; install chromium, or use write_page"):
        figure_to_png(go.Figure(), tmp_path / "x.png")
