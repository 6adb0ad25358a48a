// Moving about in the drawing: wheel and keys zoom, dragging the ground moves, heads of columns stay above.

const STEP = 1.25; // of one press of a key
const [SMALLEST, LARGEST] = [0.1, 8];
const APART = 1.2; // times their size at which heads of neighbouring columns do not touch
const NARROW = "(max-width: 900px)"; // as style.css has it: there the page scrolls

/**
 * Make a drawing movable. Afterwards `svg.fit()` shows it as large as it must be to be read, `svg.show(mark)` moves a
 * mark into view, `svg.zoom(factor)` zooms about the middle (null: back to the whole), and `svg.whole(copy)` lays a
 * copy out as if nothing had been moved.
 * @param {SVGElement} svg
 * @param {SVGElement} world what moves
 * @param {SVGElement} heads what moves sideways only
 * @param {{down: number, height: number, width: number, legible: number, isRoomy: boolean}} box height and width of all
 *   that is drawn; down: how far below the upper edge of the view it begins; legible: the scale in pixels that texts can
 *   be read at; isRoomy: whether there are texts at the marks
 */
export function pannable(svg, world, heads, box) {
  let [x, y, scale] = [0, -box.down, 1], from = null, [base, larger] = [1, 1]; // scale at first, and that of the heads
  const show = () => placed(world, heads, x, y, scale, larger * Math.min(1, scale / base));
  svg.fit = () => {
    const pixels = svg.getScreenCTM()?.a, shown = svg.getBoundingClientRect().width / pixels;
    if (!pixels || pixels >= box.legible || scale !== 1) return;
    larger = Math.min(box.legible / pixels, box.isRoomy ? LARGEST : APART);
    if (!box.isRoomy) return show();
    scale = base = larger;
    const { width, height } = svg.viewBox.baseVal, free = shown - scale * width;
    x = free > 0 ? (width - scale * width) / 2 : (width - shown) / 2;
    y = Math.min(0, height / 2 - scale * (box.height / 2) + 30);
    show();
  };
  const place = (event) => new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
  const middle = () => {
    const all = svg.getBoundingClientRect();
    return place({ clientX: all.left + all.width / 2, clientY: all.top + all.height / 2 });
  };
  const about = (p, factor) => {
    const next = Math.max(SMALLEST, Math.min(LARGEST, scale * factor));
    [x, y, scale] = [p.x - ((p.x - x) * next) / scale, p.y - ((p.y - y) * next) / scale, next];
    show();
  };
  show();
  svg.zoom = (factor) => {
    if (factor !== null) return about(middle(), factor);
    [x, y, scale, base, larger] = [0, -box.down, 1, 1, 1];
    show();
    svg.fit();
  };
  svg.show = (mark) => {
    const own = mark.getBoundingClientRect(), all = svg.getBoundingClientRect();
    const across = own.left > all.left && own.right < all.right, down = own.top > all.top + 60 && own.bottom < all.bottom;
    if (!own.width || (across && down)) return;
    const at = place({ clientX: own.left, clientY: own.top }), to = middle();
    [x, y] = [x + to.x - at.x, y + to.y - at.y];
    show();
  };
  svg.whole = (copy) => {
    copy.setAttribute("viewBox", `0 0 ${box.width} ${box.height}`);
    placed(copy.querySelector(".world"), copy.querySelector(".heads"), 0, 0, 1, 1);
  };
  svg.addEventListener("wheel", (event) => {
    const scrolls = svg.closest(".in-notebook") || matchMedia(NARROW).matches;
    if (scrolls && !event.ctrlKey) return; // the wheel is the page's own
    event.preventDefault();
    about(place(event), Math.exp(-event.deltaY / 500));
  }, { passive: false });
  svg.addEventListener("pointerdown", (event) => {
    if (event.target.closest(".node, .fold")) return;
    from = place(event);
    svg.setPointerCapture(event.pointerId);
  });
  svg.addEventListener("pointermove", (event) => {
    if (!from) return;
    const p = place(event);
    [x, y, from] = [x + p.x - from.x, y + p.y - from.y, p];
    show();
  });
  svg.addEventListener("pointerup", () => { from = null; });
}

/** Factor of the zoom that a key asks for; null is back to the whole, undefined another key. */
export function zoomOf(key) {
  return { "+": STEP, "=": STEP, "-": 1 / STEP, 0: null }[key];
}

function placed(world, heads, x, y, scale, size) {
  world.setAttribute("transform", `translate(${x},${y}) scale(${scale})`);
  for (const head of heads.querySelectorAll("[data-x]")) {
    head.setAttribute("transform", `translate(${x + scale * head.dataset.x},0) scale(${size})`);
  }
  heads.querySelector("rect").setAttribute("transform", `scale(1,${size})`);
}
