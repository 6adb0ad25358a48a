"""Subjects: a model that TransformerLens wraps answers what ours answers, and masks mean the same in both."""

import pytest
import torch
from tokenizers import Tokenizer, models
from transformer_lens.model_bridge import TransformerBridge
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from circuits.bridges.sides import Side
from circuits.circuit.ablation import ablation_values, mean_values
from circuits.circuit.circuit import Circuit
from circuits.circuit.criterion import Criterion
from circuits.circuit.masked import run_circuit, run_masked
from circuits.circuit.nodes import Node
from circuits.interop.lens import HOOKS, LensSubject
from circuits.model.config import ModelConfig
from circuits.model.sites import Site, WeightAt
from circuits.model.subject import SparseSubject, Subject
from circuits.model.transformer import SparseTransformer

OURS = ModelConfig(d_vocab=20, n_layers=2, d_model=16, n_heads=4, d_head=4, d_mlp=32, n_ctx=24, bigram=False)
KINDS = ("gpt2", "llama")


def wrapped(kind: str) -> TransformerBridge:
    """A small Hugging Face model behind a TransformerBridge; the Llama has half as many k and v heads as q heads."""
    torch.manual_seed(0)
    if kind == "gpt2":
        shape = GPT2Config(vocab_size=20, n_positions=24, n_embd=16, n_layer=2, n_head=4, n_inner=32)
        model, name = GPT2LMHeadModel(shape), "gpt2"
    else:
        shape = LlamaConfig(
            vocab_size=20,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=24,
        )
        model, name = LlamaForCausalLM(shape), "meta-llama/Llama-2-7b-hf"
    words = Tokenizer(models.WordLevel({chr(97 + i): i for i in range(20)}, unk_token="a"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="a", pad_token="a")
    bridge = TransformerBridge.boot_transformers(
        name, hf_model=model, tokenizer=tokenizer, device="cpu"
    ).eval()
    for parameter in bridge.parameters():
        parameter.data.mul_(5)  # at their initial size nothing reaches the logits
    return bridge


@pytest.fixture(scope="module", params=KINDS)
def subject(request) -> LensSubject:
    return LensSubject(wrapped(request.param))


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(0, 20, (6, 9))


def masks_of(subject: Subject, keep: float) -> dict[Site, torch.Tensor]:
    return {site: torch.full((width,), keep) for site, width in subject.widths.items()}


def test_both_kinds_of_model_are_subjects_and_only_ours_has_sparse_weights(subject):
    ours = SparseTransformer(OURS)
    assert isinstance(ours, Subject)
    assert isinstance(ours, SparseSubject)
    assert isinstance(subject, Subject)
    assert not isinstance(subject, SparseSubject)
    assert not isinstance(torch.nn.Linear(1, 1), Subject)
    for model in (ours, subject):
        assert (model.d_vocab, model.n_ctx) == (20, 24)
        assert model.sites() == list(model.widths)
        assert model.like.dtype == torch.float32
    assert subject.fingerprint() == Side(subject.bridge, "dense").fingerprint()


def test_widths_are_those_of_the_config_and_narrower_for_grouped_k_and_v(subject):
    cfg = subject.bridge.cfg
    kv = (cfg.n_key_value_heads or cfg.n_heads) * cfg.d_head
    layer = {"attn_q": 16, "attn_k": kv, "attn_v": kv, "attn_out": 16, "mlp_neuron": 32, "mlp_out": 16}
    assert subject.widths == {Site(i, name): width for i in range(2) for name, width in layer.items()}
    assert kv == (8 if "Llama" in type(subject.bridge.original_model).__name__ else 16)


def test_all_gates_open_is_the_plain_model_bit_for_bit(subject, tokens):
    values = mean_values(subject, tokens)
    assert torch.equal(run_masked(subject, tokens, masks_of(subject, 1.0), values), subject(tokens))
    assert torch.equal(subject.bridge(tokens), subject(tokens))


def test_all_gates_closed_leaves_the_token_at_hand_and_constants(subject, tokens):
    """By hand: the embedding plus what attention and MLP write on average, through the last norm and W_U."""
    values = mean_values(subject, tokens)
    closed = run_masked(subject, tokens, masks_of(subject, 0.0), values)
    model = subject.bridge.original_model
    constant = sum(values[Site(i, name)] for i in range(2) for name in ("attn_out", "mlp_out"))
    if hasattr(model, "transformer"):
        body = model.transformer
        embedded, norm = body.wte(tokens) + body.wpe(torch.arange(9)), body.ln_f
    else:
        embedded, norm = model.model.embed_tokens(tokens), model.model.norm
    expected = model.lm_head(norm(embedded + constant))
    torch.testing.assert_close(closed, expected, atol=1e-5, rtol=1e-4)
    other = tokens.clone()
    other[:, :-1] = (other[:, :-1] + 1) % 20
    again = run_masked(subject, other, masks_of(subject, 0.0), values)
    assert torch.equal(again[:, -1], closed[:, -1])
    assert not torch.allclose(subject(other)[:, -1], subject(tokens)[:, -1], atol=1e-3)


@pytest.mark.parametrize("name", HOOKS)
def test_every_site_reaches_the_logits_and_its_mean_is_that_of_its_hook(subject, tokens, name):
    site, subject = Site(1, name), LensSubject(subject.bridge, sites=[name])
    values = mean_values(subject, tokens, batch_size=4)
    seen = []
    with subject.hooks(fwd_hooks=[(subject.hook_name(site), lambda x, hook: seen.append(x))]):
        plain = subject(tokens)
    torch.testing.assert_close(values[site], seen[0].flatten(2).mean((0, 1)), atol=1e-6, rtol=1e-5)
    closed = run_masked(subject, tokens, {site: torch.zeros(subject.widths[site])}, values)
    assert not torch.allclose(closed, plain, atol=1e-4)


def test_masks_have_gradients_and_a_circuit_of_nodes_runs(subject, tokens):
    values = ablation_values(subject, tokens, "zero")
    site = Site(0, "mlp_neuron")
    mask = torch.full((32,), 0.5, requires_grad=True)
    run_masked(subject, tokens, {site: mask}, values).square().mean().backward()
    assert int(mask.grad.count_nonzero()) == 32
    circuit = Circuit(
        nodes=(Node(0, "mlp_neuron", 3),),
        edges=(),
        widths=subject.widths,
        n_layers=2,
        criterion=Criterion(task="none", task_options=None, ablation="zero"),
        model_hash=subject.fingerprint(),
        values=values,
    )
    masks = masks_of(subject, 0.0)
    masks[site][3] = 1
    found = run_circuit(subject, Circuit.from_json(circuit.to_json()), tokens)
    assert torch.equal(found, run_masked(subject, tokens, masks, values))


def test_what_is_no_subject_is_refused(subject, tokens):
    with pytest.raises(ValueError, match="bridge: got a SparseTransformer; expected a TransformerBridge"):
        LensSubject(SparseTransformer(OURS))
    with pytest.raises(ValueError, match=r"training mode.*bridge.eval\(\)"):
        LensSubject(wrapped("gpt2").train())
    edges = {WeightAt(0, "W_out"): torch.ones(32, 16)}
    with pytest.raises(ValueError, match="edge_masks: got some for a LensSubject; expected none"):
        run_masked(subject, tokens, {}, mean_values(subject, tokens), edges)


def test_only_sites_whose_hooks_are_met_count(subject, monkeypatch):
    monkeypatch.setitem(HOOKS, "attn_q", "attn.hook_nowhere")
    found = LensSubject(subject.bridge).sites()
    assert found == [site for site in subject.sites() if site.name != "attn_q"]
    for name in HOOKS:
        monkeypatch.setitem(HOOKS, name, "hook_nowhere")
    with pytest.raises(ValueError, match="bridge: none of the hook points .* is met when it runs"):
        LensSubject(subject.bridge)
