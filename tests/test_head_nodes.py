"""Whole heads as nodes of wrapped models: masks, means and effects by hand, and what becomes of a circuit of them."""

import json
from dataclasses import dataclass

import pytest
import torch
from induction_model import bridge
from transformer_lens.model_bridge import TransformerBridge
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from circuits.circuit.ablation import ablation_values, mean_values
from circuits.circuit.circuit import Circuit
from circuits.circuit.criterion import Criterion
from circuits.circuit.effects import effects_between
from circuits.circuit.evaluator import MaskedModel
from circuits.circuit.masked import check_belongs, run_circuit, run_masked
from circuits.circuit.nodes import AllBut, Effect, Node, NodesOf, all_nodes, node_masks
from circuits.circuit.score import margins
from circuits.interop import LensSubject
from circuits.model.sites import Site
from circuits.pruning.learn import Ranked
from circuits.ranking import RankConfig, rank
from tasks.base import Batch, Targets
from tasks.tokenizer import WordTokenizer

SITES = ("attn_head", "mlp_neuron")
WORDS = WordTokenizer(name="w", words=tuple(f"w{i}" for i in range(50)))


def pythia():
    shape = dict(
        vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64
    )
    model = GPTNeoXForCausalLM(GPTNeoXConfig(**shape, max_position_embeddings=32)).eval()
    model.config.architectures = [type(model).__name__]
    return TransformerBridge.boot_transformers("local", hf_model=model, tokenizer=bridge("gpt2").tokenizer)


@pytest.fixture(scope="module", params=["gpt2", "llama", "pythia"])
def subject(request) -> LensSubject:
    torch.manual_seed(0)
    model = (pythia() if request.param == "pythia" else bridge(request.param)).eval()
    for parameter in model.parameters():
        parameter.data.mul_(4)
    return LensSubject(model, sites=SITES)


@pytest.fixture(scope="module")
def batch() -> Batch:
    generator = torch.Generator().manual_seed(0)
    clean, corrupt = (torch.randint(0, 50, (6, 7), generator=generator) for _ in range(2))
    corrupt[:, 3:] = clean[:, 3:]
    ones = torch.ones(6, dtype=torch.int64)
    return Batch(clean=clean, corrupt=corrupt, answer=7 * ones, foil=9 * ones, position=6 * ones)


@dataclass(frozen=True, kw_only=True)
class Fixed:
    """The same pairs over and over."""

    batch_of: Batch
    name: str = "fixed"
    n_ctx: int = 7
    tokenizer: WordTokenizer = WORDS

    def solve(self, text):
        return "w7"

    def batch(self, n, *, split, seed):
        return self.batch_of.rows(torch.arange(n) % len(self.batch_of))


def circuit_of(subject, nodes, values, **more) -> Circuit:
    return Circuit(
        nodes=tuple(nodes),
        edges=(),
        widths=subject.widths,
        n_layers=2,
        criterion=Criterion(task="none", task_options=None),
        model_hash=subject.fingerprint(),
        values=values,
        **more,
    )


def test_a_head_is_one_node_and_is_held_at_a_number_for_each_channel(subject, batch):
    assert {site.name: n for site, n in subject.widths.items()} == {
        "attn_head": 4,
        "mlp_neuron": 128 if "GPT2" in type(subject.bridge.original_model).__name__ else 64,
    }
    seen = []
    with subject.hooks([("blocks.1.attn.hook_z", lambda x, hook: seen.append(x.detach()))]):
        subject(batch.clean)
    for kind, shape in (("mean", (32,)), ("zero", (32,)), ("position", (7, 32)), ("resample", (6, 7, 32))):
        assert ablation_values(subject, batch.clean, kind)[Site(1, "attn_head")].shape == shape
    values = mean_values(subject, batch.clean)
    torch.testing.assert_close(values[Site(1, "attn_head")], seen[0].mean((0, 1)).flatten())


