"""The explorer: what it shows is what Python computes, and it works from disk, offline, in a real browser."""

import json
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from explorer_browser import MARKS, PICK, READY, chromium, opened

from circuits.circuit.ablation import mean_values
from circuits.circuit.circuit import Circuit
from circuits.circuit.criterion import Criterion
from circuits.circuit.masked import run_circuit, run_masked
from circuits.circuit.nodes import Node, NodeFacts, is_pair
from circuits.circuit.parts import edges_between
from circuits.decompile.folded import answers_of
from circuits.decompile.observe import Observed
from circuits.explorer import circuit_view, to_html
from circuits.explorer.page import WIDGET, code, page_html, static
from circuits.handmade import Handmade, induction, quotes
from circuits.model.config import ModelConfig
from circuits.model.transformer import SparseTransformer
from circuits.plots.picture.circuit import circuit_picture
from circuits.pruning.stability import Kept, Stability
from circuits.trust.report import Entry, TrustReport

pytestmark = MARKS
LOGITS = "([rows, edits]) => rows.map(row => Array.from(forward(E().program, row, edits).logits))"


@cache
def noisy() -> Handmade:
    """A circuit of two layers, with random weights and AbsTopK that bites, on the prompts of the induction task."""
    made = induction(1)
    shape = ModelConfig(
        d_vocab=made.task.tokenizer.d_vocab, n_layers=2, d_model=12, n_heads=2, d_head=4, d_mlp=16,
        n_ctx=made.task.n_ctx, topk_fraction=0.5,
    )  # fmt: skip
    model = SparseTransformer(shape, seed=3)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.6 * torch.randn(parameter.shape, generator=generator))
    values = mean_values(model, made.task.batch(32, split="train", seed=0).clean)
    nodes = [Node.of(site, i) for site, width in model.widths.items() for i in range(0, width, 2)]
    circuit = Circuit(
        nodes=tuple(nodes), edges=tuple(edges_between(model, nodes)[::2]), widths=model.widths, n_layers=2,
        d_head=4, criterion=Criterion.of(made.task), model_hash=model.fingerprint(), values=values,
    )  # fmt: skip
    return replace(made, model=model, circuit=circuit)


@cache
def large() -> Handmade:
    """A circuit of more nodes than are drawn at once, of a random sparse model."""
    made = induction(1)
    shape = ModelConfig(
        d_vocab=made.task.tokenizer.d_vocab, n_layers=2, d_model=24, n_heads=2, d_head=8, d_mlp=64,
        n_ctx=made.task.n_ctx,
    )  # fmt: skip
    model = SparseTransformer(shape, seed=3)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in model.parameters():
            kept = torch.rand(parameter.shape, generator=generator) < 0.1
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * kept)
    values = mean_values(model, made.task.batch(32, split="train", seed=0).clean)
    nodes = [Node.of(site, i) for site, width in model.widths.items() for i in range(width)]
    circuit = Circuit(
        nodes=tuple(nodes), edges=tuple(edges_between(model, nodes)), widths=model.widths, n_layers=2,
        d_head=8, criterion=Criterion.of(made.task), model_hash=model.fingerprint(), values=values,
    )  # fmt: skip
    return replace(made, model=model, circuit=circuit)


MADE = {"quotes": partial(quotes, 1), "induction": partial(induction, 1), "noisy": noisy}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    yield from chromium()


@pytest.fixture(scope="module")
def quote_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The explorer of the handmade quote circuit."""
    made = quotes(1)
    return to_html(tmp_path_factory.mktemp("page") / "page.html", made.model, made.circuit, made.task)


@pytest.fixture
def page(browser: Any, quote_page: Path) -> Iterator[Any]:
    """The explorer of the handmade quote circuit; an error on its console fails the test."""
    errors: list[str] = []
    shown = opened(browser, quote_page, errors)
    yield shown
    shown.context.close()
    assert errors == []


def expected(made: Handmade, circuit: Circuit, n: int = 50) -> tuple[list[list[int]], torch.Tensor]:
    """Prompts of the task, and run_circuit's logits of the answers after each."""
    targets = made.task.batch(n, split="test", seed=5).tokens_and_targets()
    with torch.no_grad():
        logits = run_circuit(made.model, circuit, targets.tokens)
    rows = [
        row[: end + 1] for row, end in zip(targets.tokens.tolist(), targets.position.tolist(), strict=True)
    ]
    return rows, logits[torch.arange(len(rows)), targets.position][:, answers_of(made.task)]


