"""A model carries its tokenizer and knows its text: wherever another one meets it, it is refused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from quote_model import quote_closer
from safetensors import safe_open
from safetensors.torch import save_file
from test_own_text import prose
from typer.testing import CliRunner

from circuits.__main__ import app
from circuits.bridges import BridgeConfig, fit_bridges, load_bridges
from circuits.circuit.circuit import Circuit
from circuits.circuit.criterion import Criterion
from circuits.circuit.score import check_task
from circuits.model.checkpoint import load_checkpoint, save_checkpoint
from circuits.model.config import ModelConfig
from circuits.model.stored import KEY, sealed_text
from circuits.model.text import AnotherTextWarning, text_of
from circuits.model.transformer import SparseTransformer
from circuits.pruning.config import PruneConfig
from circuits.pruning.procedure import prune
from circuits.reading import UnreadableError
from circuits.training.config import TrainConfig
from circuits.training.loop import Training, train
from circuits.training.numbered import Keep, Numbered
from circuits.training.saved import load_model_alone, load_trained
from circuits.trust import trust_report
from tasks import Corpus, TextId, load_corpus, load_task, load_task_for, tokenizer_hash
from tasks.tokenizer import BPE, MINI_SYMBOLS, CharTokenizer, WordTokenizer
from tasks.tokenizer_files import TokenizerMismatchError, load_tokenizer, tokenizer_from_json, tokenizer_json

RUN = CliRunner()
SHAPE = ModelConfig(n_layers=1, d_model=16, n_heads=2, d_head=4, d_mlp=8, n_ctx=64, topk_fraction=None)
QUICK = TrainConfig.dense(model=SHAPE, steps=3, batch_size=4, n_val=8)
TURNED = CharTokenizer(name="turned", symbols=MINI_SYMBOLS[::-1])
"""As many tokens as mini-Python's, each with another id: nothing but a hash tells them apart."""
MINI = load_corpus("mini")
TURNED_TEXT = Corpus(
    name="turned", tokenizer=TURNED, train=49 - MINI.train[:20_000], val=49 - MINI.val[:5_000]
)


pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def own(tmp_path: Path) -> Path:
    path = tmp_path / "own.txt"
    path.write_text(prose(0, 400))
    return path


@pytest.fixture
def turned() -> Training:
    """A model of text in the turned tokenizer."""
    return train(QUICK, corpus=TURNED_TEXT, progress=False)


@pytest.mark.parametrize(
    "tokenizer",
    [
        CharTokenizer(),
        WordTokenizer(name="sums", words=("\n", "+", "1")),
        BPE.train([prose(1)], name="bytes", d_vocab=290),
    ],
)
def test_a_tokenizer_comes_back_from_its_json_and_from_a_checkpoint(tmp_path, tokenizer):
    data = json.loads(json.dumps(tokenizer_json(tokenizer)))
    assert tokenizer_from_json(data) == tokenizer
    model = SparseTransformer(replace(SHAPE, d_vocab=tokenizer.d_vocab), tokenizer=tokenizer)
    back = load_checkpoint(save_checkpoint(tmp_path / "m.safetensors", model)).model
    assert back.tokenizer == tokenizer
    assert back.fingerprint() == model.fingerprint()


def test_a_hash_is_of_what_a_tokenizer_does_and_not_of_its_name():
    assert tokenizer_hash(replace(TURNED, name="other")) == tokenizer_hash(TURNED)
    assert tokenizer_hash(TURNED) != tokenizer_hash(CharTokenizer())
    bpe = BPE.train([prose(1)], name="a", d_vocab=290)
    padded = json.loads(bpe.model) | {"truncation": None, "version": "2.0"}
    assert tokenizer_hash(BPE(name="b", model=json.dumps(padded, indent=2))) == tokenizer_hash(bpe)
    assert tokenizer_hash(BPE.train([prose(2)], name="a", d_vocab=290)) != tokenizer_hash(bpe)
    assert tokenizer_hash(object()) is None


