// The drawing: places come from Python, marks and lines are SVG. Nothing here reads markup out of a text.

const SVG = "http://www.w3.org/2000/svg";
const COLUMN = 92, ROW = 54, MARGIN = { left: 90, top: 58, right: 90, bottom: 40 };

/** An element with attributes and children; a child that is no element becomes text. */
function make(tag, attributes = {}, ...children) {
  const isSvg = ["svg", "g", "path", "circle", "text", "rect", "title"].includes(tag);
  const element = isSvg ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat());
  return element;
}

function signed(value, digits = 2) {
  const text = Math.abs(value).toFixed(digits);
  return (Number(text) === 0 ? "" : value < 0 ? "\u2212" : "+") + text;
}

/** Pixels of a place: rows run downwards, closer together where there are many. */
function scales(picture) {
  const points = [...picture.nodes.map((n) => n.at), ...picture.ends.map((e) => e.at), ...picture.lines.flatMap((l) => l.points)];
  let [low, high, columns] = [0, 0, 1]; // no spread of an array into arguments: there may be too many
  for (const [along, across] of points) [low, high, columns] = [Math.min(low, across), Math.max(high, across), Math.max(columns, along)];
  const rows = high - low;
  const row = Math.max(14, Math.min(ROW, 900 / Math.max(rows, 1)));
  return {
    row,
    x: (a) => MARGIN.left + a * COLUMN,
    y: (c) => MARGIN.top + 40 + (c - low) * row,
    width: MARGIN.left + MARGIN.right + columns * COLUMN,
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

function lineMark(line, s, most) {
  const weight = { weight: most.node, effect: most.effect }[line.kind] || most.end;
  const look = ["score", "residual"].includes(line.kind) ? line.kind : line.weight < 0 ? "negative" : "positive";
  const width = look === "score" || look === "residual" ? 1.6 : 1.2 + (5 * Math.abs(line.weight)) / (weight || 1);
  const path = make("path", { d: curved(line.points, s), class: `line ${look} ${line.kind === "effect" ? "measured" : ""}`, "stroke-width": width });
  const words = { residual: "same residual channel: carried along", score: "this key times this query" };
  const said = line.kind === "effect" ? `measured effect on the margin: ${signed(line.weight)} logits (no weight)` : words[line.kind] || `weight ${signed(line.weight)}`;
  path.append(make("title", {}, `${line.source} \u2192 ${line.target}\n${said}`));
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

function nodeMark(node, s, top, view, fed) {
  const size = Math.max(5, Math.min(13, s.row * 0.3));
  const radius = size * (0.55 + 0.45 * Math.sqrt(Math.max(0, node.effect || 0) / (top || 1)));
  const [x, y] = [s.x(node.at[0]), s.y(node.at[1])];
  const mark = make("g", { class: `node ${node.kind ? `kind-${node.kind}` : ""}`, tabindex: "-1", role: "button", "aria-label": node.id, transform: `translate(${x},${y})` });
  mark.dataset.id = node.id;
  mark.append(make("circle", { r: radius + 4, class: "ring" }), make("circle", { r: radius, class: "dot" }));
  if (s.row > 24) mark.append(make("text", { y: radius + 13, class: "name" }, node.label), make("text", { y: -radius - 4, class: "value" }));
  const unseen = unseenInput(node.id, view, fed);
  if (unseen && s.row > 24) mark.append(make("text", { x: -radius - 6, y: 4, class: "constant" }, unseen));
  mark.append(make("title", {}, node.id));
  return mark;
}

function columnHeads(picture, s) {
  const names = { attn_in: "reads", attn_q: "seeks", attn_k: "matches", attn_v: "carries", attn_head: "carries", attn_out: "writes", mlp_in: "reads", mlp_neuron: "fires", mlp_out: "writes" };
  return picture.columns.map((column) => {
    const where = column.layer === null ? "" : `layer ${column.layer}`;
    const head = make("g", { class: "head", transform: `translate(${s.x(column.along)},16)` });
    head.append(make("text", {}, column.name.replace("attn_", "attn ").replace("mlp_", "mlp ")));
    head.append(make("text", { y: 13, class: "faint" }, names[column.name] || ""), make("text", { y: 26, class: "faint" }, where));
    return head;
  });
}

/** The whole drawing as one SVG element whose marks carry data-id and whose lines carry data-source and data-target. */
function drawing(view) {
  const picture = view.picture, s = scales(picture);
  const weights = (kinds) => picture.lines.reduce((most, l) => (kinds.includes(l.kind) ? Math.max(most, Math.abs(l.weight)) : most), 0);
  const fed = new Set(picture.lines.filter((l) => l.kind !== "score").map((l) => l.target));
  const most = { node: weights(["weight"]), end: weights(["embed", "shared", "position", "several", "unembed"]), effect: weights(["effect"]) };
  const top = Math.max(0, ...picture.nodes.map((n) => n.effect || 0));
  const svg = make("svg", { viewBox: `0 0 ${s.width} ${s.height}`, class: "picture", preserveAspectRatio: "xMidYMin", role: "group", "aria-label": "the circuit" });
  const world = make("g", { class: "world" });
  const boxes = picture.boxes.map((box) => {
    const [x0, x1, y0, y1] = [s.x(box.along[0]) - 24, s.x(box.along[1]) + 24, s.y(box.across[0]) - 24, s.y(box.across[1]) + 24];
    const title = make("text", { x: x0 + 4, y: y0 - 4, class: "faint" }, `head ${box.layer}.${box.head}`);
    return make("g", {}, make("rect", { x: x0, y: y0, width: x1 - x0, height: y1 - y0, rx: 8, class: "box" }), title);
  });
  const ends = picture.ends.map((end) => {
    const isToken = !/^(logit|margin):/.test(end.id);
    return make("text", { x: s.x(end.at[0]) + (isToken ? -6 : 6), y: s.y(end.at[1]) + 4, class: `end ${isToken ? "left" : ""}` }, end.label);
  });
  world.append(...boxes, ...columnHeads(picture, s), ...picture.lines.map((l) => lineMark(l, s, most)), ...ends);
  world.append(...picture.nodes.map((n) => nodeMark(n, s, top, view, fed)));
  svg.append(world);
  pannable(svg, world);
  return svg;
}

/** Wheel zooms about the pointer, dragging the ground moves. */
function pannable(svg, world) {
  let [x, y, scale] = [0, 0, 1], from = null;
  const show = () => world.setAttribute("transform", `translate(${x},${y}) scale(${scale})`);
  const place = (event) => new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
  svg.addEventListener("wheel", (event) => {
    event.preventDefault();
    const p = place(event), next = Math.max(0.3, Math.min(8, scale * Math.exp(-event.deltaY / 500)));
    [x, y, scale] = [p.x - ((p.x - x) * next) / scale, p.y - ((p.y - y) * next) / scale, next];
    show();
  }, { passive: false });
  svg.addEventListener("pointerdown", (event) => { if (!event.target.closest(".node")) { from = place(event); svg.setPointerCapture(event.pointerId); } });
  svg.addEventListener("pointermove", (event) => {
    if (!from) return;
    const p = place(event);
    [x, y, from] = [x + p.x - from.x, y + p.y - from.y, p];
    show();
  });
  svg.addEventListener("pointerup", () => { from = null; });
}