def in_page(page: Any, rows: list[list[int]], values: str = "{}", cut: tuple[str, ...] = ()) -> torch.Tensor:
    edits = f"{{values: {values}, cut: new Set({json.dumps(cut)})}}"
    return torch.tensor(page.evaluate(f"rows => ({LOGITS})([rows, {edits}])", rows))


@pytest.mark.parametrize("name", MADE)
def test_the_page_computes_what_run_circuit_computes(name: str, browser: Any, tmp_path: Path) -> None:
    made, errors = MADE[name](), []
    page = opened(browser, to_html(tmp_path / "page.html", made.model, made.circuit, made.task), errors)
    rows, logits = expected(made, made.circuit)
    assert len(rows) == 100
    assert logits.std() > 0.05
    torch.testing.assert_close(in_page(page, rows), logits, atol=1e-4, rtol=0)
    page.context.close()
    assert errors == []


@pytest.mark.parametrize("name", ["quotes", "noisy"])
def test_a_cut_edge_is_run_circuit_without_it(name: str, browser: Any, tmp_path: Path) -> None:
    made = MADE[name]()
    page = opened(browser, to_html(tmp_path / "page.html", made.model, made.circuit, made.task), [])
    changed = 0
    for gone in [edge for edge in made.circuit.edges if not is_pair(edge)][:8]:
        fewer = replace(made.circuit, edges=tuple(edge for edge in made.circuit.edges if edge != gone))
        rows, logits = expected(made, fewer, n=10)
        got = in_page(page, rows, cut=(f"{gone.source}>{gone.target}",))
        torch.testing.assert_close(got, logits, atol=1e-4, rtol=0)
        changed += not torch.allclose(logits, expected(made, made.circuit, n=10)[1], atol=1e-3)
    page.context.close()
    assert changed > 0


def answer_in_python(made: Handmade, node: Node, row: int) -> tuple[str, str]:
    """The circuit's answer to a clean prompt, and that with one node's value taken from the corrupted one."""
    batch, at = made.task.batch(50, split="test", seed=0), made.model.hook_name(node.at)
    length = int(batch.lengths[row])
    clean, corrupt = batch.clean[row : row + 1, :length], batch.corrupt[row : row + 1, :length]
    masks = {site: mask.to(made.model.W_E) for site, mask in made.circuit.to_mask().items()}
    edges = {key: mask.to(made.model.W_E) for key, mask in made.circuit.to_edge_mask().items()}
    other: list[torch.Tensor] = []

    def look(x: torch.Tensor, hook: Any) -> None:
        other.append(x.flatten(2)[..., node.index].clone())

    def put(x: torch.Tensor, hook: Any) -> torch.Tensor:
        flat = x.flatten(2).clone()
        flat[..., node.index] = other[0]
        return flat.view(x.shape)

    run = partial(run_masked, made.model, masks=masks, values=made.circuit.values, edge_masks=edges)
    answers, shown = answers_of(made.task), made.task.tokenizer.token
    with torch.no_grad():
        before = run(clean)
        # Masks come after, and leave a node of the circuit as it is.
        with made.model.hooks(fwd_hooks=[(at, look)]):
            run(corrupt)
        with made.model.hooks(fwd_hooks=[(at, put)]):
            after = run(clean)
    said = [shown(answers[int(logits[0, -1, answers].argmax())]) for logits in (before, after)]
    return said[0], said[1]