def test_a_hugging_face_tokenizer_is_carried(tmp_path):
    from transformers import PreTrainedTokenizerFast

    from tasks import HFTokenizer

    bpe = BPE.train([prose(1)], name="a", d_vocab=290)
    theirs = HFTokenizer(tokenizer=PreTrainedTokenizerFast(tokenizer_object=bpe._model))
    model = SparseTransformer(replace(SHAPE, d_vocab=290), tokenizer=theirs)
    back = load_checkpoint(save_checkpoint(tmp_path / "m.safetensors", model)).model
    assert back.tokenizer.encode(prose(3)) == bpe.encode(prose(3)) == theirs.encode(prose(3))
    assert tokenizer_hash(theirs) == tokenizer_hash(bpe)
    assert tokenizer_json(replace(theirs, n_logits=300)) is None


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "got kind None; expected one of"),
        ({"kind": "pickle"}, "got kind 'pickle'"),
        ({"kind": "words", "name": "x"}, "expected kind, name .a text. and words"),
        ({"kind": "characters", "name": "x", "symbols": [1]}, "got other symbols than texts"),
        ({"kind": "bpe", "name": "x", "model": 3}, "expected its JSON as text"),
        ({"kind": "bpe", "name": "x", "model": "{}"}, "got no tokenizer"),
        (
            {
                "kind": "bpe",
                "name": "x",
                "model": '{"version":"1.0","added_tokens":[],'
                '"model":{"type":"WordLevel","vocab":{"a":0,"b":7},"unk_token":"a"}}',
            },
            "got 2 ids of which the greatest is 7; expected them from 0 on",
        ),
    ],
)
def test_json_that_is_no_tokenizer(data, message):
    with pytest.raises(ValueError, match=message):
        tokenizer_from_json(data)


def test_files_that_are_no_tokenizer(tmp_path):
    with pytest.raises(ValueError, match="tokenizer: .* cannot be read .there is no such file"):
        load_tokenizer(tmp_path / "no.json")
    (tmp_path / "t.json").write_text("{")
    with pytest.raises(ValueError, match="tokenizer: .*t.json cannot be read .*expected a tokenizer.json"):
        load_tokenizer(tmp_path / "t.json")


def test_a_tokenizer_of_another_size_fits_no_model():
    with pytest.raises(ValueError, match="tokenizer: got 'mini-char' of 50 tokens for a model of 51"):
        SparseTransformer(replace(SHAPE, d_vocab=51), tokenizer=CharTokenizer())


def test_loading_refuses_another_tokenizer(tmp_path, turned):
    path = turned.save(tmp_path / "m.safetensors")
    assert load_checkpoint(path).model.tokenizer == TURNED
    assert load_checkpoint(path, tokenizer=replace(TURNED, name="same")).model.tokenizer == TURNED
    with pytest.raises(
        TokenizerMismatchError, match="tokenizer: got one, of .*'mini-char'.*expected that of .*'turned'"
    ):
        load_checkpoint(path, tokenizer=CharTokenizer())
    old = SparseTransformer(turned.model.config)
    save_checkpoint(path, old)
    assert load_checkpoint(path, tokenizer=TURNED).model.tokenizer == TURNED
    with pytest.raises(ValueError, match="of 3 tokens for a model of 50"):
        load_checkpoint(path, tokenizer=WordTokenizer(name="x", words=("a", "b", "c")))


def test_a_checkpoint_of_another_corpus_never_gets_mini_pythons_tokenizer(tmp_path, turned):
    path = turned.save(tmp_path / "m.safetensors")
    with pytest.raises(
        UnreadableError, match="corpus: the model's text cannot be had .*it was called 'turned'"
    ):
        load_trained(path)
    with pytest.raises(UnreadableError, match="corpus: the text 'mini' is none of the model's.*turned"):
        load_trained(path, corpus="mini")
    with pytest.raises(TokenizerMismatchError, match="corpus: got the text 'mini'"):
        load_trained(path, corpus=MINI)
    cut = replace(TURNED_TEXT, val=TURNED_TEXT.val[:-1])
    with pytest.raises(
        UnreadableError, match="corpus: the text 'turned' has hash .* expected .*It was changed"
    ):
        load_trained(path, corpus=cut)
    model, text = load_trained(path, corpus=TURNED_TEXT)
    assert text is TURNED_TEXT
    assert model.tokenizer == TURNED == load_model_alone(path).tokenizer
    assert turned.config.corpus == "turned"


