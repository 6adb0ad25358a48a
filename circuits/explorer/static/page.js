// The page: a session on the screen. `mount` is the one way in, for the file and for Jupyter.

import { listen, listenToDrawing } from "./controls.js";
import { make, signed } from "./dom.js";
import { fileTools } from "./files.js";
import { FEW } from "./folds.js";
import { shortened } from "./marks.js";
import { panelPane } from "./panel.js";
import { drawing } from "./picture.js";
import { pinsPane } from "./pins.js";
import { promptPane } from "./prompt.js";
import { Session, otherSide, split, toggled } from "./session.js";
import { sizePane } from "./size.js";
import { encode } from "./tokens.js";

class Explorer extends Session {
  /** onChange: told of each new state. */
  constructor(root, view, onChange) {
    super(view);
    Object.assign(this, { root, onChange });
    this.build();
  }

  build() {
    const [size, prompt, panel, pins] = [sizePane, promptPane, panelPane, pinsPane].map((pane) => pane(this));
    this.panes = [size, prompt, panel, pins];
    this.wrong = prompt.wrong;
    this.ground = make("div", { class: "ground" });
    this.draw();
    const side = make("div", { class: "side" }, panel.element, pins.element);
    this.root.replaceChildren(this.bar(size.element), prompt.element, make("main", {}, this.ground, side));
    this.root.classList.add("explorer");
    this.root.tabIndex = 0;
    listen(this);
    this.compute();
    this.render();
    requestAnimationFrame(() => { // in a notebook the element is put into the page only afterwards
      this.svg.fit();
      this.isFitted = true;
    });
  }

  bar(size) {
    const { view } = this;
    this.search = make("input", {
      type: "search", placeholder: "search nodes (/)", "aria-label": "search", oninput: () => this.find(),
      onkeydown: (event) => { if (event.key === "Enter") this.chooseFound(); },
    });
    const about = [`${this.nodes.size} nodes`, `${view.n_edges} edges`];
    if (view.loss !== null) about.push(`${view.calibrated ? "calibrated " : ""}task loss ${view.loss.toFixed(3)} nats`);
    about.push(view.subtitle || `everything else ${view.ablation}-ablated`);
    return make("header", {}, make("h1", {}, view.task), make("p", { class: "faint" }, about.join(" \u00b7 ")),
      make("div", { class: "tools" }, this.search, size, ...fileTools(this)));
  }

  /** The picture anew, with the layers that are open. */
  draw() {
    this.drawn = JSON.stringify(this.state.open);
    this.svg = drawing(this.view, this.state.open);
    this.marks = new Map([...this.svg.querySelectorAll(".node")].map((m) => [m.dataset.id, m]));
    this.lines = [...this.svg.querySelectorAll(".line")];
    listenToDrawing(this, this.svg);
    this.ground.replaceChildren(this.svg);
    if (this.ground.isConnected) this.svg.fit();
  }

  /** Take a change, and show and tell what it does. */
  set(change) {
    this.change(change);
    if (JSON.stringify(this.state.open) !== this.drawn) this.draw();
    this.render();
    const mark = this.marks.get(change.chosen);
    if (mark) this.svg.show(mark);
    this.onChange(this.state);
  }

  render() {
    this.root.dataset.theme = this.state.theme;
    if (this.program) this.ask(() => this.showPanes());
    this.paint();
    this.showPanes();
  }

  showPanes() { for (const pane of this.panes) pane.show(); }

  paint() {
    const found = this.search.value ? new Set(this.found(this.search.value).map((n) => n.id)) : null;
    const held = new Set(this.order.slice(this.state.keep)), { chosen, cut } = this.state;
    for (const [id, mark] of this.marks) this.paintMark(id, mark, held, found);
    for (const text of this.svg.querySelectorAll(".fold .found")) {
      const inside = (id) => this.nodes.get(id).layer === text.parentNode.dataset.layer;
      text.textContent = found ? `${[...found].filter(inside).length} found` : "";
    }
    for (const line of this.lines) {
      const { source, target } = line.dataset;
      line.classList.toggle("of-chosen", chosen !== null && [source, target].includes(chosen));
      line.classList.toggle("held", held.has(source) || held.has(target));
      line.classList.toggle("cut", cut.includes(`${source}>${target}`));
    }
  }

