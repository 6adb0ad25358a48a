"""Questions to the explorer: what it tells in words, what is marked in each pane, sizes, small windows, bad views."""

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import torch
from explorer_browser import MARKS, READY, chromium, opened

from circuits.circuit.circuit import Circuit
from circuits.circuit.masked import run_circuit, run_masked
from circuits.circuit.nodes import Node, NodeFacts
from circuits.decompile.folded import answers_of
from circuits.decompile.observe import Observed
from circuits.explorer import circuit_view, to_html
from circuits.explorer.way import MOST, by_need, closed_further, gates_closed
from circuits.handmade import Handmade, induction, quotes

pytestmark = MARKS
MADE = {"quotes": partial(quotes, 1), "induction": partial(induction, 1)}
WAYS = {
    "quotes": ["0.attn_in.2", "0.attn_v.1", "0.attn_out.3", "0.mlp_in.3", "0.mlp_neuron.0", "0.mlp_out.4"],
    "induction": ["1.attn_in.3", "1.attn_v.3", "1.attn_out.4"],
}
"""By which nodes the handmade circuits were made to bring the token that differs to the answer."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    yield from chromium()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    made = {name: make() for name, make in MADE.items()}
    return {
        name: to_html(folder / f"{name}.html", one.model, one.circuit, one.task) for name, one in made.items()
    }


@pytest.fixture
def page(browser: Any, files: dict[str, Path]) -> Iterator[Any]:
    """The explorer of the handmade quote circuit; an error on its console fails the test."""
    errors: list[str] = []
    shown = opened(browser, files["quotes"], errors)
    yield shown
    shown.context.close()
    assert errors == []


def margins(made: Handmade, circuit: Circuit, pair: int) -> list[float]:
    """By how much run_circuit lets the answer lead the foil on the clean prompt of a pair, and on the corrupted one."""
    batch = made.task.batch(50, split="test", seed=0).rows(slice(pair, pair + 1))
    end = int(batch.lengths[0]) - 1
    with torch.no_grad():
        logits = run_circuit(made.model, circuit, torch.cat([batch.clean, batch.corrupt]))[:, end]
    return (logits[:, int(batch.answer[0])] - logits[:, int(batch.foil[0])]).tolist()


@pytest.mark.parametrize("name", MADE)
def test_how_an_answer_comes_about_is_told(name: str, browser: Any, files: dict[str, Path]) -> None:
    made, errors = MADE[name](), []
    page = opened(browser, files[name], errors)
    for pair in range(3):
        page.evaluate("i => E().choosePrompt(i, 'clean')", pair)
        told = page.evaluate("story(E())")
        assert [step["id"] for step in told["steps"] if "id" in step] == WAYS[name]
        assert [told["here"], told["there"]] == pytest.approx(margins(made, made.circuit, pair), abs=1e-3)
        # One node alone moves these logits: it makes all of the difference.
        assert told["share"] == pytest.approx(told["here"] - told["there"], rel=1e-2)
        first = told["steps"][0]
        clean, corrupt = page.evaluate("i => [E().view.prompts[i].clean, E().view.prompts[i].corrupt]", pair)
        assert [first["token"], first["other"]] == [clean[first["at"]], corrupt[first["at"]]]
        assert first["token"] != first["other"]
        shown = page.locator(".story .chip").evaluate_all("chips => chips.map(chip => chip.dataset.id)")
        assert shown == WAYS[name]
    page.locator(".typed").fill("a" if name == "induction" else "ab")
    assert page.locator(".story").count() == 0
    page.context.close()
    assert errors == []


def test_a_head_that_looks_elsewhere_is_told(browser: Any, tmp_path: Path) -> None:
    """A head that carries the same from everywhere but for its look: the way leads on through query and key."""
    made, errors = induction(1), []
    page = opened(browser, to_html(tmp_path / "p.html", made.model, made.circuit, made.task), errors)
    # The earlier letter, instead of what followed it, is another on the other prompt: keys differ, values do not.
    pair = page.evaluate("""() => {
      const pair = E().view.prompts[0], clean = pair.clean, found = clean.indexOf(clean.at(-1));
      const corrupt = [...clean]; corrupt[found] = clean[0] === clean[found] ? clean[2] : clean[0];
      pair.corrupt = corrupt; E().set(E().fresh()); return [clean, corrupt]; }""")
    told = page.evaluate("story(E())")
    turning = [step for step in told["steps"] if step.get("turns")]
    assert len(turning) == 1
    assert turning[0]["id"].split(".")[1] in ("attn_q", "attn_k")
    looks, here, there = turning[0]["looks"]
    assert here > there
    assert told["steps"][0]["token"] != told["steps"][0]["other"]
    assert pair[0][told["steps"][0]["at"]] == told["steps"][0]["token"]
    assert f"(position {looks})" in page.locator(".story").inner_text()
    page.context.close()
    assert errors == []


def test_the_same_thing_is_marked_in_every_pane(page: Any) -> None:
    source, target = "0.attn_v.1", "0.attn_out.3"
    page.evaluate("ids => E().set({chosen: ids[1], pins: [ids[0]]})", [source, target])
    marked = ".hover[data-id]"
    page.locator(f'.node[data-id="{source}"] .dot').hover()
    for pane in (".picture .node", ".panel .chip", ".pinned .chip"):
        assert page.locator(f'{pane}.hover[data-id="{source}"]').count() == 1, pane
    assert (
        page.locator(".picture .line.hover").count()
        == page.locator(f'.line[data-source="{source}"]').count()
        + page.locator(f'.line[data-target="{source}"]').count()
    )
    page.locator("h1").hover()
    assert page.locator(marked).count() == 0
    page.locator(f'.panel .chip[data-id="{source}"]').hover()
    assert page.locator(f'.node.hover[data-id="{source}"]').count() == 1
    page.locator("h1").hover()
    page.locator(f'.pinned .chip[data-id="{source}"]').focus()
    assert page.locator(f'.node.hover[data-id="{source}"]').count() == 1
    page.locator('.end[data-id="logit:\\""]').hover()
    assert page.locator('.line.hover[data-target="logit:\\""]').count() > 0


def test_the_panel_lists_cut_and_lead_on(page: Any) -> None:
    source, target = "0.attn_v.1", "0.attn_out.3"
    page.evaluate("id => E().set({chosen: id})", target)
    page.locator(f'.reads .cut[data-edge="{source}>{target}"]').click()
    assert page.evaluate("E().state.cut") == [f"{source}>{target}"]
    assert page.locator(f'.reads .cut[data-edge="{source}>{target}"]').inner_text() == "mend"
    page.locator(f'.reads .chip[data-id="{source}"]').click()
    assert page.evaluate("E().state.chosen") == source
    page.locator(f'.writes .cut[data-edge="{source}>{target}"]').click()
    assert page.evaluate("E().state.cut") == []
    line = page.locator(f'.line[data-source="{source}"][data-target="{target}"]')
    line.dispatch_event("click", {"altKey": True})
    assert page.evaluate("E().state.cut") == [f"{source}>{target}"]


def values_of(made: Handmade, tokens: torch.Tensor) -> dict[Node, torch.Tensor]:
    """Each node's value at every token of one prompt, while the circuit alone is kept."""
    seen: dict[str, torch.Tensor] = {}
    masks = {site: mask.to(made.model.W_E) for site, mask in made.circuit.to_mask().items()}
    edges = {key: mask.to(made.model.W_E) for key, mask in made.circuit.to_edge_mask().items()}

    def look(x: torch.Tensor, hook: Any) -> None:
        seen[hook.name] = x.flatten(2)[0].clone()

    hooks = [(made.model.hook_name(site), look) for site in made.model.sites()]
    with torch.no_grad(), made.model.hooks(fwd_hooks=hooks):
        run_masked(made.model, tokens[None], masks, made.circuit.values, edges)
    return {node: seen[made.model.hook_name(node.at)][:, node.index] for node in made.circuit.nodes}