@pytest.mark.parametrize("kind", ["mean", "resample"])
def test_a_closed_head_is_replaced_whole(subject, batch, kind):
    site = Site(0, "attn_head")
    values = ablation_values(subject, batch.corrupt, kind)
    mask = torch.tensor([1.0, 0.0, 1.0, 1.0])
    found = run_masked(subject, batch.clean, {site: mask}, values)

    def by_hand(z, hook):
        z = z.clone()
        held = values[site].view(*values[site].shape[:-1], 4, 8)
        z[:, :, 1] = held[..., 1, :]
        return z

    with subject.hooks([("blocks.0.attn.hook_z", by_hand)]):
        expected = subject(batch.clean)
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found, subject(batch.clean), atol=1e-3)


def test_a_circuit_of_heads_is_saved_and_runs_and_belongs_to_a_subject_of_its_sites(subject, batch, tmp_path):
    values = mean_values(subject, batch.clean)
    nodes = [Node(0, "attn_head", 2), Node(1, "attn_head", 0), Node(1, "mlp_neuron", 5)]
    effects = effects_between(subject, nodes, values, batch)
    circuit = circuit_of(subject, nodes, values, effects=tuple(effects))
    again = Circuit.load(circuit.save(tmp_path / "c.json"))
    assert again == circuit
    assert again.effects == circuit.effects != ()
    assert again.n_edges == 0
    masks = {site: torch.zeros(n) for site, n in subject.widths.items()}
    for node in nodes:
        masks[node.at][node.index] = 1
    expected = run_masked(subject, batch.clean, masks, values)
    torch.testing.assert_close(run_circuit(subject, again, batch.clean), expected)
    graph = again.to_networkx()
    assert {kind for *_, kind in graph.edges(data="kind")} == {"effect"}
    assert all("weight" not in data for *_, data in graph.edges(data=True))
    other = LensSubject(subject.bridge, sites=["mlp_neuron"])
    with pytest.raises(ValueError, match=r"but of \['attn_head'\] this LensSubject has none"):
        check_belongs(other, again)


def test_an_effect_is_the_slope_of_patching_one_path(subject, batch):
    """By finite differences: the source moves a little on its way to one target, all else stands."""
    values = mean_values(subject, batch.clean)
    nodes = [
        Node(0, "attn_head", 2),
        Node(0, "mlp_neuron", 3),
        Node(1, "attn_head", 1),
        Node(1, "mlp_neuron", 7),
    ]
    found = {(e.source, e.target): e.size for e in effects_between(subject, nodes, values, batch)}
    assert len(found) > 6
    step = 2e-2
    for (source, target), size in found.items():
        if source is None or abs(size) < 0.05 * max(map(abs, found.values())):
            continue
        moved = [path_patched(subject, nodes, values, batch, source, target, e) for e in (step, -step)]
        assert size == pytest.approx((moved[1] - moved[0]) / (2 * step), rel=0.05, abs=1e-3)


def path_patched(subject, nodes, values, batch, source, target, share) -> float:
    """Mean margin while `source` is moved by a share towards the corrupted prompt on the direct path to `target`."""
    masks = node_masks(nodes, subject.widths, subject.like)

    def run(tokens, fixed):
        seen = {}

        def hook_at(node):
            def put(x, hook):
                flat = x.flatten(2).clone()
                own = flat.unflatten(2, (subject.widths[node.at], -1))
                seen[node] = own[:, :, node.index].clone()
                if node in fixed:
                    own[:, :, node.index] = fixed[node]
                return flat.view(x.shape)

            return (subject.hook_name(node.at), put)

        with torch.no_grad(), subject.hooks([hook_at(node) for node in nodes]):
            logits = run_masked(subject, tokens, masks, values)
        return seen, margins(logits, Targets(tokens, batch.answer, batch.foil, batch.position)).mean()

    clean, corrupt = run(batch.clean, {})[0], run(batch.corrupt, {})[0]
    nudged = clean[source] + share * (corrupt[source] - clean[source])
    others = {node: clean[node] for node in nodes if node != target}
    seen, margin = run(batch.clean, {**others, source: nudged})
    if target is None:
        return float(margin)
    return float(run(batch.clean, {target: seen[target]})[1])