  paintMark(id, mark, held, found) {
    const { state } = this, value = this.valueOf(id), dot = mark.querySelector(".dot"), name = mark.querySelector(".name");
    const looks = {
      chosen: id === state.chosen, pin: state.pins.includes(id), grouped: state.groups.some((g) => g.ids.includes(id)),
      held: held.has(id), set: id in state.values, off: found !== null && !found.has(id),
    };
    for (const [look, has] of Object.entries(looks)) mark.classList.toggle(look, has);
    dot.style.fillOpacity = Math.min(1, 0.12 + (0.88 * Math.abs(value)) / this.spread(id));
    dot.classList.toggle("below", value < 0);
    if (!name) return;
    mark.querySelector(".value").textContent = signed(value);
    name.textContent = shortened(state.names[id] || this.nodes.get(id).label);
  }

  /** Mark these nodes and tokens in every pane, and the lines at them. */
  hover(ids) {
    for (const at of this.root.querySelectorAll(".hover")) at.classList.remove("hover");
    if (!ids.length) return;
    for (const at of this.root.querySelectorAll("[data-id]")) at.classList.toggle("hover", ids.includes(at.dataset.id));
    const [first, second] = ids; // a line has two
    const touches = ({ source, target }) => (second ? first === source && second === target : [source, target].includes(first));
    for (const line of this.lines) line.classList.toggle("hover", touches(line.dataset));
  }

  /** Fold an open layer, or open a folded one. */
  fold(layer) {
    this.set({ open: toggled(this.state.open, layer) });
    this.svg.querySelector(`.fold[data-layer="${CSS.escape(layer)}"]`)?.focus();
  }

  /** Show what is searched for. */
  find() {
    const found = this.found(this.search.value), before = this.state.open.length;
    if (found.length && found.length <= FEW) this.reveal(found);
    if (this.state.open.length > before) this.set({});
    else this.paint();
  }

  chooseFound() {
    const [first] = this.found(this.search.value);
    if (first) this.set({ chosen: first.id });
  }

  pin(id) { this.set({ pins: toggled(this.state.pins, id) }); }
  cut(edge) { if (this.program && this.hasEdge(edge)) this.set({ cut: toggled(this.state.cut, edge) }); }

  setValue(id, value) {
    if (this.program && Number.isFinite(value)) this.set({ chosen: id, values: { ...this.state.values, [id]: value } });
  }

  group() {
    const { pins, groups } = this.state;
    if (pins.length) this.set({ groups: [...groups, { name: `group ${groups.length + 1}`, ids: pins }], pins: [] });
  }

  rename(id) {
    this.set({ chosen: id });
    const field = this.root.querySelector(".rename");
    field.focus();
    field.select();
  }

  /** The value that the node has on the other prompt of the pair, token by token (an interchange), or its own again. */
  swap(id) {
    const values = { ...this.state.values }, others = this.others(id);
    if (id in values) delete values[id];
    else if (others) values[id] = others;
    this.set({ values });
  }

  choosePrompt(i, side) { this.set({ tokens: this.view.prompts[i][side], at: null, pair: Number(i), side }); }

  /** The other prompt of the pair. */
  turn() { if (this.view.prompts.length) this.choosePrompt(this.state.pair, otherSide(this.state.side)); }

  type(text) {
    this.complain("");
    try {
      const tokens = encode(this.view.tokens, text), most = this.program.n_ctx;
      if (!tokens.length || tokens.length > most) throw new Error(`${tokens.length} tokens; this model reads 1 to ${most}`);
      this.set({ tokens, at: null });
    } catch (error) { this.complain(error.message); }
  }

  complain(text) { this.wrong.textContent = text; }

  /** A node named elsewhere than in the picture; a click chooses it. */
  chip(id) {
    const where = this.program ? ` (${split(id)[0]})` : "", name = this.state.names[id] || this.nodes.get(id).label;
    const chip = make("button", { class: "chip", onclick: () => this.set({ chosen: id }) }, name + where);
    chip.dataset.id = id;
    return chip;
  }

  restore(saved) { this.set(this.fitting(saved)); }
  isDark() { return this.state.theme ? this.state.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches; }
}

/** The state of a file lives in the address after "#". */
function intoAddress(state) { history.replaceState(null, "", "#" + encodeURIComponent(JSON.stringify(state))); }

/** Show a view inside an element; onChange is told of each new state. */
export function mount(root, view, onChange = intoAddress) {
  const explorer = new Explorer(root, view, onChange), hash = location.hash.slice(1);
  if (view.state && !hash) explorer.restore(view.state);
  try { if (hash && root.id === "explorer") explorer.restore(JSON.parse(decodeURIComponent(hash))); } catch { /* an address of something else */ }
  root.explorer = explorer;
  return explorer;
}