def test_a_finished_run_looks_for_its_text_when_it_is_needed(tmp_path, own, cache):
    training = train(replace(QUICK, corpus=str(own)), corpus=load_corpus(own, d_vocab=300), progress=False)
    path = training.save(tmp_path / "m.safetensors")
    own.write_text("gone")  # the text as it was is kept
    back = Training.load(path)
    assert back.text is None
    assert back.corpus.fingerprint == training.corpus.fingerprint
    assert back.corpus.tokenizer == training.corpus.tokenizer == back.model.tokenizer
    assert back.config == training.config
    shutil.rmtree(cache)
    assert Training.load(path).model.fingerprint() == training.model.fingerprint()
    with pytest.raises(
        UnreadableError, match="no text of hash .* is kept.*Say where it is: corpus=.*--corpus"
    ):
        _ = Training.load(path).corpus
    with pytest.raises(UnreadableError, match="corpus: "):
        Training.load(path, corpus=own)
    own.write_text(prose(0, 400))
    assert Training.load(path, corpus=own).corpus.fingerprint == training.corpus.fingerprint


def test_a_path_in_a_file_is_never_followed(tmp_path, monkeypatch):
    monkeypatch.setattr("tasks.own_text.find_text", lambda path: pytest.fail(f"looked at {path}"))
    model = SparseTransformer(replace(SHAPE, d_vocab=50), tokenizer=CharTokenizer())
    for known in (TextId(name="/", fingerprint="0" * 16), TextId(name="/", fingerprint="../../x")):
        model.trained_on = known
        with pytest.raises(UnreadableError, match="corpus: the model's text cannot be had"):
            load_trained(save_checkpoint(tmp_path / "m.safetensors", model))
    model.trained_on = model.tokenizer = None
    with pytest.raises(UnreadableError, match="corpus: the model's text cannot be had"):
        load_trained(save_checkpoint(tmp_path / "m.safetensors", model, meta={"train": {"corpus": "/"}}))


def test_another_version_of_python_is_said(monkeypatch):
    model = SparseTransformer(replace(SHAPE, d_vocab=50), tokenizer=CharTokenizer())
    model.trained_on = TextId(name="python", fingerprint="0" * 16)
    monkeypatch.setattr("circuits.model.text.load_corpus", lambda name, tokenizer: replace(MINI, name=name))
    with pytest.warns(AnotherTextWarning, match="'python' has hash .*other versions"):
        assert text_of(model).name == "python"


def test_a_run_goes_on_with_its_own_text_alone(tmp_path, turned):
    folder = Numbered(tmp_path / "n", Keep(steps=1, last=9))
    config = replace(QUICK, steps=4)
    whole = train(config, corpus=TURNED_TEXT, progress=False, numbered=folder)
    left = folder.files()[1]
    assert load_checkpoint(left).model.tokenizer == TURNED
    again = train(config, corpus=TURNED_TEXT, progress=False, resume=left)
    assert again.model.fingerprint() == whole.model.fingerprint()
    with pytest.raises(UnreadableError, match="resume: .*cannot be read .*it was on text of hash"):
        train(config, corpus=replace(TURNED_TEXT, val=TURNED_TEXT.val[:-1]), progress=False, resume=left)
    mixed = replace(MINI, name="turned", train_starts=None, val_starts=None)
    with pytest.raises(UnreadableError, match="resume: .*corpus: got the text 'turned', of .*'mini-char'"):
        train(config, corpus=mixed, progress=False, resume=left)


