"""Tasks from somebody's own pairs, with tokenizers of several kinds, ours and Hugging Face's."""

import pytest
import torch
from induction_model import bridge
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from circuits.circuit.score import task_score
from circuits.interop import LensSubject
from circuits.ranking import RankConfig, rank
from tasks import HFTokenizer, Task, from_pairs, task_options
from tasks import Tokenizer as AnyTokenizer
from tasks.tokenizer import CharTokenizer, WordTokenizer

NAMES = ("Mary", "John", "Tom", "Anna", "Paul", "Kate")
PAIRS = [
    (f"When {a} and {b} met, {b} gave it to", f"When {a} and {b} met, {a} gave it to", f" {a}", f" {b}")
    for a, b in zip(NAMES, NAMES[1:] + NAMES[:1], strict=True)
] + [
    (f"It was {a} and not {b} who met", f"It was {b} and not {a} who met", f" {a}", f" {b}")
    for a in NAMES
    for b in NAMES
    if a < b
]
TEXT = [clean + answer for clean, _, answer, _ in PAIRS] * 3


def hugging(kind: str) -> HFTokenizer:
    """gpt2: byte-level, no first token. llama: words with their space as part, a first token before every text."""
    model = Tokenizer(models.BPE(unk_token=None if kind == "gpt2" else "<unk>"))
    if kind == "gpt2":
        model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        model.decoder = decoders.ByteLevel()
        special = ["<|end|>"]
    else:
        model.pre_tokenizer = pre_tokenizers.Metaspace()
        model.decoder = decoders.Metaspace()
        special = ["<unk>", "<s>", "</s>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet() if kind == "gpt2" else []
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    model.train_from_iterator(TEXT, trainer)
    if kind == "gpt2":
        return HFTokenizer(tokenizer=PreTrainedTokenizerFast(tokenizer_object=model, eos_token="<|end|>"))
    model.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=model, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    return HFTokenizer(tokenizer=fast)


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def tokenizer(request) -> HFTokenizer:
    return hugging(request.param)


def test_an_adapter_is_a_tokenizer_and_text_comes_back(tokenizer):
    assert isinstance(tokenizer, AnyTokenizer)
    for text in TEXT:
        assert tokenizer.decode(tokenizer.encode(text)).strip() == text
    assert tokenizer.d_vocab == len(tokenizer.tokenizer)
    assert HFTokenizer(tokenizer=tokenizer.tokenizer, n_logits=512).d_vocab == 512
    mary = tokenizer.encode("and Mary")[-1]
    assert tokenizer.token(mary) == "·Mary"
    assert tokenizer.id(" Mary") == mary
    assert HFTokenizer(tokenizer=tokenizer.tokenizer, n_logits=512).token(500) == "(unused 500)"
    with pytest.raises(ValueError, match="is 2 tokens of .*expected exactly one|tokens of"):
        tokenizer.id(" Mary and")
    with pytest.raises(ValueError, match="outside the"):
        tokenizer.decode([10_000])


def test_a_first_token_is_seen_where_the_tokenizer_puts_one(tokenizer):
    template = "<s>" in tokenizer.tokenizer.get_vocab()
    assert tokenizer.bos == (1 if template else None)
    assert tokenizer.pad == (2 if template else 0)
    task = from_pairs(PAIRS, tokenizer)
    batch = task.batch(20, split="train", seed=0)
    begins = {int(i) for i in batch.clean[:, 0]}
    assert (begins == {1}) == template
    without = from_pairs(PAIRS, tokenizer, bos=False)
    assert without.n_ctx == task.n_ctx - template
    if not template:
        with pytest.raises(ValueError, match="bos: got True, but .* has no first-of-text token"):
            from_pairs(PAIRS, tokenizer, bos=True)


def test_prompts_answers_and_padding_are_those_of_the_text(tokenizer):
    task = from_pairs(PAIRS, tokenizer)
    assert isinstance(task, Task)
    texts = [text for clean, corrupt, x, y in PAIRS for text in ((clean, x), (corrupt, y))]
    said = {tuple(tokenizer.encode(p)): tokenizer.encode(p + answer)[-1] for p, answer in texts}
    skip = 0 if tokenizer.bos is None else 1
    for split in ("train", "val", "test"):
        batch = task.batch(40, split=split, seed=1)
        for i in range(40):
            end = int(batch.position[i])
            for prompt, answer in ((batch.clean[i], batch.answer[i]), (batch.corrupt[i], batch.foil[i])):
                assert said[tuple(prompt[skip : end + 1].tolist())] == int(answer)
                assert bool((prompt[end + 1 :] == tokenizer.pad).all())
    widths = {int(p) for p in task.batch(40, split="train", seed=1).position}
    assert len(widths) == 2
    assert task.n_ctx == max(widths) + 1
    assert task.solve(PAIRS[0][0]) == PAIRS[0][2]
    assert task_options(task) is None
    with pytest.raises(ValueError, match="is no prompt of 'pairs'"):
        task.solve("When")


def test_splits_share_no_prompt_and_the_same_call_gives_the_same_batch():
    task = from_pairs(PAIRS, hugging("gpt2"))
    prompts = {
        s: {p for row in task.rows[s] for p in (row.clean, row.corrupt)} for s in ("train", "val", "test")
    }
    assert all(not prompts[a] & prompts[b] for a, b in (("train", "val"), ("train", "test"), ("val", "test")))
    assert sum(map(len, task.rows.values())) == len(PAIRS)
    assert from_pairs(PAIRS[::-1], task.tokenizer).rows.keys() == task.rows.keys()
    a, b, c = (task.batch(9, split="train", seed=s).clean for s in (3, 3, 4))
    assert torch.equal(a, b)
    assert a.shape != c.shape or not torch.equal(a, c)
    with pytest.raises(ValueError, match="split must be one of"):
        task.batch(2, split="all", seed=0)
    with pytest.raises(ValueError, match="n must be at least 1"):
        task.batch(0, split="val", seed=0)


def test_answers_of_several_tokens_are_refused_or_scored_by_the_first_and_said_which():
    letters = CharTokenizer()
    rows = [(f"{c} = ", f"{d} = ", f"{c}x", f"{d}") for c, d in ("ab", "cd", "ef", "gh")]
    rows[2] = ("e = ", "f = ", "e", "f")
    with pytest.raises(
        ValueError, match=r"row 0: answer and foil are \['a', 'x'\] and \['b'\]; .*several=\"first\""
    ):
        from_pairs(rows, letters)
    task = from_pairs(rows, letters, several="first")
    assert task.by_first_token == (0, 1, 3)
    batch = task.batch(8, split="train", seed=0)
    assert {letters.token(int(i)) for i in batch.answer} <= set("abcdefgh")
    same = [("a = ", "b = ", "xy", "xz"), *rows[1:]]
    with pytest.raises(ValueError, match="row 0: answer 'xy' and foil 'xz' begin with the same token"):
        from_pairs(same, letters, several="first")
    with pytest.raises(ValueError, match="several: got 'last'"):
        from_pairs(rows, letters, several="last")


def test_words_that_only_make_sense_apart_are_encoded_apart():
    words = WordTokenizer(name="w", words=("a", "b", "c", "is", "7", "8", "9"))
    rows = [("a is", "b is", "7", "8"), ("c a is", "c b is", "8", "9"), ("b c is", "a a is", "7", "9")]
    task = from_pairs(rows, words)
    assert {int(i) for i in task.batch(30, split="train", seed=0).answer} <= {4, 5, 6}


def test_a_file_says_the_same_as_a_list_and_names_the_task(tmp_path):
    path = tmp_path / "giving.csv"
    lines = ["answer,clean,note,corrupt,foil"]
    lines += [f'"{a}","{c}",x,"{d}","{f}"' for c, d, a, f in PAIRS]
    path.write_text("\n".join(lines) + "\n")
    tokenizer = hugging("gpt2")
    task = from_pairs(path, tokenizer)
    assert task.name == "giving"
    assert task.rows == from_pairs(PAIRS, tokenizer).rows
    assert from_pairs(str(path), tokenizer, name="other").name == "other"
    path.write_text("clean,corrupt,answer\na,b,c\n")
    with pytest.raises(ValueError, match="pairs: row 0 is .*; expected four texts that are not empty"):
        from_pairs(path, tokenizer)
    with pytest.raises(ValueError, match="pairs: .* cannot be read"):
        from_pairs(tmp_path / "none.csv", tokenizer)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="pairs: .* cannot be read"):
        from_pairs(path, tokenizer)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (("a = ", "ab = ", "x", "y"), r"row 1: clean 'a = ' is 4 tokens and corrupt 'ab = ' is 5"),
        (("a = ", "a = ", "x", "y"), "row 1: clean and corrupt are both 'a = '"),
        (("a = ", "b = ", "x", "x"), "begin with the same token"),
        (("a = ", "b = ", "x"), "row 1 is .*; expected four texts"),
        (("a = ", "b = ", "x", ""), "row 1 is .*; expected four texts"),
        (("a = ", "b = ", "x", 3), "row 1 is .*; expected four texts"),
        (("k = ", "l = ", "y", "x"), "'k = ' is to be answered by 'y', and in another row by 'x'"),
        (("É = ", "b = ", "x", "y"), "not in the alphabet"),
    ],
)
def test_bad_rows_are_refused_by_number(row, said):
    rows = [("k = ", "l = ", "x", "y"), row, ("m = ", "n = ", "x", "y"), ("o = ", "p = ", "x", "y")]
    with pytest.raises(ValueError, match=said):
        from_pairs(rows, CharTokenizer())


