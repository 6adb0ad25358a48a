// The pane of pinned nodes and of groups.

import { make } from "./dom.js";

/** @param {Explorer} explorer */
export function pinsPane(explorer) {
  const element = make("section", { class: "pinned" });
  const show = () => element.replaceChildren(...pinned(explorer), ...explorer.state.groups.map((group, i) => grouped(explorer, group, i)));
  return { element, show };
}

function pinned(explorer) {
  const { pins } = explorer.state;
  if (!pins.length) return [];
  const group = make("button", { onclick: () => explorer.group() }, "group (g)");
  return [make("p", {}, make("b", {}, "Pinned "), ...pins.map((id) => explorer.chip(id)), group)];
}

function grouped(explorer, group, i) {
  const { groups } = explorer.state;
  const renamed = (event) => explorer.set({ groups: groups.map((g, j) => (j === i ? { ...g, name: event.target.value } : g)) });
  const name = make("input", { value: group.name, "aria-label": "group name", onchange: renamed });
  const undo = make("button", { title: "ungroup", onclick: () => explorer.set({ groups: groups.filter((_, j) => j !== i) }) }, "\u00d7");
  return make("p", { class: "group" }, name, ...group.ids.map((id) => explorer.chip(id)), undo);
}
