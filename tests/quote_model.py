"""A one-layer model that closes quotes, made by hand, whose circuit is known."""

from circuits.circuit.nodes import Node
from circuits.model.config import ModelConfig
from circuits.model.transformer import SparseTransformer
from tasks import load_corpus

CORPUS = load_corpus("mini")
ID = CORPUS.tokenizer.id
TRUE_NODES = (
    Node(0, "attn_in", 3), Node(0, "attn_in", 5), Node(0, "attn_k", 1), Node(0, "attn_v", 2), Node(0, "attn_out", 7),
)  # fmt: skip


def quote_closer() -> SparseTransformer:
    """One layer, by hand: a key looks for quotes (channel 3), the value carries which (5), the output says it (7)."""
    config = ModelConfig(
        d_vocab=CORPUS.tokenizer.d_vocab, n_layers=1, d_model=16, n_heads=2, d_head=4, d_mlp=8, n_ctx=64,
        topk_fraction=None, bigram=False,
    )  # fmt: skip
    model = SparseTransformer(config, seed=0).eval()
    for parameter in model.parameters():
        parameter.data.zero_()
    single, double = ID("'"), ID('"')
    model.W_E.data[:, 0] = 4.0  # what every token has, so that the norm cannot blow a faint signal up
    model.W_E.data[[single, double], 3] = 4.0
    model.W_E.data[single, 5], model.W_E.data[double, 5] = 4.0, -4.0
    attention = model.blocks[0].attn
    attention.k.weight.data[3, 1] = 8.0
    attention.q.bias.data[1] = 4.0
    attention.sink.data.fill_(8.0)  # takes the attention that no key claims
    attention.v.weight.data[5, 2] = 2.0
    attention.o.weight.data[2, 7] = 4.0
    model.W_U.data[7, single], model.W_U.data[7, double] = 4.0, -4.0
    return model
