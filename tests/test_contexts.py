"""Where nodes are high in running text: the right places, each text once, and refusals."""

import pytest
import torch

from circuits.circuit.nodes import Node
from circuits.decompile import contexts
from circuits.zoo import load
from tasks import load_corpus


def test_the_places_are_those_where_the_value_is_farthest_from_0():
    found = load("quotes-128")
    nodes = [node for node in found.circuit.nodes if node.site in ("attn_v", "attn_out")][:3]
    seen = contexts(found.model, nodes, found.corpus, n=4, n_windows=20, seed=3)
    windows = found.corpus.windows(20, 40, split="val", generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        _, cache = found.model.run_with_cache(windows)
    for node in nodes:
        values = cache[found.model.hook_name(node.at)].flatten(2)[..., node.index]
        said = [float(line.rpartition("(")[2][:-1]) for line in seen[node]]
        assert abs(said[0]) == pytest.approx(float(values.abs().max()), abs=0.006)
        assert [abs(x) for x in said] == sorted((abs(x) for x in said), reverse=True)
        texts = [line.rpartition(" (")[0] for line in seen[node]]
        assert len(set(texts)) == 4
        row, at = divmod(int(values.abs().argmax()), 40)
        assert texts[0] == found.corpus.tokenizer.decode(windows[row, max(0, at - 11) : at + 1].tolist())


def test_wrong_inputs_are_refused():
    found, node = load("quotes-128"), Node(0, "attn_v", 0)
    for name in ("n", "n_windows"):
        with pytest.raises(ValueError, match=f"{name}: got 0; expected at least 1"):
            contexts(found.model, [node], found.corpus, **{name: 0})
    with pytest.raises(ValueError, match="tokens for a model of 50"):
        contexts(found.model, [node], load_corpus("composition"))
