// The page: state, panes and what keys and pointers do. `mount` is the one way in, for the file and for Jupyter.

const MOST = 12; // heads told of in words
const LN_CHANCE = Math.log(2);
const CORE = { true: "Core: the whole model fails at the task without this node.", false: "Not core: the whole model does the task without this node too." };
const KINDS = { core: "core: every run keeps it", contingent: "contingent: whether it is kept depends on the run", noise: "noise: few runs keep it" };

class Explorer {
  constructor(root, view, onChange) {
    Object.assign(this, { root, view, onChange, program: view.program && unpacked(view.program) });
    this.nodes = new Map(view.picture.nodes.map((n) => [n.id, n]));
    this.order = [...view.picture.nodes].sort((a, b) => (b.effect || 0) - (a.effect || 0)).map((n) => n.id);
    this.state = this.fresh();
    this.build();
  }

  /** What a view is when nothing was asked yet. */
  fresh() {
    const tokens = this.view.prompts.length ? this.view.prompts[0].clean : this.view.given || [];
    return { tokens, at: null, pair: 0, side: "clean", chosen: null, pins: [], groups: [], names: {}, cut: [], values: {}, keep: this.nodes.size, open: [], theme: "" };
  }

  build() {
    this.ground = make("div", { class: "ground" });
    this.draw();
    this.panel = make("aside", { class: "panel", "aria-live": "polite" });
    this.pinned = make("section", { class: "pinned" });
    this.prompt = make("div", { class: "tokens" });
    this.answer = make("div", { class: "answer", role: "status" });
    this.root.replaceChildren(this.bar(), this.asking(), make("main", {}, this.ground, make("div", { class: "side" }, this.panel, this.pinned)));
    this.root.classList.add("explorer");
    this.root.tabIndex = 0;
    this.listen();
    this.render();
    requestAnimationFrame(() => this.svg.fit()); // in a notebook the element is put into the page only afterwards
  }

  /** The picture anew, with the layers that are open. */
  draw() {
    this.drawn = JSON.stringify(this.state.open);
    this.svg = drawing(this.view, this.state.open);
    this.marks = new Map([...this.svg.querySelectorAll(".node")].map((m) => [m.dataset.id, m]));
    this.lines = [...this.svg.querySelectorAll(".line")];
    this.listenTo(this.svg);
    this.ground.replaceChildren(this.svg);
    if (this.ground.isConnected) this.svg.fit();
  }

  bar() {
    const view = this.view;
    const button = (text, title, does) => make("button", { title, onclick: does }, text);
    this.search = make("input", { type: "search", placeholder: "search nodes (/)", "aria-label": "search", oninput: () => this.find(), onkeydown: (event) => { if (event.key === "Enter") this.chooseFound(); } });
    this.slider = make("input", { type: "range", min: 0, max: this.nodes.size, "aria-label": "nodes kept", oninput: () => this.set({ keep: Number(this.slider.value) }) });
    this.kept = make("span", { class: "kept" });
    this.file = make("input", { type: "file", accept: ".json", hidden: true, onchange: () => this.open(this.file.files[0]) });
    const loss = view.loss === null ? "" : ` \u00b7 ${view.calibrated ? "calibrated " : ""}task loss ${view.loss.toFixed(3)} nats`;
    return make("header", {},
      make("h1", {}, view.task), make("p", { class: "faint" }, `${this.nodes.size} nodes \u00b7 ${view.n_edges} edges${loss} \u00b7 ${view.subtitle || `everything else ${view.ablation}-ablated`}`),
      make("div", { class: "tools" }, this.search, make("label", {}, "kept ", this.slider, this.kept),
        button("save", "save this view as JSON", () => this.download("view.json", JSON.stringify(this.state), "application/json")),
        button("load", "load a saved view", () => this.file.click()), this.file,
        button("SVG", "export the picture", () => this.download("circuit.svg", this.svgText(), "image/svg+xml")),
        button("PNG", "export the picture", () => this.png()),
        button("\u25d0", "light or dark", () => this.set({ theme: this.isDark() ? "light" : "dark" })),
        button("reset", "forget what was asked", () => this.set(this.fresh()))));
  }

