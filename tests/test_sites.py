"""A new site is a row of the table and a hook point: the package runs with one more, and old files stay theirs."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROW = '    SiteRow("attn_z", "d_attn", "attn.hook_z", None, True, "z"),\n'
BEFORE = '    SiteRow("attn_out",'
SCRIPT = """
import json, sys, torch
from circuits import Circuit, ModelConfig, SparseTransformer, load_checkpoint, mean_values, run_circuit, run_masked
from circuits import decompile, pruning, trust
from circuits.circuit.score import margins, score_margins
from circuits.model.sites import SITES, Site
from circuits.pruning import procedure
from tasks.base import Targets

folder = sys.argv[1]
expected = json.load(open(folder + "/expected.json"))
targets = Targets(**{k: torch.tensor(v) for k, v in expected["targets"].items()})
new = Site(0, "attn_z")

old = load_checkpoint(folder + "/model.safetensors").model.eval()
assert new in old.sites() and "attn_z" not in old.config.topk_sites
assert old.fingerprint() == expected["model"]
for ablation, loss in expected["losses"].items():
    circuit = Circuit.load(f"{folder}/{ablation}.json")
    assert new not in circuit.sites
    found = score_margins(margins(run_circuit(old, circuit, targets.tokens), targets).detach()).loss
    assert abs(found - loss) < 1e-6, (ablation, found, loss)

shape = dict(d_vocab=11, n_layers=1, d_model=8, n_heads=2, d_head=4, d_mlp=8, n_ctx=5)
model = SparseTransformer(ModelConfig(**shape))
before = SparseTransformer(ModelConfig(**shape, topk_sites=tuple(s for s in SITES if s != "attn_z")))
assert model.fingerprint() != before.fingerprint()
tokens = torch.arange(10).view(2, 5)
values = mean_values(model, tokens)
assert values[new].shape == (8,)
with model.hooks(fwd_hooks=[("blocks.0.hook_attn_out", lambda x, hook: seen.append(x))]):
    seen = []
    run_masked(model, tokens, {new: torch.ones(8)}, values)
    run_masked(model, tokens, {new: torch.zeros(8)}, values)
whole, closed = seen
assert not torch.equal(whole[0], whole[1]) and torch.equal(closed[0], closed[1])
"""


@pytest.fixture
def with_a_ninth_site(tmp_path) -> Path:
    """A copy of the package in which the table, and nothing else, has one more row."""
    shutil.copytree(
        ROOT / "circuits",
        tmp_path / "circuits",
        ignore=shutil.ignore_patterns("*.safetensors", "__pycache__"),
    )
    table = tmp_path / "circuits" / "model" / "sites.py"
    text = table.read_text()
    assert text.count('"attn_out", "mlp_in"') == text.count(BEFORE) == 1
    text = text.replace('"attn_out", "mlp_in"', '"attn_z", "attn_out", "mlp_in"')
    table.write_text(text.replace(BEFORE, ROW + BEFORE))
    return tmp_path


@pytest.mark.slow
def test_a_ninth_site_takes_a_row_of_the_table(with_a_ninth_site):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(ROOT / "tests" / "data" / "format-1")],
        capture_output=True,
        text=True,
        cwd=with_a_ninth_site,
        env={**os.environ, "PYTHONPATH": f"{with_a_ninth_site}{os.pathsep}{ROOT}"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
