// Size against loss: a slider over the way that gates closed down to the circuit, and on until nothing is left.

import { make } from "./dom.js";

const LN_CHANCE = Math.log(2);
const WIDE = 150, HIGH = 28, EDGE = 4;
const SAYS = "How small can it get? Right of the bar: what was open while gates closed, as pruning wrote it down. "
  + "Left of it the circuit itself is ablated, the least needed node first.";

/**
 * The slider's places: each number of nodes kept of the circuit, then the sizes while gates closed.
 * @param {Explorer} explorer
 */
export function sizePane(explorer) {
  const { gates, further } = explorer.view, size = explorer.nodes.size, points = gates ? gates.points : [];
  const sizes = [...Array(size + 1).keys(), ...points.map(([n]) => n)];
  const slid = () => explorer.set({ keep: sizes[Number(slider.value)] });
  const slider = make("input", { type: "range", min: 0, max: sizes.length - 1, "aria-label": "nodes kept", oninput: slid });
  const kept = make("span", { class: "kept" }), chart = make("span", { class: "way" });
  const element = make("label", { title: SAYS }, "kept ", slider, " ", chart, kept);
  const show = () => {
    const { keep } = explorer.state;
    slider.value = sizes.findLastIndex((n) => n <= keep);
    if (further) chart.replaceChildren(curves(further, points, size, sizes[slider.value]));
    kept.textContent = ` ${words(explorer, points, keep)}`;
  };
  return { element, show };
}

function words(explorer, points, keep) {
  const size = explorer.nodes.size, open = points.findLast(([n]) => n <= keep);
  if (keep > size && open) {
    const [n, loss] = open;
    return `${n.toLocaleString("en")} nodes open while gates closed: ${explorer.view.gates.loss} ${loss.toFixed(3)}`;
  }
  const counted = `${Math.min(keep, size)} of ${size}`;
  if (!explorer.program) return counted;
  const loss = explorer.pairs ? `loss ${explorer.loss().toFixed(3)}` : "\u2026";
  return `${counted}: ${loss} (uncalibrated; chance ${LN_CHANCE.toFixed(2)})`;
}

/** Loss over nodes kept, sizes on a logarithmic scale: further than the circuit, and while gates closed; a dot is here. */
function curves(further, points, size, keep) {
  const most = points.length ? points.at(-1)[0] : size, own = keep > size ? points : further;
  const x = (n) => EDGE + ((WIDE - 2 * EDGE) * Math.log1p(n)) / Math.log1p(most);
  const y = (some, loss) => HIGH - EDGE - ((HIGH - 2 * EDGE) * loss) / Math.max(1e-3, ...some.map((point) => point[1]));
  const path = (some, look) => {
    const d = some.map(([n, loss], i) => `${i ? "L" : "M"}${x(n).toFixed(1)},${y(some, loss).toFixed(1)}`).join("");
    return make("path", { class: look, d });
  };
  const [, loss] = own.reduce((best, point) => (Math.abs(point[0] - keep) < Math.abs(best[0] - keep) ? point : best));
  const says = "loss against nodes kept";
  return make("svg", { viewBox: `0 0 ${WIDE} ${HIGH}`, width: WIDE, height: HIGH, role: "img", "aria-label": says },
    make("line", { x1: x(size), y1: 0, x2: x(size), y2: HIGH, class: "zero" }),
    path(further, "curve"),
    ...(points.length ? [path(points, "curve recorded")] : []),
    make("circle", { cx: x(keep), cy: y(own, loss), r: 3.5, class: "pair-dot" }));
}