  asking() {
    const texts = this.view.tokens;
    this.typed = make("input", { class: "typed", "aria-label": "prompt", spellcheck: "false", disabled: texts.kind === null,
      title: !this.program ? "a file without weights: it is read, not run" : texts.kind === null ? "this tokenizer runs in Python only: pick one of the prompts" : "type a prompt; \\n is a new line",
      oninput: () => this.type() });
    this.pick = make("select", { "aria-label": "prompts of the task", onchange: () => this.choosePrompt(this.pick.value) },
      this.view.prompts.flatMap((_, i) => ["clean", "corrupt"].map((side) => make("option", { value: `${i} ${side}` }, `${side} ${i + 1}`))));
    this.wrong = make("span", { class: "wrong", role: "alert" });
    const note = "Type a prompt, or pick one of the task's. Bars under the tokens: where the chosen head looks. Numbers at the marks: their values at the underlined token; click another to read them there.";
    return make("section", { class: "asking" }, make("div", { class: "row" }, this.typed, this.pick, this.wrong), this.prompt, this.answer, make("p", { class: "faint" }, note));
  }

  listen() {
    this.root.addEventListener("pointerover", (event) => { const at = event.target.closest("[data-id]"); this.hover(at ? at.dataset.id : null); });
    this.root.addEventListener("keydown", (event) => this.key(event));
  }

  listenTo(svg) {
    svg.addEventListener("click", (event) => {
      const mark = event.target.closest(".node"), line = event.target.closest(".line"), fold = event.target.closest(".fold");
      if (fold) this.fold(fold.dataset.layer);
      else if (mark) event.ctrlKey || event.metaKey ? this.pin(mark.dataset.id) : this.set({ chosen: mark.dataset.id });
      else if (line && event.altKey) this.cut(`${line.dataset.source}>${line.dataset.target}`);
    });
    svg.addEventListener("dblclick", (event) => { const mark = event.target.closest(".node"); if (mark) this.rename(mark.dataset.id); });
    svg.addEventListener("pointerdown", (event) => this.drag(event));
  }

  /** Fold an open layer, or open a folded one. */
  fold(layer) {
    this.set({ open: toggled(this.state.open, layer) });
    this.svg.querySelector(`.fold[data-layer="${CSS.escape(layer)}"]`)?.focus();
  }

  /** Nodes whose id, label or given name holds what is searched for. */
  found() {
    const wanted = this.search.value.toLowerCase(), { names } = this.state;
    return wanted ? [...this.nodes.values()].filter((n) => `${n.id} ${n.label} ${names[n.id] || ""}`.toLowerCase().includes(wanted)) : [];
  }

  /** Show what is searched for; the layers of a few found nodes are opened. */
  find() {
    const found = this.found();
    if (found.length && found.length <= FEW && this.nodes.size > FOLD_ABOVE) this.set({ open: [...new Set([...this.state.open, ...found.map((n) => n.layer)])] });
    else this.paint();
  }

  chooseFound() { const [first] = this.found(); if (first) this.set({ chosen: first.id }); }

  /** Dragging a mark up or down changes its value at every token. */
  drag(event) {
    const mark = event.target.closest(".node");
    if (!mark) return;
    const id = mark.dataset.id, start = this.valueOf(id), from = event.clientY, scale = this.spread(id) / 60;
    const move = (e) => { if (Math.abs(e.clientY - from) > 3) this.setValue(id, start - (e.clientY - from) * scale); };
    const up = () => { window.removeEventListener("pointermove", move); window.removeEventListener("pointerup", up); };
    window.addEventListener("pointermove", move);
    window.addEventListener("pointerup", up);
  }

  /** How far a node's values reach on the task's prompts. */
  spread(id) {
    if (!this.program) return Math.max(0.1, Math.abs(this.valueOf(id)));
    const values = [...this.view.notes[id].highest, ...this.view.notes[id].lowest].map((place) => place.value);
    return Math.max(0.1, Math.max(...values, 0) - Math.min(...values, 0));
  }

