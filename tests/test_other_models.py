"""A model of Hugging Face, trained here on a small task: its circuit of heads and neurons is found and judged."""

import json
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from explorer_browser import MARKS, chromium, opened
from induction_model import bridge
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

from circuits.__main__ import app
from circuits.circuit.circuit import Circuit
from circuits.circuit.masked import run_circuit
from circuits.circuit.nodes import Node
from circuits.interop import LensSubject, load_hf
from circuits.plots import plot
from circuits.pruning import PruneConfig, prune
from circuits.ranking import RankConfig, curves, rank
from circuits.trust import TrustConfig, trust_report
from circuits.trust.report import Entry, TrustReport
from tasks import Batch, HFTokenizer, from_pairs
from tasks.tokenizer import WordTokenizer

N_KEYS, N_PAIRS, KEYS, VALUES, BOTH = 6, 4, 2, 8, 14
WORDS = WordTokenizer(name="w", words=tuple(f"w{i}" for i in range(50)))
FEW = PruneConfig(
    starts=1, steps=60, batch_size=16, n_mean=128, n_eval=32, n_test=64, target_loss=0.2, target_accuracy=0.9
)
QUICK = TrustConfig(n_pairs=16, n_random=3, n_knockouts=3, n_greedy=1, control_steps=20)


