// The pane above the picture: the prompt, where a head looks in it, and the answer.

import { make, percent, signed } from "./dom.js";
import { encode, written } from "./tokens.js";

const BAR = 22; // pixels of a whole share of attention
const NOTE = "Type a prompt, or pick one of the task's. Bars under the tokens: where the chosen head looks. "
  + "Numbers at the marks: their values at the underlined token; click another to read them there.";
const READ_ONLY = "Read from a file or from Python: values are those of this prompt.";

/** @param {Explorer} explorer */
export function promptPane(explorer) {
  const typed = typing(explorer), pick = picking(explorer), wrong = make("span", { class: "wrong", role: "alert" });
  const tokens = make("div", { class: "tokens" }), answer = make("div", { class: "answer", role: "status" });
  const note = make("p", { class: "faint" }, explorer.program ? NOTE : READ_ONLY);
  const element = make("section", { class: "asking" }, make("div", { class: "row" }, typed, pick, wrong), tokens, answer, note);
  const show = () => {
    if (document.activeElement !== typed) typed.value = written(explorer.view.tokens, explorer.state.tokens);
    pick.value = explorer.ownPair() ? `${explorer.state.pair} ${explorer.state.side}` : "";
    tokens.replaceChildren(...cells(explorer));
    answer.replaceChildren(...answers(explorer, answer));
  };
  return { element, show, wrong };
}

function typing(explorer) {
  const { kind } = explorer.view.tokens;
  const here = kind === null ? "this tokenizer runs in Python only: pick one of the prompts" : "type a prompt; \\n is a new line";
  const typed = make("input", {
    class: "typed", "aria-label": "prompt", spellcheck: "false", disabled: kind === null,
    title: explorer.program ? here : "no weights here: it is read, not run",
    oninput: () => explorer.type(typed.value.replaceAll("\\n", "\n")),
  });
  return typed;
}

function picking(explorer) {
  const option = (i, side) => make("option", { value: `${i} ${side}` }, `${side === "clean" ? "clean" : "corrupted"} ${i + 1}`);
  const own = explorer.view.prompts.flatMap((_, i) => ["clean", "corrupt"].map((side) => option(i, side)));
  const picked = () => { if (pick.value) explorer.choosePrompt(...pick.value.split(" ")); };
  const typed = make("option", { value: "" }, "typed");
  const pick = make("select", { "aria-label": "prompts of the task", onchange: picked }, typed, own);
  const title = "the other prompt of the pair (o)";
  const other = make("button", { title, class: "other", onclick: () => explorer.turn() }, "\u21c4");
  const row = make("span", { class: "picking" }, pick, other);
  row.hidden = !own.length;
  Object.defineProperty(row, "value", { set: (value) => { pick.value = value; } });
  return row;
}

/** The tokens of the prompt as buttons, with the attention that the underlined one pays them, and the sink's. */
function cells(explorer) {
  const { view, state } = explorer, head = shownHead(explorer), from = explorer.at();
  const row = state.tokens.map((_, i) => (head && i <= from ? explorer.run.patterns[head[0]][head[1]][from][i] : 0));
  const bar = (share) => make("i", { style: `height:${(BAR * share).toFixed(1)}px` });
  const cell = (token, i) => make("button", {
    class: `token ${i === from ? "at" : ""}`, title: `position ${i}${head ? `: attention ${row[i].toFixed(2)}` : ""}`,
    onclick: () => explorer.set({ at: i === state.tokens.length - 1 ? null : i }),
  }, view.tokens.shown[token], bar(row[i]));
  const tokens = state.tokens.map(cell);
  if (!head) return tokens;
  const sink = 1 - row.reduce((a, b) => a + b, 0);
  const title = `to the sink, which carries nothing: ${sink.toFixed(2)}`;
  return [
    ...tokens,
    make("span", { class: "token sink", title }, "sink", bar(Math.max(0, sink))),
    make("span", { class: "faint" }, `head ${head[0]}.${head[1]} from the underlined token`),
  ];
}

/** Head whose pattern is shown: the chosen node's, or the first that is kept. */
function shownHead(explorer) {
  const { chosen } = explorer.state;
  return explorer.program && chosen && /attn_[qkv]\./.test(chosen) ? explorer.headOf(chosen) : explorer.heads()[0] || null;
}

/** Logits of the answers, greatest first, and what the task wants where the prompt is its own. */
function answers(explorer, element) {
  const { view, run } = explorer, title = make("b", {}, "answer: ");
  if (!run) return [title, ...view.answers.slice(0, 4).map(([text, share]) => make("span", {}, `${text} ${percent(share)}`))];
  const ranked = run.logits.map((logit, i) => [logit, explorer.program.answers[i]]).sort((a, b) => b[0] - a[0]);
  const text = (token) => view.tokens.shown[token];
  const part = ([logit, token], i) => make("span", { class: i ? "" : "first" }, `${text(token)} ${signed(logit)}`);
  const parts = ranked.slice(0, 4).map(part);
  const margin = ranked.length > 1 ? ` ahead by ${(ranked[0][0] - ranked[1][0]).toFixed(2)}` : "";
  element.dataset.answer = text(ranked[0][1]);
  return [title, ...parts, make("span", { class: "faint" }, margin), ...wanted(explorer, ranked[0][1])];
}

function wanted(explorer, said) {
  const pair = explorer.ownPair(), text = explorer.view.tokens.shown;
  if (!pair) return [];
  const [right, foil] = explorer.state.side === "clean" ? [pair.answer, pair.foil] : [pair.foil, pair.answer];
  if (said === right) return [make("span", { class: "wanted right" }, `\u2713 right (foil ${text[foil]})`)];
  return [make("span", { class: "wanted not-right" }, `\u2717 the task wants ${text[right]}`)];
}
