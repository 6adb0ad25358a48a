// What is asked of a circuit and what it answers: the state of a view, the forward pass, and what follows from both.
// No element of a page.

import { FEW, FOLD_ABOVE } from "./folds.js";
import { forward, unpacked } from "./forward.js";

const SLICE = 12; // milliseconds of work after which the page draws again

export class Session {
  /** @param {Object} view what circuits.explorer.circuit_view made */
  constructor(view) {
    Object.assign(this, { view, program: view.program && unpacked(view.program) });
    this.nodes = new Map(view.picture.nodes.map((n) => [n.id, n]));
    this.order = [...view.picture.nodes].sort((a, b) => (b.effect || 0) - (a.effect || 0)).map((n) => n.id);
    this.state = this.fresh();
  }

  /** What a view is when nothing was asked yet. */
  fresh() {
    const tokens = this.view.prompts.length ? this.view.prompts[0].clean : this.view.given || [];
    return {
      tokens, at: null, pair: 0, side: "clean", chosen: null, pins: [], groups: [], names: {}, cut: [], values: {},
      keep: this.nodes.size, open: [], theme: "",
    };
  }

  /** Take a change; what is chosen is shown, even inside a fold. */
  change(change) {
    Object.assign(this.state, change);
    const chosen = this.nodes.get(change.chosen);
    if (chosen) this.reveal([chosen]);
    this.compute();
  }

  /** Run the circuit on the prompt, under what is asked. */
  compute() {
    this.run = this.program && forward(this.program, this.state.tokens, this.edits());
  }

  reveal(nodes) {
    if (this.nodes.size > FOLD_ABOVE) this.state.open = [...new Set([...this.state.open, ...nodes.map((n) => n.layer)])];
  }

  /** Nodes whose id, label or given name holds a text; the layers of a few are opened. */
  found(text) {
    const wanted = text.toLowerCase(), { names } = this.state;
    const said = (n) => `${n.id} ${n.label} ${names[n.id] || ""}`.toLowerCase();
    return wanted ? [...this.nodes.values()].filter((n) => said(n).includes(wanted)) : [];
  }

  /** What the forward pass is asked: values set by hand, nodes below the slider held, edges cut. */
  edits() {
    const held = Object.fromEntries(this.order.slice(this.state.keep).map((id) => [id, this.nodes.get(id).held]));
    return { values: { ...held, ...this.state.values }, cut: new Set(this.state.cut) };
  }

  /** A node's values over the tokens of a run. */
  column(run, id) {
    const [site, index] = split(id);
    return run.acts[site].map((row) => row[index]);
  }

  /** The token that values are shown at: one that was clicked, or the last. */
  at() { return this.state.at ?? this.state.tokens.length - 1; }

  valueOf(id) {
    if (!this.run) return this.nodes.get(id).value;
    const [site, index] = split(id);
    return this.run.acts[site][this.at()][index];
  }

  /** How far a node's values reach on the task's prompts. */
  spread(id) {
    if (!this.program) return Math.max(0.1, Math.abs(this.valueOf(id)));
    const values = [...this.view.notes[id].highest, ...this.view.notes[id].lowest].map((place) => place.value);
    return Math.max(0.1, Math.max(...values, 0) - Math.min(...values, 0));
  }

  /** The pair that the prompt is one of, or null where it was typed. */
  ownPair() {
    const pair = this.view.prompts[this.state.pair];
    return pair && String(pair[this.state.side]) === String(this.state.tokens) ? pair : null;
  }

  /** The values that a node has on the other prompt of the pair, token by token; null where there is none. */
  others(id) {
    const pair = this.program && this.view.prompts[this.state.pair];
    return pair ? this.column(forward(this.program, pair[otherSide(this.state.side)]), id) : null;
  }

  /** Whether a weight leads along "source>target". */
  hasEdge(edge) {
    return this.view.picture.lines.some((l) => l.kind === "weight" && `${l.source}>${l.target}` === edge);
  }

  /** The kept heads of a run, as [layer, number]. */
  heads() {
    const ids = this.program ? [...this.nodes.keys()].filter((id) => /attn_[qkv]\./.test(id)) : [];
    return [...new Set(ids.map((id) => String(this.headOf(id))))].map((text) => text.split(",").map(Number));
  }

  headOf(id) {
    const [site, index] = split(id);
    return [Number(site.split(".").at(-2)), Math.floor(index / this.program.d_head)];
  }

