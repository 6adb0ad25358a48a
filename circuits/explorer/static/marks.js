// Marks, lines and heads of columns of the drawing: places come from Python, everything is SVG.

import { make, signed } from "./dom.js";

const LABEL = 11; // characters of a name at a mark
const COLUMN = 92, ROW = 54, MARGIN = { left: 90, top: 58, right: 90, bottom: 40 };
export const ROOM = 24; // pixels from row to row above which there is room for texts
export const KINDS = {
  core: "core: every run keeps it",
  contingent: "contingent: whether it is kept depends on the run",
  noise: "noise: few runs keep it",
};
/** What a site does, in a word. */
export const DOES = {
  attn_in: "reads", attn_q: "seeks", attn_k: "matches", attn_v: "carries", attn_head: "carries", attn_out: "writes",
  mlp_in: "reads", mlp_neuron: "fires", mlp_out: "writes",
};

/** Pixels of a place: rows run downwards, closer together where there are many. */
export function scales(picture) {
  const points = [
    ...picture.nodes.map((n) => n.at), ...picture.ends.map((e) => e.at), ...picture.lines.flatMap((l) => l.points),
  ];
  let [low, high] = [0, picture.folded ? 4 : 0]; // no spread of an array into arguments: there may be too many
  for (const [, across] of points) [low, high] = [Math.min(low, across), Math.max(high, across)];
  const inputs = picture.ends.filter((end) => !end.id.startsWith("logit:"));
  const left = 24 + 8 * Math.max(MARGIN.left / 8 - 3, ...inputs.map((end) => end.label.length));
  const rows = high - low, columns = Math.max(1, ...picture.columns.map((column) => column.along));
  const row = Math.max(14, Math.min(ROW, 900 / Math.max(rows, 1)));
  return {
    row,
    top: MARGIN.top + 40,
    rows: rows * row,
    x: (a) => left + a * COLUMN,
    y: (c) => MARGIN.top + 40 + (c - low) * row,
    width: left + MARGIN.right + columns * COLUMN,
    height: MARGIN.top + MARGIN.bottom + 40 + rows * row,
  };
}

/** A line through its points that changes rows smoothly, level at both ends. */
function curved(points, s) {
  let path = `M${s.x(points[0][0])},${s.y(points[0][1])}`;
  for (let i = 1; i < points.length; i++) {
    const [x0, y0, x1, y1] = [s.x(points[i - 1][0]), s.y(points[i - 1][1]), s.x(points[i][0]), s.y(points[i][1])];
    const middle = (x0 + x1) / 2;
    path += y0 === y1 ? `L${x1},${y1}` : `C${middle},${y0} ${middle},${y1} ${x1},${y1}`;
  }
  return path;
}

/** What a line stands for, as the pointer is told. */
function lineWords(line) {
  if (line.kind === "effect") return `measured effect on the margin: ${signed(line.weight)} logits (no weight)`;
  const words = { residual: "same residual channel: carried along", score: "this key times this query" };
  return words[line.kind] || `weight ${signed(line.weight)}`;
}

export function lineMark(line, s, most) {
  const greatest = { weight: most.node, effect: most.effect }[line.kind] || most.end || 1;
  const isPlain = ["score", "residual"].includes(line.kind);
  const look = isPlain ? line.kind : line.weight < 0 ? "negative" : "positive";
  const classes = [look, line.kept && `kept-${line.kept}`, line.kind === "effect" && "measured"].filter(Boolean).join(" ");
  const width = isPlain ? 1.6 : 1.2 + (5 * Math.abs(line.weight)) / greatest;
  const path = make("path", { d: curved(line.points, s), class: `line ${classes}`, "stroke-width": width });
  const kept = line.kept ? `\n${KINDS[line.kept]}` : "";
  path.append(make("title", {}, `${line.source} \u2192 ${line.target}\n${lineWords(line)}${kept}`));
  path.dataset.source = line.source;
  path.dataset.target = line.target;
  return path;
}

