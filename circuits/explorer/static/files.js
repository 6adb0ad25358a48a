// In and out: a view as JSON, the picture as SVG and PNG.

import { SVG, make } from "./dom.js";

const LOOKS = [
  "fill", "fill-opacity", "stroke", "stroke-width", "stroke-dasharray", "opacity", "font", "text-anchor", "paint-order",
];
const SHARP = 2; // pixels of a PNG for one of the picture

/** Hand a file to the reader. */
export function download(name, content, type) {
  const url = URL.createObjectURL(new Blob([content], { type }));
  make("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000); // a browser may ask first where to put it
}

/** The whole drawing by itself, with the looks that the page gives it. */
export function svgText(svg, paper) {
  const copy = svg.cloneNode(true), own = [...svg.querySelectorAll("*")];
  [...copy.querySelectorAll("*")].forEach((element, i) => {
    const look = getComputedStyle(own[i]);
    for (const name of LOOKS) element.style.setProperty(name, look.getPropertyValue(name));
  });
  svg.whole(copy);
  const { width, height } = copy.viewBox.baseVal;
  copy.prepend(make("rect", { width, height, fill: paper }));
  copy.setAttribute("xmlns", SVG);
  copy.setAttribute("width", Math.ceil(width));
  copy.setAttribute("height", Math.ceil(height));
  return new XMLSerializer().serializeToString(copy);
}

/** The drawing as a PNG; `done` is called with its bytes. */
export function png(svg, paper, done) {
  const image = new Image();
  image.onload = () => {
    const canvas = make("canvas", { width: SHARP * image.width, height: SHARP * image.height });
    canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
    canvas.toBlob(done);
  };
  image.src = "data:image/svg+xml;charset=utf-8," + encodeURIComponent(svgText(svg, paper));
}

/** The buttons above: save, load, export, looks, reset. */
export function fileTools(explorer) {
  const button = (text, title, does) => make("button", { title, onclick: does }, text);
  const paper = () => getComputedStyle(explorer.root).backgroundColor;
  const picked = () => { opened(explorer, file.files[0]); file.value = ""; };
  const file = make("input", { type: "file", accept: ".json", hidden: true, onchange: picked });
  return [
    button("save", "save this view as JSON", () => download("view.json", JSON.stringify(explorer.state), "application/json")),
    button("load", "load a saved view", () => file.click()), file,
    button("SVG", "export the picture", () => download("circuit.svg", svgText(explorer.svg, paper()), "image/svg+xml")),
    button("PNG", "export the picture", () => png(explorer.svg, paper(), (bytes) => download("circuit.png", bytes, "image/png"))),
    button("\u25d0", "light or dark", () => explorer.set({ theme: explorer.isDark() ? "light" : "dark" })),
    button("reset", "forget what was asked", () => explorer.set(explorer.fresh())),
  ];
}

function opened(explorer, file) {
  if (!file) return;
  const take = (text) => explorer.restore(JSON.parse(text));
  file.text().then(take).catch((error) => explorer.complain(`not a saved view: ${error.message}`));
}
