"""Tasks that the field knows, in tokenizers' own words: what they say, what is left out, what is refused."""

import random
import re

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tasks import PUBLIC, load_task, load_task_for, public_task, task_options
from tasks.public import ADJECTIVES, MEN, WOMEN
from tasks.tokenizer import CharTokenizer


class Everything:
    """Every word of every kind, whatever a tokenizer has."""

    def whole(self, kind, words, before=" "):
        return list(words)


def byte_level(texts, size: int) -> PreTrainedTokenizerFast:
    """Byte pairs as GPT-2 has them; years are cut into two digits and two."""
    model = Tokenizer(models.BPE())
    own = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    model.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(r" ?\d\d"), "isolated"), own])
    model.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=["<|end|>"], initial_alphabet=alphabet, show_progress=False
    )
    model.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=model, eos_token="<|end|>")


def sentences() -> list[str]:
    rng = random.Random(0)
    drawn = [draw(Everything(), rng) for draw in PUBLIC.values() for _ in range(800)]
    return [clean + answer for clean, _, answer, _ in drawn]


@pytest.fixture(scope="module")
def english() -> PreTrainedTokenizerFast:
    return byte_level(sentences(), 3000)


def told(task, split="test", n=20):
    """Clean and corrupted prompts, answers and foils as text."""
    batch, own = task.batch(n, split=split, seed=0), task.tokenizer
    for row in zip(batch.clean, batch.corrupt, batch.answer, batch.foil, batch.position, strict=True):
        *prompts, answer, foil, last = row
        texts = [own.decode(prompt[: int(last) + 1].tolist()) for prompt in prompts]
        yield *texts, own.decode([int(answer)]), own.decode([int(foil)])


@pytest.mark.parametrize("name", PUBLIC)
def test_pairs_differ_in_one_fact_and_their_tokens_are_whole(name, english):
    task = load_task_for(english, name)
    assert task.name == name
    assert min(len(rows) for rows in task.rows.values()) > 30
    assert task.by_first_token == ()
    for clean, corrupt, answer, foil in told(task):
        assert clean != corrupt
        assert task.solve(clean) == answer
        assert task.solve(corrupt) == foil


def test_the_same_arguments_give_the_same_task_which_is_made_anew_from_its_name(english):
    task, other = (public_task("pronouns", english, seed=seed) for seed in (0, 1))
    assert task_options(task) == {}
    assert task_options(other) is None
    assert task != other


def test_the_indirect_object_is_the_name_that_is_not_said_again(english):
    for clean, _, answer, foil in told(load_task_for(english, "ioi")):
        first, second, giver = re.match(
            r"When (\w+) and (\w+) went to .*, (\w+) gave a \w+ to$", clean
        ).groups()
        assert {answer.strip(), foil.strip()} == {first, second}
        assert giver == foil.strip()


def test_years_are_later_or_earlier_as_the_sentence_says(english):
    for clean, _, answer, foil in told(load_task_for(english, "greater-than")):
        began, year = re.match(r"The \w+ that (began|ended) in the year \d\d(\d\d) ", clean).groups()
        low, high = sorted((int(answer), int(foil)))
        assert low < int(year) < high
        assert int(answer) == (high if began == "began" else low)


def test_a_docstring_goes_on_with_the_argument_whose_turn_it_is(english):
    for clean, _, answer, foil in told(load_task_for(english, "docstring")):
        arguments = re.match(r"def \w+\(self, ([\w, ]+)\):", clean)[1].split(", ")
        assert re.findall(r":param (\w+):", clean) == arguments[:2]
        assert arguments[2] == answer.strip() != foil.strip()


def test_a_pronoun_is_the_names(english):
    for clean, _, answer, foil in told(load_task_for(english, "pronouns")):
        name = clean.split()[1]
        assert {answer, foil} == {" he", " she"}
        assert name in (MEN if answer == " he" else WOMEN)


def test_words_that_are_several_tokens_are_left_out_and_too_few_are_refused():
    few = [f"When {a} and {b} went to the store, {a} gave a drink to {b}" for a in MEN[:3] for b in WOMEN[:3]]
    few += [f"So {a} is such a {x} friend, isn't he she" for a in MEN[:6] + WOMEN[:6] for x in ADJECTIVES]
    some = byte_level(few * 5, 700)
    names = {word for row in told(load_task_for(some, "ioi"), "train") for word in row[0].split()} & {
        *MEN,
        *WOMEN,
    }
    assert 4 <= len(names) <= 12
    with pytest.raises(
        ValueError, match=r"tokenizer: \d of the 24 arguments of 'docstring' are single tokens"
    ):
        load_task_for(some, "docstring")
    with pytest.raises(ValueError, match="tokenizer: 0 of the 47 names of 'ioi' are single tokens of"):
        public_task("ioi", CharTokenizer())
    with pytest.raises(ValueError, match=r"name: got 'sva'; expected one of \['docstring'"):
        public_task("sva", some)
    with pytest.raises(ValueError, match=r"made of a tokenizer's words; use load_task_for"):
        load_task("ioi")
