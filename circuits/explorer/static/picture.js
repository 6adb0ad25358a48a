// The drawing: places come from Python, marks and lines are SVG. Nothing here reads markup out of a text.

const SVG = "http://www.w3.org/2000/svg";
const LEGIBLE = 0.74; // of the size in which the texts are set
const CROWD = 300; // lines above which they are faint, but those of the chosen node
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
  let [low, high] = [0, picture.folded ? 4 : 0]; // no spread of an array into arguments: there may be too many
  for (const [, across] of points) [low, high] = [Math.min(low, across), Math.max(high, across)];
  const left = 24 + 8 * Math.max(MARGIN.left / 8 - 3, ...picture.ends.filter((end) => !end.id.startsWith("logit:")).map((end) => end.label.length));
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

function lineMark(line, s, most) {
  const weight = { weight: most.node, effect: most.effect }[line.kind] || most.end;
  const look = ["score", "residual"].includes(line.kind) ? line.kind : line.weight < 0 ? "negative" : "positive";
  const width = look === "score" || look === "residual" ? 1.6 : 1.2 + (5 * Math.abs(line.weight)) / (weight || 1);
  const classes = [look, line.kept && `kept-${line.kept}`, line.kind === "effect" && "measured"].filter(Boolean).join(" ");
  const path = make("path", { d: curved(line.points, s), class: `line ${classes}`, "stroke-width": width });
  const words = { residual: "same residual channel: carried along", score: "this key times this query" };
  const said = line.kind === "effect" ? `measured effect on the margin: ${signed(line.weight)} logits (no weight)` : words[line.kind] || `weight ${signed(line.weight)}`;
  path.append(make("title", {}, `${line.source} \u2192 ${line.target}\n${said}${line.kept ? `\n${KINDS[line.kept]}` : ""}`));
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
  const mark = make("g", { class: `node ${node.kind ? `kind-${node.kind}` : ""} ${node.core ? "core" : ""}`, tabindex: "-1", role: "button", "aria-label": node.id, transform: `translate(${x},${y})` });
  mark.dataset.id = node.id;
  mark.append(make("circle", { r: radius + 4, class: "ring" }), make("circle", { r: radius, class: "dot" }));
  if (node.core) mark.append(make("circle", { r: Math.max(1.5, radius * 0.3), class: "pith" }));
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
    const head = make("g", { class: "head", "data-x": s.x(column.along) });
    head.append(make("text", { y: 16 }, column.name.replace("attn_", "attn ").replace("mlp_", "mlp ")));
    head.append(make("text", { y: 29, class: "faint" }, names[column.name] || ""), make("text", { y: 42, class: "faint" }, where));
    return head;
  });
}

/**
 * The whole drawing as one SVG element whose marks carry data-id and whose lines carry data-source and data-target.
 * open: layers that are not folded, where the circuit is so large that layers fold.
 */