def test_values_on_clean_and_corrupted_prompts_are_set_side_by_side(page: Any) -> None:
    made = quotes(1)
    batch = made.task.batch(50, split="test", seed=0)
    n = page.evaluate("E().pairs.length")
    assert n == 12
    ends = batch.lengths[:n].tolist()
    both = [
        [values_of(made, side[i, :end]) for side in (batch.clean, batch.corrupt)]
        for i, end in enumerate(ends)
    ]
    told = 0
    for node in made.circuit.nodes:
        page.evaluate("id => E().set({chosen: id})", str(node))
        for (clean, corrupt), shown in zip(
            both, page.evaluate("id => E().sides(id)", str(node)), strict=True
        ):
            apart = (clean[node] - corrupt[node]).abs()
            assert abs(shown[0] - shown[1]) == pytest.approx(float(apart.max()), abs=1e-4)
            assert float((clean[node] - shown[0]).abs().min()) < 1e-4
        assert page.locator(".sides .pair-dot").count() == n
        told += "tells the two apart" in page.locator(".sides").inner_text()
    assert 0 < told < made.circuit.n_nodes


def test_the_slider_runs_over_the_way_that_gates_closed(browser: Any, tmp_path: Path) -> None:
    made, errors = quotes(1), []
    history = [
        {"step": i, "n_open": n, "task_loss": loss}
        for i, (n, loss) in enumerate([(200, 0.5), (90, 0.2), (90, 0.1), (5, 3.0)])
    ]
    facts = {node: NodeFacts(0.0, float(i)) for i, node in enumerate(made.circuit.nodes)}
    circuit = replace(made.circuit, facts=facts).with_metrics(history=history)
    assert gates_closed(circuit)["points"] == [[90, 0.1], [200, 0.5]]
    assert by_need(circuit) == list(circuit.nodes)[::-1]
    seen = Observed(made.model, circuit, made.task, 64)
    further = closed_further(circuit, seen)
    assert [n for n, _ in further] == list(range(circuit.n_nodes + 1))
    assert further[-1][1] == pytest.approx(seen.loss(circuit.nodes))
    assert further[0][1] > further[-1][1]
    page = opened(browser, to_html(tmp_path / "p.html", made.model, circuit, made.task), errors)
    assert page.evaluate("E().order") == [str(node) for node in by_need(circuit)]
    slider = page.locator("input[type=range]")
    assert int(slider.get_attribute("max")) == circuit.n_nodes + 2
    for place, said in (
        (circuit.n_nodes + 2, "200 nodes open while gates closed: "),
        (circuit.n_nodes + 1, "90 nodes"),
    ):
        slider.fill(str(place))
        assert page.locator(".kept").inner_text().strip().startswith(said)
        assert page.locator(".node.held").count() == 0
    assert page.locator(".kept").inner_text().endswith("0.100")
    slider.fill("2")
    page.wait_for_function(READY)
    held = page.locator(".node.held").evaluate_all("marks => marks.map(mark => mark.dataset.id)")
    assert set(held) == {str(node) for node in by_need(circuit)[2:]}
    dot = page.locator(".way .pair-dot")
    assert float(dot.get_attribute("cx")) < float(page.locator(".way .zero").get_attribute("x1"))
    page.context.close()
    assert errors == []


