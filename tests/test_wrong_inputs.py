"""What users give by mistake: each is refused in a sentence that names the argument, what it got, and what to do.

All of it runs in one process without the checks of shapes and types that tests have otherwise: a user has none either.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SETUP = """
import json, os, sys
from pathlib import Path
import torch
import circuits, tasks
from circuits.plots import plot
from circuits.ranking import rank
from circuits.trust import TrustConfig, trust_report
from tasks import Corpus, from_pairs, load_corpus, load_task
from tasks.base import corpus_of_lines

training = circuits.load("mini-python").training
model, task = training.model, load_task("quotes")
PruneConfig, TrainConfig = circuits.PruneConfig, circuits.TrainConfig
one_step = TrainConfig.toy(steps=1)
tokens = torch.zeros(1, 5, dtype=torch.int64)
empty = Corpus(name="mine", tokenizer=task.tokenizer, train=torch.zeros(0), val=torch.zeros(0))
Path("folder").mkdir()
Path("list.json").write_text("[1]")
"""
WRONG = {
    # what is no checkpoint, no circuit, no model
    "circuits.load_checkpoint('folder')": r"path: folder .* expected a file that save_checkpoint",
    "circuits.load_checkpoint('gone.safetensors')": r"path: gone.safetensors .*expected a file",
    "circuits.Training.load('folder')": r"path: folder .* expected a file",
    "circuits.Circuit.load('folder')": r"path: folder .* expected a file that Circuit.save wrote",
    "circuits.prune(training, task)": r"model: got a Training; .*Pass its model: training\.model\.",
    "circuits.prune('m.safetensors', task)": r"model: got a str; .*Load it: .*\('m\.safetensors'\)\.model",
    "trust_report(training, 'c.json')": r"model: got a Training; .*training\.model",
    "circuits.save_checkpoint('m.safetensors', training)": r"model: got a Training; .*training\.model",
    "trust_report(model, 'c.json')": r"circuit: got 'c\.json'; expected a Circuit\. Load one: circuits\.Circuit\.load",
    "circuits.run_circuit(model, 'c.json', tokens)": r"circuit: got 'c\.json'; expected a Circuit\. Load one",
    "circuits.fit_bridges(model, 'm.safetensors', training.corpus)": r"sparse: got 'm.safetensors'; expected a Sparse",
    "circuits.fit_bridges(model, model, 'mini')": r"text: got 'mini'; expected a Corpus\. Make one: tasks\.load_corpus",
    # what is no task, text or settings
    "circuits.prune(model, 'quotes')": r"task: got 'quotes'; expected a Task\. Make it: tasks\.load_task_for",
    "circuits.prune(model, task, {'steps': 3})": r"config: got a dict; expected a PruneConfig\. Make one",
    "circuits.prune(model, task, corpus='mini')": r"corpus: got 'mini'; expected a Corpus\. Make one",
    "circuits.task_score(model, 'quotes')": r"batch: got 'quotes'; expected a Batch\. Draw one: task\.batch\(",
    "circuits.train('toy')": r"config: got 'toy'; expected a TrainConfig\. Make one",
    "circuits.train({'steps': 3})": r"config: got a dict; expected a TrainConfig\. Make one",
    "circuits.train(one_step, corpus='mini')": r"corpus: got 'mini'; expected a Corpus\. Make one",
    "circuits.train(one_step, corpus=empty)": r"corpus: got 0 tokens of float32 in 'train' of 'mine'; expected whole",
    "circuits.train(one_step, corpus=corpus_of_lines('mine', task.tokenizer, [], []))": r"corpus: got 0 .*more text",
    "load_task('quote')": r"task: got 'quote'; expected one of .*Did you mean 'quotes'\?",
    "load_task('quotes', lines=1)": r"option of 'quotes': got 'lines'; expected one of .*context_lines",
    "load_corpus('minni')": r"corpus: got 'minni'; expected one of .*Did you mean 'mini'\?",
    "from_pairs([('a', 'b')], task.tokenizer)": r"pairs: row 0 is .*expected four texts",
    "from_pairs([], task.tokenizer)": r"pairs: got no rows; expected at least 3",
    "from_pairs('gone.csv', task.tokenizer)": r"pairs: gone.csv cannot be read .*expected a CSV file with columns",
    "circuits.load('mini-pyton')": r"name: got 'mini-pyton'; expected one of .*Did you mean 'mini-python'\?",
    "circuits.load(5)": r"name: got 5; expected one of",
    "circuits.load('quotes-12')": r"name: got .*Did you mean 'quotes-128'\?",
    # tokens and devices
    "model(torch.zeros(5, dtype=torch.int64))": r"tokens: got shape \(5,\); expected .*tokens\[None\]",
    "model(torch.zeros(1, 5))": r"tokens: got torch\.float32; expected whole numbers",
    "model(tokens + 1000)": r"tokens: got ids from 1000 to 1000; expected 0 to",
    "model(torch.zeros(1, 500, dtype=torch.int64))": r"tokens: got a sequence of 500 tokens; expected at most n_ctx",
    "circuits.mean_values(model, tokens[0])": r"tokens: got shape \(5,\); expected",
    "model.to('gpu')": r"device: got 'gpu'; expected 'cpu', or 'cuda'",
    # settings
    "PruneConfig(target_accuracy=2)": r"target_accuracy: got 2; expected a fraction in \[0, 1\]",
    "PruneConfig(penalty=-1)": r"penalty: got -1; expected a number of at least 0",
    "PruneConfig(steps=10.5)": r"steps: got 10\.5; expected a whole number of at least 1",
    "PruneConfig(ablation='resampel')": r"ablation: got 'resampel'; expected one of .*Did you mean 'resample'\?",
    "PruneConfig(objective='margin')": r"objective: got 'margin'; expected .*Did you mean 'margins'\?",
    "TrainConfig.from_json({'steps': 'many'})": r"steps: got 'many'; expected a whole number",
    "TrainConfig.from_json({'lr': None})": r"lr: got None; expected a positive number",
    "TrainConfig.from_json({'model': 5})": r"model: got 5; expected a ModelConfig",
    "TrainConfig.from_json({'stps': 5})": r"unknown key \['stps'\]; expected .*Did you mean 'steps'\?",
    "TrainConfig.toy(density=2)": r"density: got 2; expected a density in \(0, 1\]",
    "circuits.ModelConfig(attention='softmx')": r"attention: got 'softmx'; expected .*Did you mean 'softmax'\?",
}
"""What is given, and what is said of it."""
NAMES = {
    "PruneConfig(stps=5)": r"PruneConfig: got a setting 'stps'; expected some of .*Did you mean 'steps'\?",
    "TrainConfig.toy(lrr=1.0)": r"TrainConfig: got a setting 'lrr'; expected some of .*Did you mean 'lr'\?",
    "plot('c.json')": r"thing: got a str; expected one of BridgeSet, Circuit",
    "circuits.prun": r"module 'circuits' has no attribute 'prun'; it offers .*Did you mean 'prune'\?",
}
"""What Python has errors of its own for: TypeError and AttributeError."""
COLLECT = """
found = {}
for code in json.loads(sys.stdin.read()):
    try:
        exec(code)
        found[code] = ["nothing", "it was accepted"]
    except Exception as error:
        found[code] = [" ".join(kind.__name__ for kind in type(error).__mro__), str(error)]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory) -> dict[str, list[str]]:
    """What each wrong input raised: the names of the error's classes, and its message."""
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", SETUP + COLLECT],
        input=json.dumps([*WRONG, *NAMES]),
        cwd=tmp_path_factory.mktemp("wrong"),
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("code", WRONG)
def test_a_wrong_input_is_a_value_error_that_says_what_to_do(said, code):
    kinds, message = said[code]
    assert "ValueError" in kinds.split(), (kinds, message)
    assert re.search(WRONG[code], message), message
    assert "\n" not in message


@pytest.mark.parametrize("code", NAMES)
def test_a_wrong_name_is_answered_with_the_nearest(said, code):
    kinds, message = said[code]
    assert {"TypeError", "AttributeError"} & set(kinds.split()), (kinds, message)
    assert re.search(NAMES[code], message), message