def test_the_other_prompts_value_turns_the_answer_where_python_says_so(page: Any) -> None:
    made, turned = quotes(1), 0
    for node in made.circuit.nodes:
        before, after = answer_in_python(made, node, 0)
        page.evaluate("E().set(E().fresh())")
        assert page.evaluate("document.querySelector('.answer').dataset.answer") == before
        page.evaluate("id => { E().set({chosen: id}); E().swap(id); }", str(node))
        assert page.evaluate("document.querySelector('.answer').dataset.answer") == after, node
        turned += before != after
    assert 0 < turned < made.circuit.n_nodes


def test_a_click_shows_the_contexts_that_python_computes(page: Any) -> None:
    made = quotes(1)
    seen = Observed(made.model, made.circuit, made.task, 64)
    for node in made.circuit.nodes:
        page.locator(f'.node[data-id="{node}"] .dot').click()
        assert page.locator(".panel p.faint").first.inner_text() == str(node)
        if seen.constant(node) is not None:
            assert "Constant" in page.locator(".contexts").inner_text()
            continue
        for end in ("highest", "lowest"):
            shown = page.locator(f".contexts.{end} li").all_inner_texts()
            places = seen.places(node, highest=end == "highest")
            texts = ["".join(place.texts) for place in places]
            assert [line.rsplit(" ", 1)[0] for line in shown] == texts
            assert page.locator(f".contexts.{end} mark").all_inner_texts() == [p.texts[-1] for p in places]


def test_a_typed_prompt_changes_the_answer_and_a_wrong_one_is_named(page: Any) -> None:
    made = quotes(1)
    for pair in range(3):
        batch = made.task.batch(50, split="test", seed=0)
        for side, right in ((batch.clean, batch.answer), (batch.corrupt, batch.foil)):
            text = made.task.tokenizer.decode(side[pair, : int(batch.lengths[pair])].tolist())
            page.locator(".typed").fill(text.replace("\n", "\\n"))
            assert page.evaluate(
                "document.querySelector('.answer').dataset.answer"
            ) == made.task.tokenizer.token(int(right[pair]))
    page.locator(".typed").fill("\u20ac")
    assert "\u20ac" in page.locator(".wrong").inner_text()


def test_dragging_a_mark_changes_its_value(page: Any) -> None:
    mark = page.locator(".node").nth(1)
    id, box = mark.get_attribute("data-id"), mark.locator(".dot").bounding_box()
    before = page.evaluate("id => E().valueOf(id)", id)
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] - 60)
    page.mouse.up()
    assert page.evaluate("id => E().state.values[id]", id) > before
    assert page.evaluate("id => E().valueOf(id)", id) == page.evaluate("id => E().state.values[id]", id)


def logits_with(made: Handmade, tokens: list[int], node: Node, value: float) -> torch.Tensor:
    """The answers' logits while the circuit alone is kept and one node has one value at every token."""
    masks = {site: mask.to(made.model.W_E) for site, mask in made.circuit.to_mask().items()}
    edges = {key: mask.to(made.model.W_E) for key, mask in made.circuit.to_edge_mask().items()}

    def put(x: torch.Tensor, hook: Any) -> torch.Tensor:
        flat = x.flatten(2).clone()
        flat[..., node.index] = value
        return flat.view(x.shape)

    with torch.no_grad(), made.model.hooks(fwd_hooks=[(made.model.hook_name(node.at), put)]):
        logits = run_masked(made.model, torch.tensor([tokens]), masks, made.circuit.values, edges)
    return logits[0, -1, answers_of(made.task)]


def test_a_dragged_value_does_what_it_does_in_python(page: Any) -> None:
    made, turned = quotes(1), 0
    tokens, right = page.evaluate("[E().state.tokens, document.querySelector('.answer').dataset.answer]")
    for node in made.circuit.nodes:
        for way in (-90, 90):
            page.evaluate("E().set(E().fresh())")
            box = page.locator(f'.node[data-id="{node}"] .dot').bounding_box()
            x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
            page.mouse.move(x, y)
            page.mouse.down()
            page.mouse.move(x, y + way)
            page.mouse.up()
            value = page.evaluate("id => E().state.values[id]", str(node))
            shown = torch.tensor(page.evaluate("[...E().run.logits]"))
            torch.testing.assert_close(shown, logits_with(made, tokens, node, value), atol=1e-4, rtol=0)
            turned += page.evaluate("document.querySelector('.answer').dataset.answer") != right
    assert 0 < turned < 2 * made.circuit.n_nodes