def test_prune_takes_its_means_over_the_models_own_text(monkeypatch):
    model = quote_closer()
    model.tokenizer, model.trained_on = TURNED, TURNED_TEXT.text_id
    asked = PruneConfig(steps=5, starts=1, n_mean=8, n_eval=8, n_test=8, objective="faithful")
    with pytest.raises(TokenizerMismatchError, match="task: got 'quotes', of the tokenizer 'mini-char'"):
        prune(model, load_task("quotes"), asked, progress=False)
    model.tokenizer = None
    model.trained_on = TextId(name="names", fingerprint=load_corpus("names").fingerprint)
    with pytest.raises(ValueError, match="corpus: got 'name-words' of 62 tokens for a model of 50"):
        prune(model, load_task("quotes"), asked, progress=False)
    model.tokenizer, model.trained_on = CharTokenizer(), MINI.text_id
    with pytest.raises(TokenizerMismatchError, match="corpus: got the text 'turned'"):
        prune(model, load_task("quotes"), asked, corpus=TURNED_TEXT, progress=False)
    used = []
    windows = Corpus.windows
    monkeypatch.setattr(Corpus, "windows", lambda self, *a, **k: used.append(self) or windows(self, *a, **k))
    prune(model, load_task("quotes"), asked, progress=False)
    assert used == [MINI]


def test_a_model_that_knows_no_text_is_one_of_mini_python_or_refused():
    model = SparseTransformer(replace(SHAPE, d_vocab=50), tokenizer=TURNED)
    with pytest.raises(UnreadableError, match="corpus: the text 'mini' is none of the model's"):
        text_of(model)
    model.tokenizer = None
    assert text_of(model) is load_corpus("mini")  # of those last used, each is one object
    assert text_of(model) == MINI


def test_trust_refuses_text_and_tasks_of_another_tokenizer():
    model = quote_closer()
    model.tokenizer = CharTokenizer()
    circuit = prune(
        model,
        load_task("quotes"),
        PruneConfig(steps=20, starts=1, n_mean=8, n_eval=8, n_test=8),
        progress=False,
    )
    with pytest.raises(TokenizerMismatchError, match="corpus: got the text 'turned'"):
        trust_report(model, circuit, corpus=TURNED_TEXT)
    model.tokenizer = TURNED
    with pytest.raises(TokenizerMismatchError, match="task: got 'quotes'"):
        trust_report(model, circuit)


def test_bridges_refuse_text_and_models_of_another_tokenizer(tmp_path, turned):
    plain = train(QUICK, progress=False).model
    config = BridgeConfig(steps=2, batch_size=2, n_val=4)
    with pytest.raises(
        TokenizerMismatchError, match="dense: got the text 'mini', of the tokenizer 'mini-char'"
    ):
        fit_bridges(turned.model, plain, MINI, config, progress=False)
    with pytest.raises(TokenizerMismatchError, match="sparse: got the text 'mini'"):
        fit_bridges(plain, turned.model, MINI, config, progress=False)
    path = fit_bridges(plain, plain, MINI, config, progress=False).save(tmp_path / "b.safetensors")
    other = SparseTransformer(plain.config, tokenizer=TURNED)
    other.load_state_dict(plain.state_dict())
    with pytest.raises(TokenizerMismatchError, match="sparse: got a model, of the tokenizer 'turned'"):
        load_bridges(path, dense=plain, sparse=other.eval())


def test_an_interrupted_fit_goes_on_with_its_own_text_alone(tmp_path, monkeypatch):
    import importlib

    module = importlib.import_module("circuits.bridges.fit")
    plain = train(QUICK, progress=False).model
    config = BridgeConfig(steps=2, batch_size=2, n_val=4)
    fit = module._Fit(module.Side(plain, "dense"), plain, MINI, config)
    fit.one_step()
    left = fit.save(tmp_path / "left.safetensors")
    fit_bridges(plain, plain, MINI, config, progress=False, resume=left)
    with pytest.raises(UnreadableError, match="resume: .* is no interrupted fit of these models, text"):
        fit_bridges(plain, plain, replace(MINI, val=MINI.val[:-1]), config, progress=False, resume=left)


def test_a_choice_in_python_is_made_of_the_models_tokens(monkeypatch):
    bpe = BPE.train([prose(1)], name="bytes", d_vocab=290)
    made = []
    known = __import__("tasks").TASKS
    monkeypatch.setitem(known, "if_equals", lambda **options: made.append(options) or load_task("quotes"))
    load_task_for(bpe, "if_equals")
    load_task_for(CharTokenizer(), "if_equals")
    Criterion(task="if_equals").load_task(bpe)
    assert made == [{"tokenizer": bpe}, {}, {"tokenizer": bpe}]
    check_task(SparseTransformer(replace(SHAPE, d_vocab=50), tokenizer=CharTokenizer()), load_task("quotes"))