@dataclass(frozen=True, kw_only=True)
class Lookup:
    """Four words, each a key with a value, then a key: say its value. A head must look back at the word of that key."""

    name: str = "lookup"
    n_ctx: int = N_PAIRS + 1
    tokenizer: WordTokenizer = WORDS

    def solve(self, text):
        *words, asked = (int(word[1:]) for word in text.split())
        return next(f"w{VALUES + (w - BOTH) % N_KEYS}" for w in words if (w - BOTH) // N_KEYS == asked - KEYS)

    def batch(self, n, *, split, seed):
        return self.drawn(n, split=split, seed=seed)[0]

    def drawn(self, n, *, split, seed):
        """Pairs, and the place of the word that is asked for."""
        generator = torch.Generator().manual_seed(1000 * len(split) + seed)
        keys, values = (
            torch.stack([torch.randperm(N_KEYS, generator=generator)[:N_PAIRS] for _ in range(n)])
            for _ in range(2)
        )
        at, rows = torch.randint(N_PAIRS, (n,), generator=generator), torch.arange(n)
        answer = values[rows, at]
        foil = (answer + torch.randint(1, N_KEYS, (n,), generator=generator)) % N_KEYS
        other = values.clone()
        other[rows, at] = foil
        asked = KEYS + keys[rows, at]
        clean, corrupt = (
            torch.cat([BOTH + N_KEYS * keys + v, asked[:, None]], dim=1) for v in (values, other)
        )
        position = torch.full((n,), N_PAIRS)
        return Batch(
            clean=clean, corrupt=corrupt, answer=VALUES + answer, foil=VALUES + foil, position=position
        ), at


@cache
def trained(kind: str) -> Any:
    """A bridge of a model that solves the task."""
    torch.manual_seed(0)
    model = bridge(kind).eval()
    hf, task = model.original_model, Lookup()
    for parameter in hf.parameters():
        if parameter.ndim > 1:
            parameter.data.mul_(3 if kind == "gpt2" else 2)
    optimizer = torch.optim.AdamW(hf.parameters(), lr=1e-2, betas=(0.9, 0.98), weight_decay=0.0)
    for step in range(800):
        batch = task.batch(64, split="train", seed=step).tokens_and_targets()
        loss = F.cross_entropy(hf(batch.tokens).logits[:, -1], batch.answer)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if float(loss.detach()) < 0.01:
            break
    return model


def saved(model: Any, folder: Path) -> Path:
    """The model without its wrapper, and its tokenizer, as save_pretrained writes them."""
    hf = model.original_model
    plain = type(hf)(hf.config)
    own = {name.replace("_original_component.", ""): value for name, value in hf.state_dict().items()}
    plain.load_state_dict({name: own[name] for name in plain.state_dict()})
    plain.save_pretrained(folder)
    # Special tokens are cut out of longer words that they begin: none of these does.
    words = Tokenizer(models.WordLevel({f"v{i}": i for i in range(50)}, unk_token="v0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="v49", unk_token="v0").save_pretrained(folder)
    return folder


@cache
def subject(kind: str) -> LensSubject:
    return LensSubject(trained(kind), sites=("attn_head", "mlp_neuron"))


@cache
def found(kind: str) -> Circuit:
    return prune(subject(kind), Lookup(), FEW, progress=False)


@cache
def looking(kind: str) -> list[Node]:
    """The heads that look from the key that is asked for to the word with that key, most first."""
    batch, at = Lookup().drawn(128, split="test", seed=1)
    with torch.no_grad():
        _, kept = trained(kind).run_with_cache(batch.clean)
    shares = {
        Node(layer, "attn_head", head): float(kept["pattern", layer][torch.arange(128), head, -1, at].mean())
        for layer in range(2)
        for head in range(4)
    }
    ranked = sorted(shares, key=lambda node: -shares[node])
    assert shares[ranked[0]] > 0.5
    return [node for node in ranked if shares[node] > 0.5]


KINDS = pytest.mark.parametrize("kind", ["gpt2", "llama"])


@pytest.mark.slow
@KINDS
def test_pruning_finds_a_circuit_with_the_heads_that_do_it(kind):
    circuit, task = found(kind), Lookup()
    assert circuit.metrics["full_task_accuracy"] > 0.98
    assert 0 < circuit.n_nodes < sum(subject(kind).widths.values()) / 2
    assert circuit.metrics["one_minimal"]
    assert set(looking(kind)) & set(circuit.nodes)
    assert circuit.n_edges == 0
    assert {effect.target for effect in circuit.effects} >= {None}
    to_heads = [e for e in circuit.effects if e.source is not None and e.target is None]
    assert to_heads
    batch = task.batch(64, split="test", seed=3)
    again = Circuit.from_json(json.loads(json.dumps(circuit.to_json())))
    assert again == circuit
    logits = run_circuit(subject(kind), again, batch.clean)[:, -1]
    rows = torch.arange(64)
    assert float((logits[rows, batch.answer] > logits[rows, batch.foil]).float().mean()) > 0.85


@pytest.mark.slow
@KINDS
@pytest.mark.parametrize("method", ["gates", "EAP-IG"])
def test_the_heads_that_look_are_ranked_high(kind, method):
    config = RankConfig(n_pairs=32, n_mean=128, steps=60)
    ranking = rank(subject(kind), Lookup(), method=method, config=config)
    first = ranking.nodes()[: max(found(kind).n_nodes, len(looking(kind)))]
    assert set(looking(kind)[:1]) <= set(first)


@pytest.mark.slow
@KINDS
def test_curves_of_gates_and_eap_ig_stand_side_by_side(kind):
    config = RankConfig(n_pairs=16, n_mean=64, steps=30)
    for one in curves(subject(kind), Lookup(), ["gates", "EAP-IG"], config=config, n_pairs=32):
        assert one.kind == "nodes"
        assert one.faithfulness[-1] == pytest.approx(1.0, abs=1e-3)
        assert one.cpr > 0.5
        assert one.cmd < 0.6


@pytest.mark.slow
@KINDS
def test_trust_gives_verdicts_and_says_what_it_cannot_ask(kind):
    report = trust_report(subject(kind), found(kind), Lookup(), QUICK)
    verdicts = {entry.name: entry.verdict for entry in report.entries}
    assert verdicts["sufficiency"] == "pass"
    assert verdicts["1-minimality"] == "pass"
    assert verdicts["random model"] == "not run"
    assert "Not run: how a wrapped model's weights were drawn" in report["random model"].meaning
    assert len(verdicts) > 20


@pytest.mark.slow
@KINDS
def test_a_circuit_is_drawn_and_opened(kind, tmp_path):
    circuit = found(kind)
    figure = plot(circuit)
    names = {trace.name for trace in figure.data}
    assert names & {"supports", "opposes"}
    assert not names & {"positive", "negative"}
    page = circuit.to_html(tmp_path / "c.html", subject(kind), Lookup())
    view = json.loads(page.read_text().split('id="view">')[1].split("</script>")[0])
    assert view["program"] is None
    assert {line["kind"] for line in view["picture"]["lines"]} == {"effect"}
    assert len(view["picture"]["nodes"]) == circuit.n_nodes
    assert view["answers"][0][1] > 0.5
    assert all(
        "measured" in text or "no effect" in text for note in view["notes"].values() for text in note["reads"]
    )


@pytest.mark.slow
@MARKS[0]
@MARKS[1]
def test_the_page_of_a_wrapped_model_is_read_in_a_browser(tmp_path):
    circuit, errors = found("gpt2"), []
    node = str(circuit.nodes[0])
    report = TrustReport(
        task=circuit.task, model_hash=circuit.model_hash, n_nodes=circuit.n_nodes, n_edges=0, seconds=0.0,
        entries=(Entry(name="sufficiency", meaning="loss", value=0.1, baseline=0.15, verdict="fail", unit="nats"),),
    )  # fmt: skip
    path = circuit.to_html(tmp_path / "c.html", subject("gpt2"), Lookup(), trust=report)
    with contextmanager(chromium)() as browser:
        page = opened(browser, path, errors)
        assert "1 of 1 checks failed" in page.locator(".panel").inner_text()
        page.evaluate("id => E().set({chosen: id})", node)
        assert page.locator(".sides .pair-dot").count() == 12
        assert page.locator(".swap").count() == 0
        page.locator("#explorer").press("x")
        assert page.evaluate("E().state.values") == {}
        page.context.close()
    assert errors == []


@pytest.mark.slow
def test_the_command_line_takes_a_folder(tmp_path):
    model = trained("llama")
    folder = saved(model, tmp_path / "model")
    batch = Lookup().batch(60, split="train", seed=5)
    lines = ["clean,corrupt,answer,foil"]
    for row in zip(batch.clean, batch.corrupt, batch.answer, batch.foil, strict=True):
        lines.append(",".join(" ".join(f"v{i}" for i in part.reshape(-1).tolist()) for part in row))
    pairs, out, settings = (tmp_path / name for name in ("lookup.csv", "c.json", "s.json"))
    pairs.write_text("\n".join(lines) + "\n")
    settings.write_text(
        json.dumps({**FEW.to_json(), "objective": "faithful", "target_loss": 0.3, "starts": 1})
    )

    def run(*words):
        done = CliRunner().invoke(app, [str(word) for word in words])
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)

    where = f"hf:{folder}"
    told = run("prune", "--model", where, "--task", pairs, "--config", settings, "--out", out, "--json")
    circuit = Circuit.load(out)
    assert told["n_nodes"] == circuit.n_nodes > 0
    assert {node.site for node in circuit.nodes} <= {"attn_head", "mlp_neuron"}
    shown = run("show", out, "--model", where, "--task", pairs, "--json")
    assert "measured" in (tmp_path / "c.html").read_text()
    assert shown["n_effects"] == len(circuit.effects)
    (tmp_path / "t.json").write_text(json.dumps(QUICK.to_json()))
    trusted = run("trust", out, "--model", where, "--task", pairs, "--config", tmp_path / "t.json", "--json")
    assert trusted["model"] == where
    assert trusted["entries"]


def test_what_is_no_folder_of_a_model_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match="folder: .* has no config.json"):
        load_hf(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="folder: .* cannot be read"):
        load_hf(tmp_path)
    none = CliRunner().invoke(app, ["prune", "--task", "ioi"])
    assert none.exit_code == 2
    assert "model: got none, or two" in none.output
    both = CliRunner().invoke(app, ["prune", f"hf:{tmp_path}", "--corpus", "mini", "--task", "ioi"])
    assert "corpus: a wrapped model is not known" in both.output


def test_a_folder_is_read_back_as_it_was(tmp_path):
    model = bridge("llama").eval()
    saved(model, tmp_path)
    again = load_hf(tmp_path, sites=["attn_head"])
    tokens = torch.arange(12).view(2, 6)
    torch.testing.assert_close(again(tokens), LensSubject(model)(tokens))
    assert {site.name for site in again.sites()} == {"attn_head"}
    own = HFTokenizer(tokenizer=again.tokenizer)
    task = from_pairs([(f"v{i} v3", f"v{i + 1} v3", "v5", "v6") for i in range(10, 30, 2)], own)
    assert task.n_ctx == 2 + (own.bos is not None)