def test_keyboard_search_pin_group_rename_and_slider(page: Any) -> None:
    page.locator("#explorer").focus()
    page.keyboard.press("ArrowRight")
    first = page.evaluate("E().state.chosen")
    page.keyboard.press("p")
    assert page.evaluate("E().state.pins") == [first]
    page.keyboard.press("g")
    assert page.evaluate("E().state.groups") == [{"name": "group 1", "ids": [first]}]
    page.locator(f'.node[data-id="{first}"] .dot').dblclick()
    page.keyboard.type("opener")
    page.keyboard.press("Enter")
    assert page.locator(f'.node[data-id="{first}"] .name').text_content() == "opener"
    page.locator("#explorer").focus()
    page.keyboard.press("/")
    page.keyboard.type("opener")
    assert page.locator(".node.off").count() == quotes(1).circuit.n_nodes - 1
    page.wait_for_function(READY)
    full = page.locator(".kept").inner_text()
    page.locator("input[type=range]").fill("0")
    assert page.locator(".node.held").count() == quotes(1).circuit.n_nodes
    page.wait_for_function(READY)
    assert page.locator(".kept").inner_text() != full
    page.locator(f'.node[data-id="{first}"] .dot').click(modifiers=["Control"])
    assert page.evaluate("E().state.pins") == [first]


def test_a_saved_view_is_the_same_view(page: Any, tmp_path: Path) -> None:
    page.evaluate("E().set({chosen: [...E().nodes.keys()][2], pins: [[...E().nodes.keys()][0]], keep: 3})")
    page.evaluate("E().rename([...E().nodes.keys()][1])")
    page.keyboard.type("two")
    page.keyboard.press("Enter")
    state = page.evaluate("E().state")
    with page.expect_download() as saved:
        page.get_by_role("button", name="save").click()
    saved.value.save_as(tmp_path / "view.json")
    page.get_by_role("button", name="reset").click()
    assert page.evaluate("E().state") != state
    page.locator("input[type=file]").set_input_files(tmp_path / "view.json")
    page.wait_for_function("() => E().state.keep === 3")
    assert page.evaluate("E().state") == state
    page.reload()
    page.evaluate(PICK)
    assert page.evaluate("E().state") == state


def test_what_looks_like_markup_stays_text(browser: Any, tmp_path: Path) -> None:
    made, evil, errors = quotes(1), "<script>document.title='gone'</script>", []
    view = circuit_view(made.model, made.circuit, made.task)
    view["task"] = evil
    view["tokens"]["shown"] = [evil] * len(view["tokens"]["shown"])
    view["tokens"]["texts"] = [evil] * len(view["tokens"]["texts"])
    view["picture"]["ends"][0]["label"] = evil
    view["picture"]["nodes"][0]["label"] = evil
    note = view["notes"][view["picture"]["nodes"][0]["id"]]
    note["reads"], note["writes"] = [evil], [evil]
    (tmp_path / "page.html").write_text(page_html(view))
    page = opened(browser, tmp_path / "page.html", errors)
    page.locator(".node .dot").first.dblclick()
    page.keyboard.type(evil)
    page.keyboard.press("Enter")
    page.evaluate("E().complain('x')")
    page.locator(".typed").fill(evil)
    assert page.title() == f"The circuit for {evil}"
    assert page.locator("h1").inner_text() == evil
    assert page.locator("#explorer script").count() == 0
    page.context.close()
    assert errors == []


def test_one_file_of_little_code_the_same_each_time(tmp_path: Path) -> None:
    made = quotes(1)
    paths = [to_html(tmp_path / name, made.model, made.circuit, made.task) for name in "ab"]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert len(code()) < 1_000_000
    text = paths[0].read_text()
    assert "default-src 'none'" in text
    assert "src=" not in text.replace("img-src", "").replace("image.src =", "")


