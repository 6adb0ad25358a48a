// Elements, made so that a text stays a text: nothing here reads markup.

export const SVG = "http://www.w3.org/2000/svg";
const DRAWN = ["svg", "g", "path", "circle", "line", "rect", "text", "title"];

/**
 * An element with attributes and children; a child that is no element becomes text.
 * @param {string} tag
 * @param {Object} attributes `onclick` and the like are listened to; null and false are left out
 * @param {...(Node|string|(Node|string)[])} children
 */
export function make(tag, attributes = {}, ...children) {
  const element = DRAWN.includes(tag) ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat());
  return element;
}

/** A number with its sign, a true minus, and none before zero. */
export function signed(value, digits = 2) {
  const text = Math.abs(value).toFixed(digits);
  return (Number(text) === 0 ? "" : value < 0 ? "\u2212" : "+") + text;
}

/** A share between 0 and 1 in words. */
export function percent(share) {
  return `${(100 * share).toFixed(0)} %`;
}
