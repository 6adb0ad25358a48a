// Folds: in a large circuit each layer is one mark that shows its count, until it is opened.

export const FOLD_ABOVE = 300; // nodes of a circuit
export const FEW = 40; // nodes found by a search whose layers are opened at once

/** Layers that are folded while only those in `open` are shown: Map of name to its nodes. A small circuit has none. */
export function foldsOf(picture, open) {
  const folds = new Map();
  if (picture.nodes.length <= FOLD_ABOVE) return folds;
  for (const node of picture.nodes) {
    if (open.includes(node.layer)) continue;
    if (!folds.has(node.layer)) folds.set(node.layer, []);
    folds.get(node.layer).push(node);
  }
  return folds;
}

/** What is left to draw of a picture: nodes of open layers, and lines that end at a fold gathered into one a pair. */
export function folded(picture, folds) {
  const inside = new Map([...folds].flatMap(([layer, nodes]) => nodes.map((node) => [node.id, layer])));
  const lines = [], gathered = new Map();
  for (const line of picture.lines) {
    const [from, to] = [inside.get(line.source), inside.get(line.target)];
    if (from === undefined && to === undefined) lines.push(line);
    else if (from !== to) {
      const key = JSON.stringify([from === undefined ? line.source : from, to === undefined ? line.target : to]);
      gathered.set(key, { from, to, line, n: (gathered.get(key)?.n || 0) + 1 });
    }
  }
  return { ...picture, nodes: picture.nodes.filter((node) => !inside.has(node.id)), lines, gathered: [...gathered.values()],
    boxes: picture.boxes.filter((box) => !folds.has(box.inside)) };
}

/** One mark for each fold, and one line for all that run from it to another mark. */
export function foldMarks(picture, folds, s) {
  const middle = s.top + s.rows / 2, half = 70;
  const sides = new Map([...folds].map(([layer, nodes]) => [layer, span(nodes).map((along, i) => s.x(along) + (i ? 30 : -30))]));
  const place = (layer, at, side) => (layer === undefined ? [s.x(at[0]), s.y(at[1])] : [sides.get(layer)[side], middle]);
  const lines = picture.gathered.map(({ from, to, line, n }) => {
    const [x0, y0] = place(from, line.points[0], 1), [x1, y1] = place(to, line.points.at(-1), 0), turn = (x0 + x1) / 2;
    const d = `M${x0},${y0}C${turn},${y0} ${turn},${y1} ${x1},${y1}`, width = 1 + Math.log10(n);
    const path = make("path", { d, class: "line residual", "stroke-width": width });
    const inside = [from, to].filter((layer) => layer !== undefined).join(" and ");
    path.append(make("title", {}, `${n} line${n === 1 ? "" : "s"}, inside ${inside}`));
    return path;
  });
  const marks = [...folds].map(([layer, nodes]) => {
    const [x0, x1] = sides.get(layer), at = new Map();
    for (const node of nodes) at.set(node.at[0], (at.get(node.at[0]) || 0) + 1);
    const counts = [...at].map(([along, n]) => make("text", { x: s.x(along), y: middle + 44, class: "faint" }, String(n)));
    return foldButton(layer, `${layer}: ${nodes.length} nodes, folded. Enter opens it.`,
      make("rect", { x: x0, y: middle - half, width: x1 - x0, height: 2 * half, rx: 10, class: "box" }),
      make("text", { x: (x0 + x1) / 2, y: middle - 22, class: "count" }, `${layer}: ${nodes.length.toLocaleString("en")} nodes`),
      make("text", { x: (x0 + x1) / 2, y: middle - 4, class: "found" }, ""),
      make("text", { x: (x0 + x1) / 2, y: middle + 14, class: "middle" }, "click or Enter opens them"), ...counts);
  });
  return [...lines, ...marks];
}

/** First and last column of some nodes. */
function span(nodes) { return nodes.reduce(([a, b], n) => [Math.min(a, n.at[0]), Math.max(b, n.at[0])], [Infinity, -Infinity]); }

/** What folds an open layer again, among the heads of the columns. */
export function handles(picture, s) {
  const open = new Map();
  for (const node of picture.nodes) open.set(node.layer, [...(open.get(node.layer) || []), node]);
  return [...open].map(([layer, nodes]) => {
    const [x0, x1] = span(nodes).map(s.x);
    const box = make("rect", { x: -60, y: 54, width: 120, height: 20, rx: 5, class: "box" });
    const mark = foldButton(layer, `${layer} is open. Enter folds it.`, box, make("text", { y: 68 }, `fold ${layer}`));
    mark.dataset.x = (x0 + x1) / 2;
    return mark;
  });
}

function foldButton(layer, says, ...parts) {
  const mark = make("g", { class: "fold", role: "button", tabindex: "0", "aria-label": says }, ...parts);
  mark.dataset.layer = layer;
  mark.append(make("title", {}, says));
  return mark;
}