def test_page_and_figure_share_their_layout() -> None:
    made = quotes(1)
    view, layout = (
        circuit_view(made.model, made.circuit, made.task),
        circuit_picture(made.circuit, task=made.task),
    )
    assert {node["id"]: node["at"] for node in view["picture"]["nodes"]} == {
        str(node): layout.place[node] for node in made.circuit.nodes
    }


def test_what_is_outside_must_be_constant() -> None:
    made = quotes(1)
    with pytest.raises(ValueError, match="found under 'position' ablation"):
        circuit_view(
            made.model,
            replace(made.circuit, criterion=replace(made.circuit.criterion, ablation="position")),
            made.task,
        )


SERVED = "http://explorer.test"


def test_the_modules_import_what_they_use(browser: Any) -> None:
    """The page runs as the ES modules that it is written in, which share no names but those imported."""
    made, errors = quotes(1), []
    view = circuit_view(made.model, made.circuit, made.task)
    start = "import { mount } from './page.js'; window.mount = mount; window.loaded = true;"
    page = browser.new_context(offline=True).new_page()
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))

    def serve(route: Any) -> None:
        name = route.request.url.removeprefix(f"{SERVED}/")
        if name.endswith(".js"):
            route.fulfill(body=static(name), content_type="text/javascript")
        else:
            body = f'<link rel="icon" href="data:,"><div id="explorer"></div><script type="module">{start}</script>'
            route.fulfill(body=body, content_type="text/html")

    page.route(f"{SERVED}/**", serve)
    page.goto(f"{SERVED}/")
    page.wait_for_function("() => window.loaded")
    page.evaluate(PICK)
    page.evaluate("view => { mount(document.getElementById('explorer'), view); }", view)
    for key in ("ArrowRight", "p", "g", "x", "o", "+", "0", "Escape"):
        page.locator("#explorer").press(key)
    page.wait_for_function(READY)
    assert page.locator(".node").count() == made.circuit.n_nodes
    page.context.close()
    assert errors == []


def test_no_name_is_given_twice_at_the_top_of_the_modules() -> None:
    top = code(WIDGET)
    first = re.findall(r"^(?:const|let|function|class) (\[[^\]]*\]|\w+)", top, re.M)
    single = [name for found in first for name in re.findall(r"\w+", found)]
    also = [name for line in re.findall(r"^const .*;", top, re.M) for name in re.findall(r", (\w+) = ", line)]
    assert len(single) > 50
    assert sorted(single + also) == sorted({*single, *also})


FAKE = """([code, view, state]) => new Promise((done, failed) => {
  const held = { view, state }, url = URL.createObjectURL(new Blob([code], { type: "text/javascript" }));
  const set = (key, value) => { held[key] = value; }, none = () => {};
  const model = { get: (key) => held[key], set, save_changes: none, on: none };
  window.held = held;
  import(url).then((module) => { const el = document.createElement("div"); document.body.append(el);
    module.default.render({ model, el }); window.E = () => el.explorer; done(); }).catch(failed);
})"""


def test_the_widgets_module_draws_and_hands_its_state_back(browser: Any) -> None:
    widget = pytest.importorskip("anywidget") and __import__("circuits.explorer.widget", fromlist=["explore"])
    made = quotes(1)
    shown = widget.explore(made.model, made.circuit, made.task, n_prompts=4)
    node = str(made.circuit.nodes[0])
    page = browser.new_page()
    page.evaluate(FAKE, [widget.ExplorerWidget._esm, shown.view, {"chosen": node}])
    assert page.evaluate("E().state.chosen") == node
    page.evaluate("id => E().pin(id)", node)
    assert page.evaluate("held.state.pins") == [node]
    rows, logits = expected(made, made.circuit, n=4)
    torch.testing.assert_close(
        torch.tensor(
            page.evaluate(
                "rows => rows.map(row => { E().set({tokens: row}); return [...E().run.logits]; })", rows
            )
        ),
        logits,
        atol=1e-4,
        rtol=0,
    )
    page.close()


