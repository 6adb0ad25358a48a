// The pane of the chosen node: what turns it on, what it reads and writes, what breaks without it.

import { make, signed } from "./dom.js";
import { KINDS } from "./marks.js";
import { overview } from "./overview.js";

const CORE = {
  true: "Core: the whole model fails at the task without this node.",
  false: "Not core: the whole model does the task without this node too.",
};
const SIDE = 132, RIM = 14; // of the picture of values, and its margin

/** @param {Explorer} explorer */
export function panelPane(explorer) {
  const element = make("aside", { class: "panel", "aria-live": "polite" });
  let shown = null;
  const show = () => {
    const id = explorer.state.chosen;
    element.replaceChildren(...(id ? about(explorer, id) : overview(explorer)));
    if (id !== shown) element.parentNode?.scrollTo(0, 0);
    shown = id;
  };
  return { element, show };
}

function about(explorer, id) {
  const { view, state } = explorer, note = view.notes[id], node = explorer.nodes.get(id);
  const effect = (node.effect ?? null) === null ? "not measured" : `${signed(node.effect, 3)} ${view.effect || ""}`;
  const has = { kind: KINDS[node.kind], core: CORE[node.core] };
  return [
    make("h2", {}, state.names[id] || node.label),
    make("p", { class: "faint" }, id),
    ...(has.kind ? [make("p", { class: "kind" }, has.kind)] : []),
    ...(has.core ? [make("p", { class: "in-core" }, has.core)] : []),
    rename(explorer, id),
    ...value(explorer, id),
    ...contexts(note),
    ...sides(explorer, id),
    ends(explorer, id, "Reads", note.reads),
    ends(explorer, id, "Writes", note.writes),
    make("p", {}, make("b", {}, "Without it: "), effect),
  ];
}

function rename(explorer, id) {
  const named = (event) => explorer.set({ names: { ...explorer.state.names, [id]: event.target.value } });
  const value = explorer.state.names[id] || "";
  return make("input", { class: "rename", value, placeholder: "rename (r)", "aria-label": "name", onchange: named });
}

/** Its value at the underlined token, to be read and to be set. */
function value(explorer, id) {
  const { state, view } = explorer, at = explorer.at(), isSet = id in state.values;
  const where = isSet ? "value set by hand" : `value at ${view.tokens.shown[state.tokens[at]]} (position ${at})`;
  const number = make("input", {
    type: "number", step: "any", class: "number", "aria-label": "value", disabled: !explorer.program,
    value: explorer.valueOf(id).toFixed(3),
    onchange: (event) => explorer.setValue(id, Number(event.target.value)),
  });
  const does = isSet ? "let go (x)" : "take the other prompt's (x)";
  const swap = make("button", { class: "swap", onclick: () => explorer.swap(id) }, does);
  const pin = make("button", { onclick: () => explorer.pin(id) }, state.pins.includes(id) ? "unpin (p)" : "pin (p)");
  return [make("p", {}, make("label", {}, `${where} `, number)), make("p", {}, ...(explorer.program ? [swap] : []), pin)];
}

/** Where it is highest and lowest on the task's prompts. */
function contexts(note) {
  if (note.constant !== null) {
    return [make("p", { class: "contexts" }, `Constant: ${signed(note.constant)} at every token of the task's prompts.`)];
  }
  const line = ({ texts, value }) => {
    return make("li", {}, texts.slice(0, -1).join(""), make("mark", {}, texts.at(-1)), ` ${signed(value)}`);
  };
  const titles = { highest: "Highest at", lowest: "Lowest at" };
  return Object.keys(titles).filter((end) => note[end].length).map((end) =>
    make("div", { class: `contexts ${end}` }, make("b", {}, titles[end]), make("ul", {}, note[end].map(line))));
}

/** Its values on the clean prompts against those on the corrupted ones. */
function sides(explorer, id) {
  const pairs = explorer.sides(id);
  if (!pairs.length) return [];
  const all = pairs.flat(), [low, high] = [Math.min(0, ...all), Math.max(0, ...all)];
  const isSame = pairs.every(([a, b]) => Math.abs(a - b) < 1e-3);
  const words = isSame
    ? "the same on both prompts of each pair"
    : `from ${signed(low)} to ${signed(high)}; off the diagonal, the node tells the two apart`;
  const says = `Across: on clean prompts, up: on corrupted ones, at the token where they differ most; one dot a pair: ${words}.`;
  const row = make("div", { class: "row" }, dots(pairs, low, high), make("p", { class: "faint" }, says));
  return [make("div", { class: "sides" }, make("b", {}, "Clean against corrupted"), row)];
}

/** One dot a pair, with the diagonal and both zeros. */
function dots(pairs, low, high) {
  const along = (v) => RIM + ((v - low) / (high - low || 1)) * (SIDE - 2 * RIM), up = (v) => SIDE - along(v);
  const line = (x1, y1, x2, y2, look) => make("line", { x1, y1, x2, y2, class: look });
  const dot = ([clean, corrupt]) => {
    const says = `clean ${signed(clean)}, corrupted ${signed(corrupt)}`;
    return make("circle", { r: 3.5, cx: along(clean), cy: up(corrupt), class: "pair-dot" }, make("title", {}, says));
  };
  const frame = { viewBox: `0 0 ${SIDE} ${SIDE}`, width: SIDE, height: SIDE, role: "img" };
  return make("svg", { ...frame, "aria-label": "values on clean against corrupted prompts" },
    line(along(low), up(low), along(high), up(high), "diagonal"),
    line(along(low), up(0), along(high), up(0), "zero"),
    line(along(0), up(low), along(0), up(high), "zero"),
    ...pairs.map(dot));
}

/** What it reads or writes; nodes named in a line are chips, and a weight to them can be cut. */
function ends(explorer, id, title, texts) {
  const lines = texts.map((text) => make("li", {}, ...endWords(explorer, id, title, text)));
  return make("div", {}, make("b", {}, title), make("ul", { class: title.toLowerCase() }, lines));
}

function endWords(explorer, id, title, text) {
  const words = text.split(/(\s+)/), at = words.findIndex((word) => explorer.nodes.has(word));
  if (at < 0) return [text];
  const other = words[at], edge = title === "Reads" ? `${other}>${id}` : `${id}>${other}`;
  const said = [words.slice(0, at).join(""), explorer.chip(other), words.slice(at + 1).join("")];
  if (!explorer.program || !explorer.hasEdge(edge)) return said;
  const does = explorer.state.cut.includes(edge) ? "mend" : "cut";
  return [...said, " ", make("button", { class: "cut", "data-edge": edge, onclick: () => explorer.cut(edge) }, does)];
}