  key(event) {
    if (event.target.matches("input, select")) { if (event.key === "Escape") this.root.focus(); return; }
    const fold = event.target.closest(".fold");
    if (fold && ["Enter", " "].includes(event.key)) { event.preventDefault(); this.fold(fold.dataset.layer); return; }
    const ids = [...this.nodes.keys()], at = ids.indexOf(this.state.chosen);
    const does = {
      "/": () => this.search.focus(),
      ArrowRight: () => this.set({ chosen: ids[(at + 1) % ids.length] }),
      ArrowLeft: () => this.set({ chosen: ids[(at - 1 + ids.length) % ids.length] }),
      p: () => this.state.chosen && this.pin(this.state.chosen),
      g: () => this.group(), r: () => this.state.chosen && this.rename(this.state.chosen),
      x: () => this.state.chosen && this.swap(this.state.chosen), Escape: () => this.set({ chosen: null }),
    }[event.key];
    if (does) { event.preventDefault(); does(); }
  }

  set(change) {
    Object.assign(this.state, change);
    const chosen = this.nodes.get(change.chosen); // what is chosen is shown, even inside a fold
    if (chosen && this.nodes.size > FOLD_ABOVE && !this.state.open.includes(chosen.layer)) this.state.open = [...this.state.open, chosen.layer];
    if (JSON.stringify(this.state.open) !== this.drawn) this.draw();
    this.render();
    if (chosen) this.svg.show(this.marks.get(chosen.id));
    this.onChange(this.state);
  }
  pin(id) { this.set({ pins: toggled(this.state.pins, id) }); }
  cut(edge) { if (this.view.picture.lines.some((l) => l.kind === "weight" && `${l.source}>${l.target}` === edge)) this.set({ cut: toggled(this.state.cut, edge) }); }
  setValue(id, value) { if (this.program) this.set({ chosen: id, values: { ...this.state.values, [id]: value } }); }
  group() { if (this.state.pins.length) this.set({ groups: [...this.state.groups, { name: `group ${this.state.groups.length + 1}`, ids: this.state.pins }], pins: [] }); }

  rename(id) {
    this.set({ chosen: id });
    this.panel.querySelector(".rename").focus();
    this.panel.querySelector(".rename").select();
  }

  /** The value that the node has on the other prompt of the pair, token by token: an interchange. */
  swap(id) {
    if (!this.program) return;
    const values = { ...this.state.values }, pair = this.view.prompts[this.state.pair];
    if (id in values) delete values[id];
    else if (pair) values[id] = this.column(forward(this.program, pair[this.state.side === "clean" ? "corrupt" : "clean"]), id);
    this.set({ values });
  }

  column(run, id) { const [site, index] = split(id); return run.acts[site].map((row) => row[index]); }
  valueOf(id) { if (!this.run) return this.nodes.get(id).value; const column = this.column(this.run, id); return column[this.at()]; }

  /** The token that values are shown at: one that was clicked, or the last. */
  at() { return this.state.at ?? this.state.tokens.length - 1; }

  choosePrompt(text) {
    const [i, side] = text.split(" "), pair = this.view.prompts[Number(i)];
    this.set({ tokens: pair[side], at: null, pair: Number(i), side });
  }

  type() {
    this.wrong.textContent = "";
    try {
      const tokens = encode(this.view.tokens, this.typed.value.replaceAll("\\n", "\n"));
      if (!tokens.length || tokens.length > this.program.n_ctx) throw new Error(`${tokens.length} tokens; this model reads 1 to ${this.program.n_ctx}`);
      this.set({ tokens, at: null });
    } catch (error) { this.wrong.textContent = error.message; }
  }

  /** What the forward pass is asked: values set by hand, nodes below the slider held, edges cut. */
  edits() {
    const held = Object.fromEntries(this.order.slice(this.state.keep).map((id) => [id, this.nodes.get(id).held]));
    return { values: { ...held, ...this.state.values }, cut: new Set(this.state.cut) };
  }

  /** Mean two-way loss in nats over the prompts of the page, under what is asked now. */
  loss() {
    const edits = this.edits(), p = this.program, losses = [], asked = JSON.stringify([edits.values, this.state.cut]);
    if (asked === this.asked) return this.lost;
    for (const pair of this.view.prompts.slice(0, 12)) for (const [side, right, wrong] of [["clean", "answer", "foil"], ["corrupt", "foil", "answer"]]) {
      const { logits } = forward(p, pair[side], edits);
      losses.push(Math.log1p(Math.exp(logits[p.answers.indexOf(pair[wrong])] - logits[p.answers.indexOf(pair[right])])));
    }
    [this.asked, this.lost] = [asked, losses.reduce((a, b) => a + b, 0) / losses.length];
    return this.lost;
  }