def test_svg_and_png_hold_the_picture(page: Any, tmp_path: Path) -> None:
    for name in ("SVG", "PNG"):
        with page.expect_download() as saved:
            page.get_by_role("button", name=name, exact=True).click()
        saved.value.save_as(tmp_path / name)
    root = ElementTree.parse(tmp_path / "SVG").getroot()
    marks = [at for at in root.iter() if "node" in (at.get("class") or "").split()]
    ids = {at.get("data-id") for at in marks}
    assert ids == {str(node) for node in quotes(1).circuit.nodes}
    data = (tmp_path / "PNG").read_bytes()
    box = page.evaluate("[E().svg.viewBox.baseVal.width, E().svg.viewBox.baseVal.height].map(Math.ceil)")
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert [int.from_bytes(data[at : at + 4], "big") for at in (16, 20)] == [2 * side for side in box]


def test_light_and_dark(page: Any) -> None:
    ground = "getComputedStyle(document.querySelector('.explorer')).backgroundColor"
    page.emulate_media(color_scheme="dark")
    assert page.evaluate(ground) == "rgb(21, 25, 31)"
    page.get_by_role("button", name="\u25d0").click()
    assert page.evaluate(ground) == "rgb(255, 255, 255)"
    page.get_by_role("button", name="\u25d0").click()
    assert page.evaluate(ground) == "rgb(21, 25, 31)"


def test_verdicts_and_kinds_are_in_view(browser: Any, tmp_path: Path) -> None:
    made, errors = quotes(1), []
    found, nodes = made.circuit, made.circuit.nodes
    entry = Entry(name="sufficiency", meaning="loss", value=0.1, baseline=0.15, verdict="fail", unit="nats")
    report = TrustReport(
        task=found.task, model_hash=found.model_hash, n_nodes=found.n_nodes, n_edges=found.n_edges,
        entries=(entry,), seconds=0.0,
    )  # fmt: skip
    kept = {nodes[0]: Kept(9, 0.7, 1.0, "core"), nodes[1]: Kept(1, 0.0, 0.4, "noise")}
    weights = [edge for edge in found.edges if not is_pair(edge)]
    edges = {(weights[0].source, weights[0].target): Kept(1, 0.0, 0.4, "noise")}
    card = Stability(runs=("a", "b"), sizes=((8, 5), (8, 5)), nodes=kept, edges=edges)
    options = {"trust": report, "stability": card}
    page = opened(browser, to_html(tmp_path / "p.html", made.model, found, made.task, **options), errors)
    assert "1 of 1 checks failed: sufficiency" in page.locator(".panel").inner_text()
    assert page.locator(".verdict.fail").count() == 1
    for kind, node in (("core", nodes[0]), ("noise", nodes[1])):
        assert page.locator(f".node.kind-{kind}").get_attribute("data-id") == str(node)
    loose = page.locator(".line.kept-noise")
    assert loose.get_attribute("data-source") == str(weights[0].source)
    assert loose.get_attribute("data-target") == str(weights[0].target)
    page.locator(f'.node[data-id="{nodes[0]}"] .dot').click()
    assert "every run keeps it" in page.locator(".panel .kind").inner_text()
    page.context.close()
    assert errors == []
    with pytest.raises(ValueError, match="trust: got a report on"):
        circuit_view(made.model, found, made.task, trust=replace(report, n_nodes=3))


def test_the_core_is_marked_and_what_was_not_measured_is_not(browser: Any, tmp_path: Path) -> None:
    made, errors = quotes(1), []
    facts = {node: NodeFacts(0.0, 0.5 - i / 10, model_loss) for i, (node, model_loss) in enumerate(
        zip(made.circuit.nodes, (9.0, 0.0, math.nan), strict=False)
    )}  # fmt: skip
    circuit = replace(made.circuit, facts=facts)
    core, loose, unknown = circuit.nodes[:3]
    page = opened(browser, to_html(tmp_path / "p.html", made.model, circuit, made.task), errors)
    assert page.locator(".node.core").count() == len(circuit.core) == 1
    assert page.locator(".node.core").get_attribute("data-id") == str(core)
    assert page.locator(".breaks .chip").first.get_attribute("data-id") == str(core)
    for node, said in ((core, "Core:"), (loose, "Not core:")):
        page.evaluate("id => E().set({chosen: id})", str(node))
        assert said in page.locator(".in-core").inner_text()
    page.evaluate("id => E().set({chosen: id})", str(unknown))
    assert page.locator(".in-core").count() == 0
    page.context.close()
    assert errors == []