/** What reaches a node that no line is drawn to: positions, tokens that are no answers of the task, or nothing. */
function unseenInput(id, view, fed) {
  if (fed.has(id) || !view.program) return "";
  const reads = view.notes[id].reads, said = [];
  if (reads.some((text) => text.startsWith("position"))) said.push("position");
  if (reads.some((text) => text.startsWith("embeddings"))) said.push("tokens");
  return said.join(", ") || "constant";
}

/** One line on a node for the pointer: where it is highest and lowest. */
function nodeWords(node, note) {
  const said = [node.id];
  const place = (word, found) => `${word} at ${found.texts.join("")} (${signed(found.value)})`;
  if (note && note.constant !== null) said.push(`constant: ${signed(note.constant)}`);
  else if (note && note.highest.length) said.push(place("highest", note.highest[0]), place("lowest", note.lowest[0]));
  return said.join("\n");
}

/** A name as it fits beside a mark; the pointer is told the rest. */
export function shortened(name) {
  return name.length > LABEL ? `${name.slice(0, LABEL - 1)}\u2026` : name;
}

export function nodeMark(node, s, top, view, fed) {
  const size = Math.max(5, Math.min(13, s.row * 0.3));
  const radius = size * (0.55 + 0.45 * Math.sqrt(Math.max(0, node.effect || 0) / (top || 1)));
  const classes = ["node", node.kind && `kind-${node.kind}`, node.core && "core"].filter(Boolean).join(" ");
  const place = `translate(${s.x(node.at[0])},${s.y(node.at[1])})`;
  const mark = make("g", { class: classes, tabindex: "-1", role: "button", "aria-label": node.id, transform: place });
  mark.dataset.id = node.id;
  mark.append(make("circle", { r: radius + 4, class: "ring" }), make("circle", { r: radius, class: "dot" }));
  if (node.core) mark.append(make("circle", { r: Math.max(1.5, radius * 0.3), class: "pith" }));
  if (s.row > ROOM) {
    mark.append(make("text", { y: radius + 13, class: "name" }, shortened(node.label)));
    mark.append(make("text", { y: -radius - 4, class: "value" }));
    const unseen = unseenInput(node.id, view, fed);
    if (unseen) mark.append(make("text", { x: -radius - 6, y: 4, class: "constant" }, unseen));
  }
  mark.append(make("title", {}, nodeWords(node, view.notes[node.id])));
  return mark;
}

export function columnHeads(picture, s) {
  return picture.columns.map((column) => {
    const where = column.layer === null ? "" : `layer ${column.layer}`;
    const head = make("g", { class: "head", "data-x": s.x(column.along) });
    head.append(make("text", { y: 16 }, column.name.replace("attn_", "attn ").replace("mlp_", "mlp ")));
    head.append(make("text", { y: 29, class: "faint" }, DOES[column.name] || ""));
    head.append(make("text", { y: 42, class: "faint" }, where));
    return head;
  });
}

/** Boxes around the channels of one head. */
export function headBoxes(picture, s) {
  return picture.boxes.map((box) => {
    const [x0, x1] = [s.x(box.along[0]) - 24, s.x(box.along[1]) + 24];
    const [y0, y1] = [s.y(box.across[0]) - 24, s.y(box.across[1]) + 24];
    const title = make("text", { x: x0 + 4, y: y0 - 4, class: "faint" }, `head ${box.layer}.${box.head}`);
    return make("g", {}, make("rect", { x: x0, y: y0, width: x1 - x0, height: y1 - y0, rx: 8, class: "box" }), title);
  });
}

/** Tokens and positions at the left, logits at the right; moved: what some weight leads to. */
export function endMarks(picture, s, moved) {
  return picture.ends.map((end) => {
    const isInput = !/^(logit|margin):/.test(end.id), isConstant = !isInput && !moved.has(end.id);
    const classes = ["end", isInput && "left", isConstant && "faint"].filter(Boolean).join(" ");
    const place = { x: s.x(end.at[0]) + (isInput ? -6 : 6), y: s.y(end.at[1]) + 4 };
    const text = make("text", { ...place, class: classes }, end.label + (isConstant ? " (constant)" : ""));
    text.dataset.id = end.id;
    return text;
  });
}
