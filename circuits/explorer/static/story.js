// How an answer comes about: the strongest way along which a prompt and the other one of its pair part.
// It is walked backwards from the lead of the right answer over the wrong one. At each node the walk goes on to whatever
// brings most of the difference between the two prompts. No element of a page.

import { forward } from "./forward.js";
import { otherSide, split } from "./session.js";

const LEAST = 1e-6; // of a difference

/**
 * @param {Session} session
 * @returns {null | {right: number, wrong: number, here: number, there: number, share: number, steps: Object[]}} null where
 *   the prompt was typed, or nothing differs. right, wrong: token ids; here, there: by how many logits `right` leads on
 *   either prompt; share: what the last node adds to here - there. A step is {token, other, at} at the start and {id,
 *   at, here, there} afterwards; `looks: [from, share, share there]` where a head carries the difference to `at`, and
 *   `turns: true` where it is not what a head carries that differs, but where it looks.
 */
export function story(session) {
  const pair = session.ownPair(), p = session.program;
  if (!p || !pair) return null;
  const { side } = session.state, tokens = pair[otherSide(side)], edits = session.edits();
  const [right, wrong] = side === "clean" ? [pair.answer, pair.foil] : [pair.foil, pair.answer];
  const runs = [session.run, forward(p, tokens, edits)];
  const both = { p, edits, nodes: session.nodes, tokens: [session.state.tokens, tokens], runs };
  const [a, b] = [right, wrong].map((token) => p.answers.indexOf(token)), last = tokens.length - 1;
  const writers = [...session.nodes.keys()].filter((id) => /(attn|mlp)_out\./.test(id));
  const end = strongest(writers.map((id) => ({ id, at: last, share: direct(both, id, a, b) })));
  if (!end) return null;
  const [here, there] = runs.map((run) => run.logits[a] - run.logits[b]);
  return { right, wrong, here, there, share: end.share, steps: walked(both, end) };
}

/** What a node that writes adds to the lead here, less what it adds there. */
function direct({ p, runs }, id, a, b) {
  const [site, index] = split(id), n = p.answers.length;
  const [here, there] = runs.map((run) => run.acts[site].at(-1)[index] / run.size);
  return (here - there) * (p.unembed[index * n + a] - p.unembed[index * n + b]);
}

function walked(both, end) {
  const steps = [];
  for (let next = end; next; next = next.id ? before(both, next) : null) {
    const value = (run) => { const [site, index] = split(next.id); return run.acts[site][next.at][index]; };
    steps.unshift(next.id ? { ...next, here: value(both.runs[0]), there: value(both.runs[1]) } : next);
  }
  return steps;
}

/** What brings most of the difference at a node: an earlier node, or a token; null where nothing does. */
function before(both, { id, at }) {
  const [site, index] = split(id), name = site.split(".").at(-1);
  if (name === "attn_in" || name === "mlp_in") return streamed(both, site, index, at);
  if (name === "attn_out") return carried(both, site, index, at);
  return strongest(edgesInto(both, site, index).map(([s, w]) => {
    const from = both.p.sites[site].source;
    return { id: `${from}.${s}`, at, share: w * differ(both, from, s, at) };
  }));
}

/** Kept weights into a coordinate that are not cut, as [source's index, weight]. */
function edgesInto({ p, edits }, site, index) {
  const { edges, source } = p.sites[site];
  const counts = ([s, t]) => t === index && !edits.cut.has(`${source}.${s}>${site}.${t}`);
  return edges.filter(counts).map(([s, , w]) => [s, w]);
}

/** Who wrote to a residual channel before it is read: nodes, or the token. */
function streamed(both, site, index, at) {
  const { p, nodes, tokens } = both, [layer, name] = [Number(site.split(".")[0]), site.split(".").at(-1)];
  const sites = [...Array(layer).keys()].flatMap((l) => [`${l}.attn_out`, `${l}.mlp_out`]);
  if (name === "mlp_in") sites.push(`${layer}.attn_out`);
  const writers = sites.filter((writer) => nodes.has(`${writer}.${index}`))
    .map((writer) => ({ id: `${writer}.${index}`, at, share: differ(both, writer, index, at) }));
  const [token, other] = tokens.map((row) => row[at]), entry = (t) => p.embed[t * p.d_model + index];
  return strongest([...writers, { token, other, at, share: entry(token) - entry(other) }]);
}

/** What a head brings to a coordinate: a value from some token, or, where its looks differ more, what turns them. */
function carried(both, site, index, at) {
  const { p, runs } = both, layer = Number(site.split(".")[0]), found = [];
  for (const [s, w] of edgesInto(both, site, index)) {
    const head = Math.floor(s / p.d_head), rows = runs.map((run) => run.patterns[layer][head][at]);
    for (let j = 0; j <= at; j++) {
      const [here, there] = runs.map((run, i) => rows[i][j] * run.acts[`${layer}.attn_v`][j][s]);
      found.push({ s, j, head, share: w * (here - there), looks: [j, rows[0][j], rows[1][j]] });
    }
  }
  const best = strongest(found);
  if (!best) return null;
  const [v, u] = runs.map((run) => run.acts[`${layer}.attn_v`][best.j][best.s]), [, p0, p1] = best.looks;
  const carries = Math.abs((v - u) * (p0 + p1)) >= Math.abs((v + u) * (p0 - p1));
  if (carries) return { id: `${layer}.attn_v.${best.s}`, at: best.j, looks: best.looks };
  const turned = scored(both, layer, best.head, at, best.j);
  return turned && { ...turned, looks: best.looks, turns: true };
}

/** The query at one token, or the key at another, whose difference changes their product most. */
function scored({ p, nodes, runs }, layer, head, at, j) {
  const found = [], [queries, keys] = [`${layer}.attn_q`, `${layer}.attn_k`];
  for (let c = head * p.d_head; c < (head + 1) * p.d_head; c++) {
    const [q, r] = runs.map((run) => run.acts[queries][at][c]), [k, l] = runs.map((run) => run.acts[keys][j][c]);
    found.push({ id: `${queries}.${c}`, at, share: (q - r) * (k + l) });
    found.push({ id: `${keys}.${c}`, at: j, share: (k - l) * (q + r) });
  }
  return strongest(found.filter((one) => nodes.has(one.id)));
}

/** The kept key, and the kept query that it meets, which lift a score most over those of the other tokens. */
export function drawnBy(session, layer, head, at) {
  const { d_head } = session.program, { acts } = session.run, from = session.at(), found = [];
  for (let c = head * d_head; c < (head + 1) * d_head; c++) {
    const keys = acts[`${layer}.attn_k`].slice(0, from + 1).map((row) => row[c]);
    const mean = keys.reduce((a, b) => a + b, 0) / keys.length, query = acts[`${layer}.attn_q`][from][c];
    found.push({ share: query * (keys[at] - mean), ids: [`${layer}.attn_k.${c}`, `${layer}.attn_q.${c}`] });
  }
  const best = found.reduce((a, b) => (b.share > a.share ? b : a));
  return best.share > LEAST ? best.ids.filter((id) => session.nodes.has(id)) : [];
}

function differ({ runs }, site, index, at) {
  const [here, there] = runs.map((run) => run.acts[site][at][index]);
  return here - there;
}

/** What has the greatest share, of either sign; null where none has one. */
function strongest(found) {
  const more = (best, one) => (best === null || Math.abs(one.share) > Math.abs(best.share) ? one : best);
  const best = found.reduce(more, null);
  return best && Math.abs(best.share) > LEAST ? best : null;
}