def test_values_are_read_at_the_token_that_is_clicked(page: Any) -> None:
    made = quotes(1)
    seen: dict[str, torch.Tensor] = {}
    row = torch.tensor([page.evaluate("E().state.tokens")])
    values = {site: value.to(made.model.W_E) for site, value in made.circuit.values.items()}
    masks = {site: mask.to(made.model.W_E) for site, mask in made.circuit.to_mask().items()}
    edges = {key: mask.to(made.model.W_E) for key, mask in made.circuit.to_edge_mask().items()}
    names = [made.model.hook_name(site) for site in made.model.sites()]

    def look(x: torch.Tensor, hook: Any) -> None:
        seen[hook.name] = x.flatten(2)[0]

    with torch.no_grad(), made.model.hooks(fwd_hooks=[(name, look) for name in names]):
        run_masked(made.model, row, masks, values, edges)
    for at in (0, 2, row.shape[1] - 1):
        page.locator("button.token").nth(at).click()
        for node in made.circuit.nodes:
            own = float(seen[made.model.hook_name(node.at)][at, node.index])
            assert page.evaluate("id => E().valueOf(id)", str(node)) == pytest.approx(own, abs=1e-4)
    assert page.evaluate("E().state.at") is None


def test_a_logit_without_a_weight_is_drawn(browser: Any, tmp_path: Path) -> None:
    made, errors = quotes(1), []
    some = tuple(io for io in made.circuit.io_edges if (io.kind, io.token) != ("unembed", "'"))
    assert len(some) < len(made.circuit.io_edges)
    path = to_html(tmp_path / "p.html", made.model, replace(made.circuit, io_edges=some), made.task)
    page = opened(browser, path, errors)
    assert page.locator(".end.faint").all_text_contents() == ["' (constant)"]
    page.context.close()
    assert errors == []


def test_layers_of_a_large_circuit_fold_and_open(browser: Any, tmp_path: Path) -> None:
    made, errors = large(), []
    page = opened(browser, to_html(tmp_path / "p.html", made.model, made.circuit, made.task), errors)
    counts = [sum(node.layer == layer for node in made.circuit.nodes) for layer in (0, 1)]
    assert made.circuit.n_nodes > 300
    assert page.locator(".node").count() == 0
    assert page.locator(".fold .count").all_text_contents() == [
        f"layer {layer}: {n} nodes" for layer, n in enumerate(counts)
    ]
    rows, logits = expected(made, made.circuit, n=4)
    torch.testing.assert_close(in_page(page, rows), logits, atol=1e-4, rtol=0)
    page.locator('.fold[data-layer="layer 0"]').click()
    assert page.locator(".node").count() == counts[0]
    page.keyboard.press("Enter")  # the focus is on what folds it again
    assert page.locator(".node").count() == 0
    last = str([node for node in made.circuit.nodes if node.layer == 1][-1])
    page.locator("input[type=search]").fill("mlp")
    assert page.evaluate("E().state.open") == []
    total = sum("mlp" in node.site for node in made.circuit.nodes)
    said = page.locator(".fold .found").all_text_contents()
    assert sum(int(text.split()[0]) for text in said) == total > 40
    page.locator("input[type=search]").fill(last)
    assert page.evaluate("E().state.open") == ["layer 1"]
    page.keyboard.press("Enter")
    assert page.evaluate("E().state.chosen") == last
    view, mark = page.locator(".picture").bounding_box(), page.locator(".node.chosen").bounding_box()
    assert view["y"] < mark["y"] < view["y"] + view["height"]
    page.evaluate("E().set({open: []})")
    page.evaluate("id => E().set({chosen: id})", str(made.circuit.nodes[0]))
    assert page.evaluate("E().state.open") == ["layer 0"]
    page.context.close()
    assert errors == []
