"""Pruning a Hugging Face model: trained here until it solves a task, a circuit of its nodes, scored by hand."""

from dataclasses import dataclass
from functools import cache

import pytest
import torch
from induction_model import bridge
from torch.nn import functional as F

from circuits.circuit.circuit import Circuit
from circuits.circuit.masked import run_circuit
from circuits.interop import LensSubject
from circuits.pruning import PruneConfig, prune
from tasks import Batch
from tasks.tokenizer import WordTokenizer

N_WORDS, N_POS = 50, 5
WORDS = WordTokenizer(name="w", words=tuple(f"w{i}" for i in range(N_WORDS)))
FEW = PruneConfig(
    starts=1, steps=40, batch_size=16, n_mean=64, n_eval=16, n_test=32, target_loss=0.3, target_accuracy=0.9
)


@dataclass(frozen=True, kw_only=True)
class Say:
    """Say again the word at one place: the first, or the one before the last."""

    place: int
    name: str = "say"
    n_ctx: int = N_POS
    tokenizer: WordTokenizer = WORDS

    def solve(self, text):
        return text.split()[self.place]

    def batch(self, n, *, split, seed):
        generator = torch.Generator().manual_seed(100 * len(split) + seed)
        clean = torch.randint(10, N_WORDS, (n, N_POS), generator=generator)
        answer = torch.randint(2, 10, (n,), generator=generator)
        foil = (answer - 2 + torch.randint(1, 8, (n,), generator=generator)) % 8 + 2
        corrupt = clean.clone()
        clean[:, self.place], corrupt[:, self.place] = answer, foil
        position = torch.full((n,), N_POS - 1)
        return Batch(clean=clean, corrupt=corrupt, answer=answer, foil=foil, position=position)


@cache
def trained(kind: str, place: int) -> LensSubject:
    torch.manual_seed(0)
    model = bridge(kind)
    hf, task = model.original_model, Say(place=place)
    optimizer = torch.optim.AdamW(hf.parameters(), lr=1e-2, weight_decay=0.0)
    hf.train()
    for step in range(200):
        batch = task.batch(64, split="train", seed=step)
        loss = F.cross_entropy(hf(batch.clean).logits[:, -1], batch.answer)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return LensSubject(model.eval(), sites=("attn_v", "mlp_neuron"))


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "place"), [("gpt2", 3), ("llama", 0)])
def test_a_trained_model_has_a_small_circuit_that_runs_as_it_is_said(kind, place):
    subject, task = trained(kind, place), Say(place=place)
    circuit = prune(subject, task, FEW, progress=False)
    total = sum(subject.widths.values())
    assert {site.name for site in subject.widths} == {"attn_v", "mlp_neuron"}
    assert 0 < circuit.n_nodes < total / 2
    assert circuit.n_edges == 0
    assert circuit.metrics["one_minimal"]
    assert circuit.metrics["full_task_accuracy"] > 0.98
    assert circuit.metrics["agreement_with_model"] > 0.85
    assert circuit.metrics["margin_error"] < 0.45
    batch = task.batch(FEW.n_test, split="test", seed=0)
    found = by_hand(subject, circuit, batch)
    assert found == pytest.approx(circuit.metrics["margin_error"], rel=1e-3)
    again = Circuit.from_json(circuit.to_json())
    assert torch.equal(run_circuit(subject, again, batch.clean), run_circuit(subject, circuit, batch.clean))
    nothing = by_hand(subject, circuit, batch, keep=False)
    assert nothing > 0.5


def by_hand(subject, circuit, batch, *, keep=True) -> float:
    """Error of the margins over their mean square, with hooks of its own on the wrapped model."""
    tokens, rows = torch.cat([batch.clean, batch.corrupt]), range(2 * len(batch))
    answers = torch.cat([batch.answer, batch.foil]).tolist()
    foils = torch.cat([batch.foil, batch.answer]).tolist()

    def margins_with(hooks):
        with torch.no_grad(), subject.bridge.hooks(fwd_hooks=hooks):
            last = subject.bridge(tokens)[:, -1]
        return torch.stack([last[i, answers[i]] - last[i, foils[i]] for i in rows])

    def mask(site):
        def put(x, hook):
            flat = x.flatten(2).clone()
            for i in range(flat.shape[-1]):
                if not keep or not any(n.at == site and n.index == i for n in circuit.nodes):
                    flat[..., i] = circuit.values[site][i]
            return flat.view(x.shape)

        return (subject.hook_name(site), put)

    full, kept = margins_with([]), margins_with([mask(site) for site in subject.sites()])
    return float((kept - full).square().mean() / full.square().mean())


def test_grouped_values_are_nodes_of_their_own():
    subject = trained("llama", 0)
    widths = {site.name: width for site, width in subject.widths.items()}
    assert (widths["attn_v"], widths["mlp_neuron"]) == (16, 64)


def test_sites_are_chosen_by_name():
    model = trained("llama", 0).bridge
    assert {site.name for site in LensSubject(model, sites=["mlp_neuron"]).sites()} == {"mlp_neuron"}
    assert len(LensSubject(model).sites()) == 12
    for sites in ([], ["mlp_in"], ["attn_in", "attn_q"]):
        with pytest.raises(ValueError, match="sites: got .*; expected some of"):
            LensSubject(model, sites=sites)
