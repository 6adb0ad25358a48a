// What the panel says while no node is chosen: how the answer comes about, where heads look, what breaks the circuit,
// how to read the picture, how far to trust it.

import { make, percent, signed } from "./dom.js";
import { DOES } from "./marks.js";
import { split } from "./session.js";
import { drawnBy, story } from "./story.js";

const MOST = 12; // heads told of in words
const MOSTLY = 0.3; // of its attention that a head pays to one token where it is said to look at that

/** @param {Explorer} explorer */
export function overview(explorer) {
  return [...comes(explorer), ...looks(explorer), ...breaks(explorer), ...trust(explorer.view), ...reading(explorer)];
}

/** The way of the answer, from the token that makes the difference to the lead. */
function comes(explorer) {
  const told = story(explorer);
  if (!told || !told.steps.length) return [];
  const text = (token) => quoted(explorer.view.tokens.shown[token]), whole = told.here - told.there;
  const steps = told.steps.map((step, i) => make("li", {}, ...stepWords(explorer, step, told.steps[i + 1])));
  const leads = ` by ${signed(told.here)} (${signed(told.there)}); `;
  const share = `this last node makes ${signed(told.share)} of the difference of ${signed(whole)}`;
  const lead = ["so ", text(told.right), " leads ", text(told.wrong), leads, share];
  return [
    make("h2", {}, "How this answer comes about"),
    make("p", { class: "faint" }, PART),
    make("ol", { class: "story" }, steps, make("li", {}, ...lead)),
  ];
}

/** A token set apart from the words around it. */
function quoted(text) { return make("code", {}, text); }

function stepWords(explorer, step, next) {
  const shown = explorer.view.tokens.shown, place = (at) => [quoted(shown[explorer.state.tokens[at]]), ` (position ${at})`];
  if (!step.id) {
    const differs = step.token === step.other ? [] : [", where the other prompt has ", quoted(shown[step.other])];
    return ["token ", ...place(step.at), ...differs];
  }
  const [site] = split(step.id), name = site.split(".").at(-1), value = `${signed(step.here)} (${signed(step.there)})`;
  const said = [explorer.chip(step.id), ` ${DOES[name] || ""} ${value} at `, ...place(step.at)];
  if (!step.looks) return said;
  const [from, here, there] = step.looks, head = explorer.headOf(step.id).join("."), to = next ? place(next.at) : ["the answer"];
  return step.turns
    ? [...said, `: so head ${head} looks from `, ...to, " at ", ...place(from), ` with ${percent(here)} (${percent(there)})`]
    : [...said, `; head ${head} takes it to `, ...to, `, which looks here with ${percent(here)}`];
}

/** Where each head looks from the underlined token, and which channel draws it there. */
function looks(explorer) {
  const lines = explorer.heads().slice(0, MOST).map(([layer, head]) =>
    make("li", {}, `head ${layer}.${head} looks `, ...lookWords(explorer, layer, head)));
  if (!lines.length) return [];
  return [make("h2", {}, "Where heads look from the underlined token"), make("ul", { class: "looks" }, lines)];
}

function lookWords(explorer, layer, head) {
  const row = explorer.run.patterns[layer][head][explorer.at()], most = row.indexOf(Math.max(...row));
  const sink = 1 - row.reduce((a, b) => a + b, 0);
  if (sink > 0.5) return [`mostly at nothing (sink ${percent(sink)})`];
  const spread = row[most] < MOSTLY ? "a little of everywhere, most " : "";
  const token = quoted(explorer.view.tokens.shown[explorer.state.tokens[most]]), draws = drawnBy(explorer, layer, head, most);
  const chips = draws.flatMap((id, i) => [i ? " times " : ", drawn by ", explorer.chip(id)]);
  return [`${spread}at `, token, ` (position ${most}, ${percent(row[most])})`, ...chips];
}