def test_the_way_is_told_of_few_sizes() -> None:
    made = induction(1)
    seen = Observed(made.model, made.circuit, made.task, 8)
    sizes = [n for n, _ in closed_further(made.circuit, seen)]
    assert len(sizes) == MOST < made.circuit.n_nodes
    assert [sizes[0], sizes[-1]] == [0, made.circuit.n_nodes]
    assert sizes == sorted(set(sizes))
    assert gates_closed(made.circuit)["points"] == []


def test_the_task_and_the_sink_are_in_view(page: Any) -> None:
    """Whether the answer is the task's, the other prompt of the pair at a key, and attention to the sink."""
    assert "right" in page.locator(".wanted").inner_text()
    first = page.locator(".typed").input_value()
    page.locator("#explorer").press("o")
    assert page.evaluate("E().state.side") == "corrupt"
    assert page.locator(".typed").input_value() != first
    assert page.locator("select").input_value() == "0 corrupt"
    page.locator(".typed").fill("ab")
    assert page.locator(".wanted").count() == 0
    assert page.locator("select").input_value() == ""
    row = page.evaluate("E().run.patterns[0][0][1]")
    sink = page.locator(".token.sink")
    assert f"{1 - sum(row):.2f}" in sink.get_attribute("title")
    high = sink.locator("i").evaluate("bar => parseFloat(bar.style.height)")
    assert high == pytest.approx(22 * max(0.0, 1 - sum(row)), abs=0.06)


