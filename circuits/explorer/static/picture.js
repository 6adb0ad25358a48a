// The drawing as a whole, as one SVG element.

import { make } from "./dom.js";
import { FOLD_ABOVE, foldMarks, folded, foldsOf, handles } from "./folds.js";
import { ROOM, columnHeads, endMarks, headBoxes, lineMark, nodeMark, scales } from "./marks.js";
import { pannable } from "./pan.js";

const LEGIBLE = 0.74; // of the size in which the texts are set
const CROWD = 300; // lines above which they are faint, but those of the chosen node

/**
 * The drawing of a view, whose marks carry data-id and whose lines carry data-source and data-target.
 * open: layers that are not folded, where the circuit is so large that layers fold.
 */
export function drawing(view, open = []) {
  const whole = view.picture, folds = foldsOf(whole, open), canFold = whole.nodes.length > FOLD_ABOVE;
  const picture = canFold ? { ...folded(whole, folds), folded: folds.size > 0 } : whole, s = scales(picture);
  const height = Math.min(s.height, Math.max(700, 0.8 * s.width)); // more rows than that are reached by moving
  const svg = make("svg", {
    viewBox: `0 0 ${s.width} ${height}`, class: `picture ${picture.lines.length > CROWD ? "crowd" : ""}`,
    preserveAspectRatio: "xMidYMin", role: "group", "aria-label": "the circuit",
  });
  const ground = make("rect", { x: -5000, y: -500, width: 20000, height: canFold ? 582 : 548, class: "ground-colour" });
  const heads = make("g", { class: "heads" }, ground, ...columnHeads(picture, s));
  const world = make("g", { class: "world" }, ...drawn(view, picture, s));
  if (canFold) {
    world.append(...foldMarks(picture, folds, s));
    heads.append(...handles(picture, s));
  }
  svg.append(world, heads);
  const box = { down: (s.height - height) / 2, height: s.height, width: s.width };
  pannable(svg, world, heads, { ...box, legible: LEGIBLE, isRoomy: s.row > ROOM });
  return svg;
}

/** Boxes below, then lines, ends and marks. */
function drawn(view, picture, s) {
  const whole = view.picture, most = greatest(whole.lines);
  const fed = new Set(whole.lines.filter((line) => line.kind !== "score").map((line) => line.target));
  const moved = new Set(whole.lines.map((line) => line.target));
  const top = whole.nodes.reduce((found, n) => Math.max(found, n.effect || 0), 0);
  return [
    ...headBoxes(picture, s),
    ...picture.lines.map((line) => lineMark(line, s, most)),
    ...endMarks(picture, s, moved),
    ...picture.nodes.map((node) => nodeMark(node, s, top, view, fed)),
  ];
}

/** Greatest sizes of lines: between nodes, at tokens and logits, of measured effects. */
function greatest(lines) {
  const of = (kinds) => lines.reduce((top, l) => (kinds.includes(l.kind) ? Math.max(top, Math.abs(l.weight)) : top), 0);
  return {
    node: of(["weight"]),
    end: of(["embed", "shared", "position", "several", "unembed"]),
    effect: of(["effect"]),
  };
}