def test_too_few_pairs_and_what_is_no_tokenizer():
    with pytest.raises(ValueError, match="got 2 rows with 2 unrelated pairs of prompts; expected at least 3"):
        from_pairs([("k = ", "l = ", "x", "y"), ("m = ", "n = ", "x", "y")], CharTokenizer())
    with pytest.raises(ValueError, match="tokenizer: got a int without"):
        HFTokenizer(tokenizer=3)
    with pytest.raises(ValueError, match="n_logits: got 3; expected at least"):
        HFTokenizer(tokenizer=hugging("gpt2").tokenizer, n_logits=3)


def test_a_wrapped_model_is_scored_and_ranked_on_pairs_with_its_own_tokenizer():
    subject = LensSubject(bridge("llama").eval())
    tokenizer = HFTokenizer(tokenizer=subject.tokenizer, n_logits=subject.d_vocab)
    rows = [(f"w{i} w{i + 1} w9", f"w{i + 1} w{i} w9", f"w{i}", f"w{i + 1}") for i in range(20, 40, 2)]
    task = from_pairs(rows, tokenizer)
    assert 0 <= task_score(subject, task.batch(8, split="test", seed=0)).accuracy <= 1
    config = RankConfig(n_pairs=4, n_mean=8)
    ranking = rank(subject, task, method="attribution patching", config=config)
    assert ranking.n_parts == sum(subject.widths.values())
