// The forward pass of a circuit: everything outside it is held at its ablation value.
// What it computes is what circuits.run_circuit computes; the numbers come from circuits.decompile.folded.

/** Little-endian float32 numbers out of base64. */
function floats(text) {
  const raw = atob(text), bytes = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
  const seen = new DataView(bytes.buffer), out = new Float64Array(bytes.length / 4);
  for (let i = 0; i < out.length; i++) out[i] = seen.getFloat32(4 * i, true);
  return out;
}

/** The program as Python packed it, with its tables unpacked. */
export function unpacked(packed) {
  const p = { ...packed, sites: {} };
  for (const name of ["embed", "place", "unembed", "offset", "bigram"]) p[name] = packed[name] === null ? null : floats(packed[name]);
  for (const [name, site] of Object.entries(packed.sites)) {
    const kept = new Uint8Array(site.width);
    for (const i of site.nodes) kept[i] = 1;
    p.sites[name] = { ...site, name, kept, values: floats(site.values), rest: site.rest === null ? null : floats(site.rest) };
  }
  return p;
}

/** Error function: a series whose terms are all positive, exact to double precision. */
function erf(x) {
  if (Math.abs(x) > 6) return Math.sign(x);
  let term = x, sum = x;
  for (let n = 1; n < 200 && Math.abs(term) > 1e-17 * Math.abs(sum); n++) sum += term *= (2 * x * x) / (2 * n + 1);
  return (2 / Math.sqrt(Math.PI)) * Math.exp(-x * x) * sum;
}

const ACTIVATIONS = { gelu: (x) => 0.5 * x * (1 + erf(x / Math.SQRT2)), relu: (x) => Math.max(x, 0) };

/** AbsTopK: the k largest magnitudes stay, the rest is zero; k = null keeps all. */
function largest(row, k) {
  if (k === null || k >= row.length) return row;
  const order = [...row.keys()].sort((a, b) => Math.abs(row[b]) - Math.abs(row[a]) || a - b);
  for (const i of order.slice(k)) row[i] = 0;
  return row;
}

/** Root mean square of a row. */
function sizeOf(row, eps) {
  let sum = 0;
  for (const x of row) sum += x * x;
  return Math.sqrt(sum / row.length + eps);
}

/** A row divided by its root mean square. */
function normed(row, eps) {
  const size = sizeOf(row, eps);
  return row.map((x) => x / size);
}

/** AbsTopK at a site, then everything but the circuit's nodes at its value, then what the reader set by hand. */
function held(site, rows, edits) {
  const byHand = site.nodes.map((i) => [i, edits.values[`${site.name}.${i}`]]).filter(([, set]) => set !== undefined);
  return rows.map((row, at) => {
    largest(row, site.k);
    for (let i = 0; i < row.length; i++) if (!site.kept[i]) row[i] = site.values[i];
    for (const [i, set] of byHand) row[i] = typeof set === "number" ? set : set[Math.min(at, set.length - 1)];
    return row;
  });
}

/** What the kept weights bring to a site, and the constant of all others; a cut weight passes its source's value. */
function affine(p, site, rows, edits) {
  const rest = site.rest.slice(), isCut = ([s, t]) => edits.cut.has(`${site.source}.${s}>${site.name}.${t}`);
  const used = edits.cut.size ? site.edges.filter((edge) => !isCut(edge)) : site.edges;
  if (edits.cut.size) for (const [s, t, w] of site.edges.filter(isCut)) rest[t] += w * p.sites[site.source].values[s];
  return rows.map((row) => {
    const out = rest.slice();
    for (const [s, t, w] of used) out[t] += w * row[s];
    return out;
  });
}

/** Causal softmax of one head's scores; what is missing to one went to the sink. */
function pattern(p, q, k, head, sink) {
  const from = head * p.d_head, to = from + p.d_head, scale = 1 / Math.sqrt(p.d_head);
  return q.map((query, at) => {
    const scores = [];
    for (let j = 0; j <= at; j++) {
      let sum = 0;
      for (let c = from; c < to; c++) sum += query[c] * k[j][c];
      scores.push(sum * scale);
    }
    const top = Math.max(...scores, sink === null ? -Infinity : sink);
    const parts = scores.map((score) => Math.exp(score - top));
    const whole = parts.reduce((a, b) => a + b, 0) + (sink === null ? 0 : Math.exp(sink - top));
    return parts.map((part) => part / whole);
  });
}

/** Values carried by every head: [position][channel of all heads]. */
function mixed(p, patterns, v) {
  return v.map((_, at) => {
    const out = new Float64Array(p.n_heads * p.d_head);
    for (let c = 0; c < out.length; c++) {
      const row = patterns[Math.floor(c / p.d_head)][at];
      for (let j = 0; j <= at; j++) out[c] += row[j] * v[j][c];
    }
    return out;
  });
}

function added(x, more) {
  return x.map((row, at) => row.map((value, i) => value + more[at][i]));
}

/**
 * Run the circuit on token ids. edits: {values: {node: number or one for each position}, cut: Set of "source>target"}.
 * Returns {logits of the answers at the last token, acts by site, patterns by layer and head, and the size that the last
 * token's channels are divided by before the logits}.
 */
export function forward(p, tokens, edits = { values: {}, cut: new Set() }) {
  const acts = {}, patterns = [], d = p.d_model;
  let x = tokens.map((token, at) => Float64Array.from({ length: d }, (_, i) => p.embed[token * d + i] + p.place[at * d + i]));
  for (let layer = 0; layer < p.n_layers; layer++) {
    const at = (name) => p.sites[`${layer}.${name}`];
    const keep = (name, rows) => (acts[`${layer}.${name}`] = held(at(name), rows, edits));
    const into = keep("attn_in", x.map((row) => normed(row, p.norm_eps)));
    const [q, k, v] = ["attn_q", "attn_k", "attn_v"].map((name) => keep(name, affine(p, at(name), into, edits)));
    patterns.push(Array.from({ length: p.n_heads }, (_, h) => pattern(p, q, k, h, p.sink === null ? null : p.sink[layer][h])));
    x = added(x, keep("attn_out", affine(p, at("attn_out"), mixed(p, patterns[layer], v), edits)));
    const read = keep("mlp_in", x.map((row) => normed(row, p.norm_eps)));
    const neurons = affine(p, at("mlp_neuron"), read, edits).map((row) => row.map(ACTIVATIONS[p.act]));
    x = added(x, keep("mlp_out", affine(p, at("mlp_out"), keep("mlp_neuron", neurons), edits)));
  }
  const size = sizeOf(x[x.length - 1], p.norm_eps), last = x[x.length - 1].map((value) => value / size);
  const n = p.answers.length, token = tokens[tokens.length - 1];
  const logits = p.answers.map((_, a) => {
    let sum = p.offset[a] + (p.bigram === null ? 0 : p.bigram[token * n + a]);
    for (let i = 0; i < d; i++) sum += last[i] * p.unembed[i * n + a];
    return sum;
  });
  return { logits, acts, patterns, size };
}