  /**
   * Run the first pairs of the task under what is asked now, a little at a time so that the page stays quick;
   * `then` is called when `pairs` is there. While it is on the way, `pairs` is null.
   */
  ask(then) {
    const edits = this.edits(), asked = JSON.stringify([edits.values, this.state.cut]);
    if (asked === this.asked) return;
    clearTimeout(this.timer);
    Object.assign(this, { asked, pairs: null });
    const wanted = this.view.prompts.slice(0, this.view.n_shown), done = [];
    const step = () => {
      const until = performance.now() + SLICE;
      while (done.length < wanted.length && performance.now() < until) done.push(this.pairOf(wanted[done.length], edits));
      if (done.length < wanted.length) this.timer = setTimeout(step);
      else { this.pairs = done; then(); }
    };
    this.timer = setTimeout(step);
  }

  /** Losses of both prompts of a pair in nats, and the kept nodes' values over their tokens. */
  pairOf(pair, edits) {
    const p = this.program, place = (token) => p.answers.indexOf(token);
    const side = (tokens, right, wrong) => {
      const run = forward(p, tokens, edits), columns = new Map();
      for (const id of this.nodes.keys()) columns.set(id, this.column(run, id));
      return { loss: Math.log1p(Math.exp(run.logits[place(wrong)] - run.logits[place(right)])), columns };
    };
    return { clean: side(pair.clean, pair.answer, pair.foil), corrupt: side(pair.corrupt, pair.foil, pair.answer) };
  }

  /** Mean two-way loss in nats over the pairs that were run. */
  loss() {
    return this.pairs.reduce((sum, pair) => sum + pair.clean.loss + pair.corrupt.loss, 0) / (2 * this.pairs.length);
  }

  /** A node's value on both prompts of each pair, [clean, corrupted], at the token where they differ most. */
  sides(id) {
    if (!this.program) return this.view.notes[id].sides || [];
    return (this.pairs || []).map(({ clean, corrupt }) => apart(clean.columns.get(id), corrupt.columns.get(id)));
  }

  /** A saved view as a state of this circuit; what does not fit is left out. */
  fitting(saved) {
    const base = this.fresh(), known = (ids) => list(ids).filter((id) => this.nodes.has(id));
    const some = (object, fits) => {
      const good = Object.entries(object || {}).filter(([id, value]) => this.nodes.has(id) && fits(value));
      return Object.fromEntries(good);
    };
    const most = this.program ? this.program.n_ctx : base.tokens.length;
    const layers = new Set([...this.nodes.values()].map((n) => n.layer));
    const tokens = list(saved.tokens).filter((t) => Number.isInteger(t) && t >= 0 && t < this.view.tokens.texts.length);
    const number = (x) => Number.isFinite(x);
    return {
      ...base,
      tokens: tokens.length ? tokens.slice(0, most) : base.tokens,
      at: saved.at !== null && saved.at >= 0 && saved.at < tokens.length ? saved.at : null,
      pair: this.view.prompts[saved.pair] ? saved.pair : 0,
      side: saved.side === "corrupt" ? "corrupt" : "clean",
      chosen: this.nodes.has(saved.chosen) ? saved.chosen : null,
      pins: known(saved.pins),
      groups: list(saved.groups).map((g) => ({ name: String(g.name), ids: known(g.ids) })),
      names: some(saved.names, (name) => typeof name === "string"),
      cut: list(saved.cut).filter((edge) => this.hasEdge(edge)),
      values: some(saved.values, (x) => number(x) || (Array.isArray(x) && x.length > 0 && x.every(number))),
      keep: number(saved.keep) ? saved.keep : base.keep,
      open: list(saved.open).filter((layer) => layers.has(layer)),
      theme: ["light", "dark"].includes(saved.theme) ? saved.theme : "",
    };
  }
}

/** Site and index of a node's id. */
export function split(id) {
  const at = id.lastIndexOf(".");
  return [id.slice(0, at), Number(id.slice(at + 1))];
}

export function otherSide(side) { return side === "clean" ? "corrupt" : "clean"; }

export function toggled(items, item) {
  return items.includes(item) ? items.filter((other) => other !== item) : [...items, item];
}

function list(value) { return Array.isArray(value) ? value : []; }

/** Both values at the token where two columns differ most, the last one where they do not. */
function apart(a, b) {
  let best = a.length - 1;
  for (let i = 0; i < a.length; i++) if (Math.abs(a[i] - b[i]) > Math.abs(a[best] - b[best]) + 1e-6) best = i;
  return [a[best], b[best]];
}