  render() {
    this.run = this.program && forward(this.program, this.state.tokens, this.edits());
    this.root.dataset.theme = this.state.theme;
    this.slider.value = this.state.keep;
    this.kept.textContent = ` ${this.state.keep} of ${this.nodes.size}${this.program ? `: loss ${this.loss().toFixed(3)} (uncalibrated; chance ${LN_CHANCE.toFixed(2)})` : ""}`;
    const text = this.state.tokens.map((t) => this.view.tokens.texts[t]).join(this.view.tokens.kind === "word" ? " " : "").replaceAll("\n", "\\n");
    if (document.activeElement !== this.typed) this.typed.value = text;
    this.pick.value = `${this.state.pair} ${this.state.side}`;
    this.paint();
    this.showPrompt();
    this.showAnswer();
    this.showPanel();
    this.showPinned();
  }

  paint() {
    const held = new Set(this.order.slice(this.state.keep)), found = this.search.value ? new Set(this.found().map((n) => n.id)) : null;
    for (const [id, mark] of this.marks) {
      const value = this.valueOf(id), name = this.state.names[id], label = this.nodes.get(id).label;
      mark.classList.toggle("chosen", id === this.state.chosen);
      mark.classList.toggle("pin", this.state.pins.includes(id));
      mark.classList.toggle("grouped", this.state.groups.some((g) => g.ids.includes(id)));
      mark.classList.toggle("held", held.has(id));
      mark.classList.toggle("set", id in this.state.values);
      mark.classList.toggle("off", found !== null && !found.has(id));
      mark.querySelector(".dot").style.fillOpacity = Math.min(1, 0.12 + (0.88 * Math.abs(value)) / this.spread(id));
      mark.querySelector(".dot").classList.toggle("below", value < 0);
      if (mark.querySelector(".value")) { mark.querySelector(".value").textContent = signed(value); mark.querySelector(".name").textContent = name || label; }
    }
    for (const text of this.svg.querySelectorAll(".fold .found")) text.textContent = found ? `${[...found].filter((id) => this.nodes.get(id).layer === text.parentNode.dataset.layer).length} found` : "";
    for (const line of this.lines) line.classList.toggle("of-chosen", [line.dataset.source, line.dataset.target].includes(this.state.chosen));
    for (const line of this.lines) line.classList.toggle("cut", this.state.cut.includes(`${line.dataset.source}>${line.dataset.target}`));
  }

  hover(id) {
    for (const at of this.root.querySelectorAll(".hover")) at.classList.remove("hover");
    if (!id) return;
    for (const at of this.root.querySelectorAll("[data-id]")) if (at.dataset.id === id) at.classList.add("hover");
    for (const line of this.lines) if ([line.dataset.source, line.dataset.target].includes(id)) line.classList.add("hover");
  }

  /** Head whose pattern is shown: the chosen node's, or the first that carries anything. */
  head() {
    const found = this.program && [this.state.chosen, ...this.nodes.keys()].find((id) => id && /attn_[qkv]/.test(id));
    if (!found) return null;
    const [site, index] = split(found);
    return [Number(site.split(".").at(-2)), Math.floor(index / this.program.d_head)];
  }

  showPrompt() {
    const head = this.head(), tokens = this.state.tokens, from = this.at();
    const row = tokens.map((_, i) => (head && i <= from ? this.run.patterns[head[0]][head[1]][from][i] : 0));
    const bar = (share) => make("i", { style: `height:${(22 * share).toFixed(1)}px` });
    const cell = (t, i) => make("button", { class: `token ${i === from ? "at" : ""}`, title: `position ${i}${head ? `: attention ${row[i].toFixed(2)}` : ""}`, onclick: () => this.set({ at: i === tokens.length - 1 ? null : i }) }, this.view.tokens.shown[t], bar(row[i]));
    const sink = 1 - row.reduce((a, b) => a + b, 0);
    this.prompt.replaceChildren(...tokens.map(cell), ...(head ? [make("span", { class: "token", title: `to the sink, which carries nothing: ${sink.toFixed(2)}` }, "sink", bar(sink)), make("span", { class: "faint" }, `head ${head[0]}.${head[1]} from the underlined token`)] : []));
  }