@pytest.mark.parametrize("change", ["hash", "bytes", "kind", "text"])
def test_a_damaged_tokenizer_is_refused(tmp_path, turned, change):
    path = turned.save(tmp_path / "m.safetensors")
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        header = json.loads(file.metadata()[KEY])
    del header["checksum"]
    if change == "hash":
        header["tokenizer"] = "0" * 16
    if change == "bytes":
        tensors["tokenizer"][20:40] = 0
    if change == "kind":
        tensors["tokenizer"] = tensors["tokenizer"].to(torch.int32)
    if change == "text":
        header["text"] = {"name": 3}
    save_file(tensors, path, metadata={KEY: sealed_text(header, tensors)})
    with pytest.raises(UnreadableError, match="path: .*m.safetensors"):
        load_checkpoint(path)


def invoke(*arguments):
    return RUN.invoke(app, [str(a) for a in arguments])


def test_the_command_line_trains_on_a_path_and_refuses_other_text(tmp_path, own, cache):
    config = tmp_path / "c.json"
    config.write_text(
        json.dumps({**{k: v for k, v in QUICK.to_json().items() if k != "corpus"}, "bigram_init": "fixed"})
    )
    out = tmp_path / "m.safetensors"
    told = invoke("train", "--corpus", own, "--d-vocab", 300, "--config", config, "--out", out, "--json")
    assert told.exit_code == 0, told.output
    assert json.loads(told.stdout)["corpus"] == str(own)
    model, text = load_trained(out)
    assert model.trained_on == text.text_id
    assert text.tokenizer.d_vocab == 300

    other = tmp_path / "other.txt"
    other.write_text(prose(9, 400))
    twin = invoke(
        "train",
        "--corpus",
        other,
        "--tokenizer",
        out,
        "--config",
        config,
        "--out",
        tmp_path / "n.safetensors",
    )
    assert twin.exit_code == 0, twin.output
    assert load_checkpoint(tmp_path / "n.safetensors").model.tokenizer == model.tokenizer

    for command in (
        ["prune", out, "--out", tmp_path / "q.json"],
        ["bridge", out, tmp_path / "n.safetensors", "--out", tmp_path / "b"],
    ):
        refused = invoke(*command, "--corpus", other)
        assert refused.exit_code == 2
        assert "has hash" in refused.stderr
        refused = invoke(*command, "--corpus", "mini")
        assert refused.exit_code == 2
        assert "is none of the model's" in refused.stderr
    refused = invoke("prune", out, "--out", tmp_path / "q.json")
    assert refused.exit_code == 2
    assert "task: 'quotes' has a vocabulary of 50 tokens, the model one of 300" in refused.stderr
    circuit = tmp_path / "circuit.json"
    Circuit(
        nodes=(), edges=(), widths=model.config.widths, n_layers=1, criterion=Criterion(task="quotes"),
        model_hash=model.fingerprint(), values={s: torch.zeros(w) for s, w in model.config.widths.items()},
    ).save(circuit)  # fmt: skip
    refused = invoke("trust", circuit, "--corpus", other)
    assert refused.exit_code == 2
    assert "has hash" in refused.stderr


def test_the_command_line_writes_nothing_for_text_that_is_none(tmp_path):
    out = tmp_path / "deep" / "m.safetensors"
    (tmp_path / "empty").mkdir()
    for arguments, message in (
        (["--corpus", tmp_path / "empty"], "holds no text"),
        (["--corpus", tmp_path / "nowhere"], "corpus: got "),
        (["--corpus", __file__, "--tokenizer", tmp_path / "no.json"], "there is no such file"),
        (["--corpus", __file__, "--d-vocab", 5], "d_vocab must be at least 256"),
        (
            ["--tokenizer", Path(__file__).parent.parent / "circuits/zoo/mini-python/model.safetensors"],
            "carries none",
        ),
    ):
        refused = invoke("train", *arguments, "--out", out)
        assert refused.exit_code == 2, refused.output
        assert message in refused.stderr
    assert not out.parent.exists()