def test_keys_zoom_and_the_export_is_whole(page: Any, tmp_path: Path) -> None:
    moved = "document.querySelector('.world').getAttribute('transform')"
    before = page.evaluate(moved)
    page.locator("#explorer").press("+")
    page.locator("#explorer").press("+")
    assert page.evaluate(moved) != before
    with page.expect_download() as saved:
        page.get_by_role("button", name="SVG", exact=True).click()
    saved.value.save_as(tmp_path / "zoomed.svg")
    assert 'class="world" transform="translate(0,0) scale(1)"' in (tmp_path / "zoomed.svg").read_text()
    page.locator("#explorer").press("0")
    assert page.evaluate(moved) == before


def test_a_broken_view_leaves_a_page_that_works(browser: Any, files: dict[str, Path], tmp_path: Path) -> None:
    errors: list[str] = []
    nonsense = {
        "tokens": [0, -1, 10**6, "x"], "at": 99, "pair": 10**6, "side": "up", "chosen": "9.mlp_in.1", "pins": 5,
        "groups": [{"name": 3, "ids": None}], "names": {"0.attn_v.1": 7}, "cut": ["a>b"], "keep": "all",
        "values": {"0.attn_v.1": "NaN", "0.attn_out.3": []}, "open": 4, "theme": "<b>",
    }  # fmt: skip
    page = opened(browser, files["quotes"], errors, hash="#" + quote(json.dumps(nonsense)))
    state, fresh = page.evaluate("[E().state, E().fresh()]")
    assert state == fresh | {"tokens": [0], "groups": [{"name": "3", "ids": []}]}
    (tmp_path / "view.json").write_text("no JSON")
    page.locator("input[type=file]").set_input_files(tmp_path / "view.json")
    page.wait_for_function(
        "() => document.querySelector('.wrong').textContent.startsWith('not a saved view')"
    )
    page.context.close()
    assert errors == []


@pytest.mark.parametrize("name", MADE)
def test_legible_in_a_small_window(name: str, browser: Any, files: dict[str, Path]) -> None:
    errors: list[str] = []
    page = opened(browser, files[name], errors, size=(800, 600))
    assert page.evaluate("document.documentElement.scrollWidth") <= 800
    for text in page.locator(".picture .end, .picture .name").all():
        box = text.bounding_box()
        assert 0 <= box["x"] <= 800 - box["width"], text.text_content()
        assert box["height"] >= 9, text.text_content()
    picture, panel = (page.locator(at).bounding_box() for at in (".picture", ".side"))
    assert picture["y"] + picture["height"] <= panel["y"] + 1
    page.mouse.move(400, picture["y"] + 100)
    moved = page.evaluate("document.querySelector('.world').getAttribute('transform')")
    page.mouse.wheel(0, 200)
    page.wait_for_function("() => window.scrollY > 0")
    assert page.evaluate("document.querySelector('.world').getAttribute('transform')") == moved
    page.context.close()
    assert errors == []


def test_answers_of_the_page_are_those_of_the_task() -> None:
    made = quotes(1)
    view = circuit_view(made.model, made.circuit, made.task)
    assert view["program"]["answers"] == answers_of(made.task)
    assert {pair["answer"] for pair in view["prompts"]} <= set(view["program"]["answers"])