/** The nodes without which the circuit fails most. */
function breaks(explorer) {
  const { view } = explorer, worst = explorer.order.map((id) => explorer.nodes.get(id)).filter((n) => n.effect > 0).slice(0, 4);
  if (!worst.length || !explorer.program) return [];
  const unit = view.effect.startsWith("of") ? "" : ", in";
  return [
    make("h2", {}, "What breaks it most"),
    make("p", { class: "faint" }, `Rise${unit} ${view.effect}, when one node alone is ablated:`),
    make("ul", { class: "breaks" }, worst.map((n) => make("li", {}, explorer.chip(n.id), ` ${signed(n.effect)}`))),
  ];
}

/** The verdicts of a trust report, each with what it means under the pointer. */
function trust(view) {
  if (!view.model) return []; // a graph that others made has no model here
  const title = make("h2", {}, "Trust");
  if (!view.trust) return [title, make("p", { class: "trust faint" }, UNASKED)];
  const line = (e) => {
    const says = ` ${e.name}: ${e.shown[0]} against ${e.shown[1]} ${e.unit}`, look = e.verdict.replace(" ", "-");
    return make("li", { class: `verdict ${look}`, title: e.meaning }, make("b", {}, e.verdict), says);
  };
  return [title, make("p", {}, view.trust.verdict), make("ul", { class: "trust" }, view.trust.entries.map(line))];
}

/** How to read the picture: of what is in it only. */
function reading(explorer) {
  const { picture } = explorer.view, kinds = new Set(picture.lines.map((l) => l.kind));
  const carries = [...explorer.nodes.keys()].some((id) => id.includes("attn_v."));
  const said = [
    kinds.has("effect") ? READ.measured : READ.weights,
    kinds.has("score") ? READ.score : carries && READ.noScore,
    picture.nodes.some((n) => n.core) && READ.core,
    picture.nodes.some((n) => n.kind) && READ.kinds,
    kinds.has("residual") && READ.residual,
  ].filter(Boolean);
  return [
    make("h2", {}, "Read it"), ...said.map((text) => make("p", {}, text)),
    make("h2", {}, "Ask it"), make("ul", { class: "keys" }, KEYS.map((text) => make("li", {}, text))),
  ];
}

const PART = "The strongest way along which this prompt and the other of its pair part. In brackets: values on the other prompt.";
const UNASKED = "Not asked yet: is the circuit what the model really uses? \u201ccircuits trust CIRCUIT.json\u201d asks, and "
  + "\u201ccircuits show CIRCUIT.json\u201d then puts its verdicts here (in Python: to_html(..., "
  + "trust=circuits.trust_report(...))).";
const READ = {
  weights: "Left to right: tokens write to residual channels, nodes read channels, and the last ones move the logits. "
    + "Lines are weights: blue passes a value on, orange turns its sign. Marks are nodes: blue where their value is above "
    + "zero, orange below, fuller the further from it.",
  measured: "Left to right. The model is dense, and no single weight leads from node to node: a broken line is the "
    + "measured effect of one direct path on the answer's lead, in logits. Blue speaks for the answer, orange against "
    + "it. A head's value is the length of what it carries.",
  score: "A dotted line pairs a query and a key: their product decides where a head looks.",
  noScore: "No query is paired with a key here: its head looks where keys alone, or constants, point.",
  core: "A light centre marks the core: nodes that the whole model cannot do the task without. Of the others it has "
    + "more than it needs, so another circuit may do without them.",
  kinds: "Outlines: thick is kept by every run of pruning, dashed depends on the run, dotted is kept by few.",
  residual: "A grey line is one residual channel, written by one node and read by a later one.",
};
const KEYS = [
  "Click a mark to ask about it (\u2190 \u2192 choose the next, Esc none).",
  "Ctrl-click or p pins it, g groups what is pinned, double click or r renames.",
  "Drag it up or down to change its value; x takes the value of the other prompt, o turns to that prompt.",
  "Alt-click a line to cut it.",
  "/ searches; wheel or + and \u2212 zoom, 0 shows all, dragging the ground moves it.",
];
