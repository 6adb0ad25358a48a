// From a text to token ids and back, by the same rule as the tokenizer in Python.

/** Token ids of a text. Throws an Error that names what is unknown. */
export function encode(tokens, text) {
  const ids = new Map(tokens.texts.map((word, i) => [word, i]));
  const found = tokens.kind === "word" ? text.match(/\n|[^ \n]+/g) || [] : pieces(tokens.texts, text);
  return found.map((piece) => {
    if (!ids.has(piece)) throw new Error(`"${piece}" is no token of this model`);
    return ids.get(piece);
  });
}

function pieces(texts, text) {
  const sorted = [...texts].sort((a, b) => b.length - a.length), out = [];
  for (let at = 0; at < text.length; ) {
    const piece = sorted.find((word) => text.startsWith(word, at)) || String.fromCodePoint(text.codePointAt(at));
    out.push(piece);
    at += piece.length;
  }
  return out;
}

/** The text of token ids, as it is typed: a new line is \n. */
export function written(tokens, ids) {
  return ids.map((id) => tokens.texts[id]).join(tokens.kind === "word" ? " " : "").replaceAll("\n", "\\n");
}