  /** What happens on this prompt, in words: where each head looks, and what breaks the circuit. */
  here() {
    if (!this.program) return [];
    const heads = new Set([...this.nodes.keys()].filter((id) => /attn_[qkv]/.test(id)).map((id) => { const [site, index] = split(id); return `${site.split(".").at(-2)}.${Math.floor(index / this.program.d_head)}`; }));
    const looks = [...heads].slice(0, MOST).map((head) => {
      const [layer, number] = head.split(".").map(Number), row = this.run.patterns[layer][number][this.at()];
      const most = row.indexOf(Math.max(...row)), sink = 1 - row.reduce((a, b) => a + b, 0), spread = row[most] < Math.max(0.3, sink);
      const where = sink > row[most] ? `mostly at nothing (sink ${(100 * sink).toFixed(0)} %)` : `${spread ? "a little of everywhere, most " : ""}at ${this.view.tokens.shown[this.state.tokens[most]]} (position ${most}, ${(100 * row[most]).toFixed(0)} %)`;
      return make("li", {}, `head ${head} looks ${where}`);
    });
    const breaks = this.order.map((id) => this.nodes.get(id)).filter((n) => n.effect > 0).slice(0, 4);
    const chip = (n) => make("li", {}, this.chip(n.id), ` ${signed(n.effect)}`);
    return [...(looks.length ? [make("h2", {}, "From the underlined token"), make("ul", { class: "looks" }, looks)] : []),
      ...(breaks.length ? [make("h2", {}, "What breaks it most"), make("p", { class: "faint" }, `Rise${this.view.effect.startsWith("of") ? "" : ", in"} ${this.view.effect}, when one node alone is ablated:`), make("ul", { class: "breaks" }, breaks.map(chip))] : [])];
  }

  showAnswer() {
    if (!this.run) return this.answer.replaceChildren(make("b", {}, "answer: "), ...this.view.answers.slice(0, 4).map(([text, share]) => make("span", {}, `${text} ${(100 * share).toFixed(0)} %`)));
    const ranked = this.run.logits.map((logit, i) => [logit, this.view.tokens.shown[this.program.answers[i]]]).sort((a, b) => b[0] - a[0]);
    const parts = ranked.slice(0, 4).map(([logit, text], i) => make("span", { class: i ? "" : "first" }, `${text} ${signed(logit)}`));
    const margin = ranked.length > 1 ? ` ahead by ${(ranked[0][0] - ranked[1][0]).toFixed(2)}` : "";
    this.answer.replaceChildren(make("b", {}, "answer: "), ...parts, make("span", { class: "faint" }, margin));
    this.answer.dataset.answer = ranked[0][1];
  }

  showPanel() {
    const id = this.state.chosen;
    if (!id) return this.panel.replaceChildren(...this.here(), make("h2", {}, "Read it"), ...this.reading(), ...this.trust());
    const note = this.view.notes[id], node = this.nodes.get(id), value = this.valueOf(id);
    const name = make("input", { class: "rename", value: this.state.names[id] || "", placeholder: "rename (r)", "aria-label": "name", onchange: (e) => this.set({ names: { ...this.state.names, [id]: e.target.value } }) });
    const number = make("input", { type: "number", step: "any", class: "number", value: value.toFixed(3), "aria-label": "value", onchange: (e) => this.setValue(id, Number(e.target.value)) });
    const held = this.state.values[id] === undefined ? `value at ${this.view.tokens.shown[this.state.tokens[this.at()]]} (position ${this.at()})` : "value set by hand";
    const effect = node.effect === null ? "not measured" : `${signed(node.effect, 3)} ${this.view.effect || ""}`;
    this.panel.replaceChildren(make("h2", {}, this.state.names[id] || node.label), make("p", { class: "faint" }, id), ...(KINDS[node.kind] ? [make("p", { class: "kind" }, KINDS[node.kind])] : []), ...(node.core === null || node.core === undefined ? [] : [make("p", { class: "in-core" }, CORE[node.core])]), name,
      make("p", {}, make("label", {}, `${held} `, number)),
      make("p", {}, make("button", { onclick: () => this.swap(id), class: "swap" }, id in this.state.values ? "let go (x)" : "take the other prompt's (x)"), make("button", { onclick: () => this.pin(id) }, "pin (p)")),
      ...this.contexts(note), this.list("Reads", note.reads), this.list("Writes", note.writes), make("p", {}, make("b", {}, "Without it: "), effect), this.weights(id));
  }