function drawing(view, open = []) {
  const whole = view.picture, folds = foldsOf(whole, open), canFold = whole.nodes.length > FOLD_ABOVE;
  const picture = canFold ? { ...folded(whole, folds), folded: folds.size > 0 } : whole, s = scales(picture);
  const weights = (kinds) => whole.lines.reduce((most, l) => (kinds.includes(l.kind) ? Math.max(most, Math.abs(l.weight)) : most), 0);
  const fed = new Set(whole.lines.filter((l) => l.kind !== "score").map((l) => l.target));
  const moved = new Set(whole.lines.map((l) => l.target)); // logits that some weight leads to
  const most = { node: weights(["weight"]), end: weights(["embed", "shared", "position", "several", "unembed"]), effect: weights(["effect"]) };
  const top = whole.nodes.reduce((most, n) => Math.max(most, n.effect || 0), 0);
  const height = Math.min(s.height, Math.max(700, 0.8 * s.width)); // more rows than that are reached by moving
  const svg = make("svg", { viewBox: `0 0 ${s.width} ${height}`, class: `picture ${picture.lines.length > CROWD ? "crowd" : ""}`, preserveAspectRatio: "xMidYMin", role: "group", "aria-label": "the circuit" });
  const world = make("g", { class: "world" }), heads = make("g", { class: "heads" }, make("rect", { x: -5000, y: -500, width: 20000, height: canFold ? 582 : 548, class: "ground-colour" }));
  const boxes = picture.boxes.map((box) => {
    const [x0, x1, y0, y1] = [s.x(box.along[0]) - 24, s.x(box.along[1]) + 24, s.y(box.across[0]) - 24, s.y(box.across[1]) + 24];
    const title = make("text", { x: x0 + 4, y: y0 - 4, class: "faint" }, `head ${box.layer}.${box.head}`);
    return make("g", {}, make("rect", { x: x0, y: y0, width: x1 - x0, height: y1 - y0, rx: 8, class: "box" }), title);
  });
  const ends = picture.ends.map((end) => {
    const isToken = !/^(logit|margin):/.test(end.id);
    return make("text", { x: s.x(end.at[0]) + (isToken ? -6 : 6), y: s.y(end.at[1]) + 4, class: `end ${isToken ? "left" : ""} ${isToken || moved.has(end.id) ? "" : "faint"}` }, end.label + (isToken || moved.has(end.id) ? "" : " (constant)"));
  });
  world.append(...boxes, ...picture.lines.map((l) => lineMark(l, s, most)), ...ends);
  world.append(...picture.nodes.map((n) => nodeMark(n, s, top, view, fed)));
  heads.append(...columnHeads(picture, s));
  if (canFold) world.append(...foldMarks(picture, folds, s));
  if (canFold) heads.append(...handles(picture, s));
  svg.append(world, heads);
  pannable(svg, world, heads, { down: (s.height - height) / 2, height: s.height, width: s.width, least: s.row > 24 ? LEGIBLE : 0 });
  return svg;
}

/** Wheel zooms about the pointer, dragging the ground moves; heads of columns stay above. `svg.show(mark)` moves a mark into view. */
function pannable(svg, world, heads, box) {
  let [x, y, scale] = [0, -box.down, 1], from = null, larger = 1;
  const show = () => {
    world.setAttribute("transform", `translate(${x},${y}) scale(${scale})`);
    const size = Math.min(scale, larger);
    for (const head of heads.querySelectorAll("[data-x]")) head.setAttribute("transform", `translate(${x + scale * head.dataset.x},0) scale(${size})`);
    heads.querySelector("rect").setAttribute("transform", `scale(1,${size})`);
  };
  /** Where the whole picture would be too small to read, its beginning, as large as it must be. */
  svg.fit = () => {
    const pixels = svg.getScreenCTM()?.a, shown = svg.getBoundingClientRect().width / pixels;
    if (!pixels || pixels >= box.least || scale !== 1) return;
    scale = larger = box.least / pixels;
    const { width, height } = svg.viewBox.baseVal, free = shown - scale * width;
    x = free > 0 ? (width - scale * width) / 2 : (width - shown) / 2;
    y = Math.min(0, height / 2 - scale * (box.height / 2) + 30);
    show();
  };
  const place = (event) => new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
  show();
  svg.show = (mark) => {
    const own = mark.getBoundingClientRect(), all = svg.getBoundingClientRect();
    if (!own.width || (own.left > all.left && own.right < all.right && own.top > all.top + 60 && own.bottom < all.bottom)) return;
    const [at, middle] = [place({ clientX: own.left, clientY: own.top }), place({ clientX: all.left + all.width / 2, clientY: all.top + all.height / 2 })];
    [x, y] = [x + middle.x - at.x, y + middle.y - at.y];
    show();
  };
  svg.addEventListener("wheel", (event) => {
    event.preventDefault();
    const p = place(event), next = Math.max(0.1, Math.min(8, scale * Math.exp(-event.deltaY / 500)));
    [x, y, scale] = [p.x - ((p.x - x) * next) / scale, p.y - ((p.y - y) * next) / scale, next];
    show();
  }, { passive: false });
  svg.addEventListener("pointerdown", (event) => { if (!event.target.closest(".node, .fold")) { from = place(event); svg.setPointerCapture(event.pointerId); } });
  svg.addEventListener("pointermove", (event) => {
    if (!from) return;
    const p = place(event);
    [x, y, from] = [x + p.x - from.x, y + p.y - from.y, p];
    show();
  });
  svg.addEventListener("pointerup", () => { from = null; });
}