def test_effects_that_cannot_be_are_refused_by_name(subject, batch):
    values = mean_values(subject, batch.clean)
    early, late = Node(0, "attn_head", 2), Node(1, "mlp_neuron", 0)
    for effect, said in (
        (Effect(late, early, 1.0), "does not come before"),
        (Effect(Node(0, "attn_head", 1), None, 1.0), "which is no node"),
        (Effect(early, late, float("nan")), "expected a finite number"),
    ):
        with pytest.raises(ValueError, match=f"effects: .*{said}"):
            circuit_of(subject, [early, late], values, effects=(effect,))
    data = circuit_of(subject, [early], values, effects=(Effect(None, early, 0.5),)).to_json()
    for wrong in ("x", [["a"]], [[1, None, 0.5]], [[None, None, "1"]]):
        with pytest.raises(ValueError, match="effects: got"):
            Circuit.from_json(json.loads(json.dumps({**data, "effects": wrong})))


@pytest.mark.slow
@pytest.mark.parametrize(
    "method", ["gates", "attribution patching", "integrated gradients", "activation patching"]
)
def test_heads_are_ranked_beside_neurons(subject, batch, method):
    ranking = rank(
        subject, Fixed(batch_of=batch), method=method, config=RankConfig(n_pairs=4, n_mean=6, steps=4)
    )
    assert {site: len(score) for site, score in ranking.scores.items()} == dict(subject.widths)
    assert len(ranking.nodes()) == sum(subject.widths.values())


@pytest.mark.slow
def test_a_heads_score_is_that_of_all_its_channels_together(subject, batch):
    whole = rank(subject, Fixed(batch_of=batch), method="activation patching", config=RankConfig(n_pairs=12))
    runs = MaskedModel(subject, mean_values(subject, batch.clean), batch)
    full = runs.full_margins[:6]
    seen = []
    with torch.no_grad(), subject.hooks([("blocks.0.attn.hook_z", lambda x, hook: seen.append(x))]):
        subject(batch.corrupt)

    def put(z, hook):
        z = z.clone()
        z[:, :, 3] = seen[0][:, :, 3]
        return z

    with torch.no_grad(), subject.hooks([("blocks.0.attn.hook_z", put)]):
        moved = (
            margins(subject(batch.clean), Targets(batch.clean, batch.answer, batch.foil, batch.position))
            - full
        )
    assert float(whole.scores[Site(0, "attn_head")][3]) == pytest.approx(float(moved.abs().mean()), abs=1e-5)


def test_many_nodes_are_no_list_until_they_are_asked_for():
    widths = {Site(0, "attn_head"): 3, Site(0, "mlp_neuron"): 4}
    gone = [Node(0, "mlp_neuron", 1), Node(0, "attn_head", 0)]
    rest = AllBut(widths, gone)
    assert list(rest) == [node for node in all_nodes(widths) if node not in gone]
    assert len(rest) == 5
    assert Node(0, "mlp_neuron", 2) in rest
    assert gone[0] not in rest
    assert Node(0, "mlp_neuron", 4) not in rest
    assert rest[1] == list(rest)[1]
    for nodes in (rest, list(rest)):
        masks = node_masks(nodes, widths, torch.zeros(1))
        assert [mask.tolist() for mask in masks.values()] == [[0, 1, 1], [1, 0, 1, 1]]
    big = NodesOf(Site(0, "mlp_neuron"), 300_000)
    assert (len(big), big[299_999], big[-1]) == (300_000, Node(0, "mlp_neuron", 299_999), big[299_999])
    assert big[2:4] == [Node(0, "mlp_neuron", 2), Node(0, "mlp_neuron", 3)]
    with pytest.raises(IndexError):
        big[300_000]
    ranked = Ranked([big, ["a", "b"]], torch.tensor([300_001, 5, 300_000]))
    assert list(ranked) == ["b", Node(0, "mlp_neuron", 5), "a"]
    assert (len(ranked), ranked[0]) == (3, "b")
