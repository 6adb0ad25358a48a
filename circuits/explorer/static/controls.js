// What keys and pointers do.

import { zoomOf } from "./pan.js";

const CLICK = 3; // pixels that a pointer may move in a click
const SPREAD = 60; // pixels over which dragging a mark runs through its values

/** Listen on the page as a whole. */
export function listen(explorer) {
  const { root } = explorer;
  root.addEventListener("pointerover", (event) => explorer.hover(pointed(event.target)));
  root.addEventListener("focusin", (event) => explorer.hover(pointed(event.target)));
  root.addEventListener("pointerleave", () => explorer.hover([]));
  root.addEventListener("keydown", (event) => pressed(explorer, event));
}

/** Ids of what is under the pointer: a node or token wherever it is named, or both ends of a line. */
function pointed(target) {
  const line = target.closest(".line");
  if (line && line.dataset.source) return [line.dataset.source, line.dataset.target];
  const at = target.closest("[data-id]");
  return at ? [at.dataset.id] : [];
}

/** Listen on a drawing. */
export function listenToDrawing(explorer, svg) {
  svg.addEventListener("click", (event) => {
    const [mark, line, fold] = [".node", ".line", ".fold"].map((what) => event.target.closest(what));
    if (fold) explorer.fold(fold.dataset.layer);
    else if (mark && (event.ctrlKey || event.metaKey)) explorer.pin(mark.dataset.id);
    else if (mark) explorer.set({ chosen: mark.dataset.id });
    else if (line && event.altKey) explorer.cut(`${line.dataset.source}>${line.dataset.target}`);
  });
  svg.addEventListener("dblclick", (event) => {
    const mark = event.target.closest(".node");
    if (mark) explorer.rename(mark.dataset.id);
  });
  svg.addEventListener("pointerdown", (event) => {
    const mark = event.target.closest(".node");
    if (mark && explorer.program) drag(explorer, mark.dataset.id, event.clientY);
  });
}

/** Dragging a mark up or down changes its value at every token. */
function drag(explorer, id, from) {
  const start = explorer.valueOf(id), scale = explorer.spread(id) / SPREAD;
  const move = (event) => {
    const down = event.clientY - from;
    if (Math.abs(down) > CLICK) explorer.setValue(id, start - down * scale);
  };
  const up = () => { window.removeEventListener("pointermove", move); window.removeEventListener("pointerup", up); };
  window.addEventListener("pointermove", move);
  window.addEventListener("pointerup", up);
}

function pressed(explorer, event) {
  if (event.target.matches("input, select")) { if (event.key === "Escape") explorer.root.focus(); return; }
  if (event.ctrlKey || event.metaKey || event.altKey) return; // the browser's own
  const fold = event.target.closest(".fold");
  const does = fold && ["Enter", " "].includes(event.key) ? () => explorer.fold(fold.dataset.layer) : asked(explorer, event.key);
  if (does) { event.preventDefault(); does(); }
}

/** What a key asks for, or undefined. */
function asked(explorer, key) {
  const { chosen } = explorer.state, ids = [...explorer.nodes.keys()], at = ids.indexOf(chosen), zoom = zoomOf(key);
  if (zoom !== undefined) return () => explorer.svg.zoom(zoom);
  const ofChosen = { p: () => explorer.pin(chosen), r: () => explorer.rename(chosen), x: () => explorer.swap(chosen) };
  const always = {
    "/": () => explorer.search.focus(),
    ArrowRight: () => explorer.set({ chosen: ids[(at + 1) % ids.length] }),
    ArrowLeft: () => explorer.set({ chosen: ids[((at < 0 ? 0 : at) - 1 + ids.length) % ids.length] }),
    g: () => explorer.group(),
    o: () => explorer.turn(),
    Escape: () => explorer.set({ chosen: null }),
  };
  return (chosen && ofChosen[key]) || always[key];
}