  contexts(note) {
    if (note.constant !== null) return [make("p", { class: "contexts" }, `Constant: ${signed(note.constant)} at every token of the task's prompts.`)];
    const line = (place) => make("li", {}, place.texts.slice(0, -1).join(""), make("mark", {}, place.texts.at(-1)), ` ${signed(place.value)}`);
    return ["highest", "lowest"].map((end) => make("div", { class: `contexts ${end}` }, make("b", {}, end === "highest" ? "Highest at" : "Lowest at"), make("ul", {}, note[end].map(line))));
  }

  list(title, texts) { return make("div", {}, make("b", {}, title), make("ul", {}, texts.map((text) => make("li", {}, text)))); }

  weights(id) {
    const lines = this.view.picture.lines.filter((l) => l.kind === "weight" && [l.source, l.target].includes(id));
    const row = (l) => { const key = `${l.source}>${l.target}`; return make("li", {}, `${l.source} \u2192 ${l.target} ${signed(l.weight)} `, ...(this.program ? [make("button", { class: "cut", "data-edge": key, onclick: () => this.cut(key) }, this.state.cut.includes(key) ? "mend" : "cut")] : [])); };
    return lines.length ? make("div", {}, make("b", {}, "Edges"), make("ul", {}, lines.map(row))) : make("div");
  }

  reading() {
    const kinds = new Set(this.view.picture.lines.map((l) => l.kind)), sites = new Set([...this.nodes.keys()].map((id) => split(id)[0].split(".").at(-1)));
    const said = ["Left to right: tokens write to residual channels, nodes read channels, and the last ones move the logits. Blue passes a value on, orange turns its sign."];
    if (kinds.has("effect")) said[0] = "Left to right. The model is dense, and no single weight leads from node to node: a broken line is the measured effect of one direct path on the answer's lead, in logits. Blue speaks for the answer, orange against it. A head's value is the length of what it carries.";
    if (kinds.has("score")) said.push("A dotted line pairs a query and a key: their product decides where a head looks.");
    else if (sites.has("attn_v")) said.push("No query is paired with a key here: its head looks where keys alone, or constants, point.");
    if (this.view.picture.nodes.some((n) => n.core)) said.push("A light centre marks the core: nodes that the whole model cannot do the task without. Of the others it has more than it needs, so another circuit may do without them.");
    if (this.view.picture.nodes.some((n) => n.kind)) said.push("Outlines: thick is kept by every run of pruning, dashed depends on the run, dotted is kept by few.");
    if (kinds.has("residual")) said.push("A grey line is one residual channel, written by one node and read by a later one.");
    said.push("Click a mark to ask about it, Ctrl-click to pin, double click to rename, drag it up or down to change its value; Alt-click a line to cut it. Keys: \u2190 \u2192 choose, p pin, g group, r rename, x exchange, / search, Esc.");
    return said.map((text) => make("p", {}, text));
  }

  /** The verdicts of a trust report, each with what it says under the pointer. */
  trust() {
    const report = this.view.trust;
    if (!this.program) return [];
    if (!report) return [make("h2", {}, "Trust"), make("p", { class: "trust faint" }, "Not asked yet: is the circuit what the model really uses? \u201ccircuits trust CIRCUIT.json\u201d asks, and \u201ccircuits show CIRCUIT.json\u201d then puts its verdicts here (in Python: to_html(..., trust=circuits.trust_report(...))).")];
    const line = (e) => make("li", { class: `verdict ${e.verdict.replace(" ", "-")}`, title: e.meaning }, make("b", {}, e.verdict), ` ${e.name}: ${e.shown[0]} against ${e.shown[1]} ${e.unit}`);
    return [make("h2", {}, "Trust"), make("p", {}, report.verdict), make("ul", { class: "trust" }, report.entries.map(line))];
  }

  /** A node named elsewhere than in the picture; a click chooses it. */
  chip(id) {
    const where = this.program ? ` (${split(id)[0]})` : "";
    const chip = make("button", { class: "chip", onclick: () => this.set({ chosen: id }) }, this.state.names[id] || this.nodes.get(id).label + where);
    chip.dataset.id = id;
    return chip;
  }

  showPinned() {
    const item = (id) => this.chip(id);
    const groups = this.state.groups.map((group, i) => make("p", { class: "group" },
      make("input", { value: group.name, "aria-label": "group name", onchange: (e) => { group.name = e.target.value; this.set({}); } }), ...group.ids.map(item),
      make("button", { title: "ungroup", onclick: () => this.set({ groups: this.state.groups.filter((_, j) => j !== i) }) }, "\u00d7")));
    const pins = this.state.pins.length ? [make("p", {}, make("b", {}, "Pinned "), ...this.state.pins.map(item), make("button", { onclick: () => this.group() }, "group (g)"))] : [];
    this.pinned.replaceChildren(...pins, ...groups);
  }

  /** Take a saved view; what does not fit this circuit is left out. */
  restore(saved) {
    const known = (ids) => (ids || []).filter((id) => this.nodes.has(id)), base = this.fresh();
    const some = (object) => Object.fromEntries(Object.entries(object || {}).filter(([id]) => this.nodes.has(id)));
    const tokens = (saved.tokens || []).filter((t) => Number.isInteger(t) && t >= 0 && t < this.view.tokens.texts.length).slice(0, this.program ? this.program.n_ctx : this.view.given.length);
    const layers = new Set(this.view.picture.nodes.map((n) => n.layer));
    this.set({ ...base, ...Object.fromEntries(Object.entries(saved).filter(([key]) => key in base)), at: saved.at >= 0 && saved.at < tokens.length ? saved.at : null, open: (saved.open || []).filter((layer) => layers.has(layer)), tokens: tokens.length ? tokens : base.tokens,
      chosen: this.nodes.has(saved.chosen) ? saved.chosen : null, pins: known(saved.pins), names: some(saved.names), values: some(saved.values),
      groups: (saved.groups || []).map((g) => ({ name: String(g.name), ids: known(g.ids) })) });
  }

  open(file) { if (file) file.text().then((text) => this.restore(JSON.parse(text))).catch((error) => { this.wrong.textContent = `not a saved view: ${error.message}`; }); }
  isDark() { return this.state.theme ? this.state.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches; }
  download(name, text, type) { const url = URL.createObjectURL(text instanceof Blob ? text : new Blob([text], { type })); make("a", { href: url, download: name }).click(); setTimeout(() => URL.revokeObjectURL(url), 1000); }

  /** The drawing by itself, with the looks that the page gives it. */
  svgText() {
    const copy = this.svg.cloneNode(true), own = [...this.svg.querySelectorAll("*")];
    [...copy.querySelectorAll("*")].forEach((element, i) => { const look = getComputedStyle(own[i]); for (const name of ["fill", "fill-opacity", "stroke", "stroke-dasharray", "opacity", "font", "text-anchor"]) element.style.setProperty(name, look.getPropertyValue(name)); });
    copy.setAttribute("xmlns", SVG);
    return new XMLSerializer().serializeToString(copy);
  }

  png() {
    const image = new Image(), box = this.svg.viewBox.baseVal;
    image.onload = () => { const canvas = make("canvas", { width: 2 * box.width, height: 2 * box.height }); canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height); canvas.toBlob((blob) => this.download("circuit.png", blob)); };
    image.src = "data:image/svg+xml;charset=utf-8," + encodeURIComponent(this.svgText());
  }
}

function split(id) { const at = id.lastIndexOf("."); return [id.slice(0, at), Number(id.slice(at + 1))]; }
function toggled(list, item) { return list.includes(item) ? list.filter((other) => other !== item) : [...list, item]; }

/** Show a view inside an element; the state of a file lives in the address after "#". */
function mount(root, view, onChange = (state) => history.replaceState(null, "", "#" + encodeURIComponent(JSON.stringify(state)))) {
  const explorer = new Explorer(root, view, onChange);
  if (view.state && location.hash.length < 2) explorer.restore(view.state);
  try { if (location.hash.length > 1 && root.id === "explorer") explorer.restore(JSON.parse(decodeURIComponent(location.hash.slice(1)))); } catch { /* an address of something else */ }
  root.explorer = explorer;
  return explorer;
}
