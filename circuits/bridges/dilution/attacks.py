"""The adversarial search: prompts that lower the circuit's margin, then tried on the dense model."""

import random
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from circuits.bridges import Model, Side
from circuits.bridges.dilution.margins import check_inputs, circuit_margins, error_rate, model_margins
from circuits.circuit.circuit import Circuit
from circuits.model.transformer import SparseTransformer
from circuits.settings import Count, Seed, Whole, checked
from tasks.base import Targets
from tasks.brackets import Brackets
from tasks.tokenizer import DIGITS, LETTERS, Tokenizer


@dataclass(frozen=True, kw_only=True)
class Attack:
    """Prompts found by looking at the sparse circuit alone, tried on the dense model."""

    prompts: tuple[str, ...]
    "The found prompts, lowest margin first."
    length: int
    "Elements of each list."
    n_tokens: int
    "Tokens of each prompt, found or random."
    n_random: int
    "Random prompts: those from which the search set out."
    random_error: float
    "Fraction of random prompts that the dense model closes wrongly."
    random_deep_error: float
    "The same among the random prompts of depth two alone, the ones that dilution should make fail."
    found_error: float
    "Fraction of found prompts that it closes wrongly."
    random_margin: float
    "Mean margin of the right closer in the sparse circuit, random prompts."
    found_margin: float
    "The same for the found prompts."

    @property
    def ratio(self) -> float:
        """found_error over random_error; no random error at all counts as one in n_random."""
        return self.found_error / max(self.random_error, 1 / self.n_random)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types, with at most eight of the prompts."""
        return {
            **asdict(self),
            "prompts": list(self.prompts[:8]),
            "n_found": len(self.prompts),
            "ratio": self.ratio,
        }


def attack(
    dense: Model,
    sparse: SparseTransformer,
    circuit: Circuit,
    *,
    length: int = 8,
    distractors: int = 0,
    n: int = 256,
    keep: int = 64,
    rounds: int = 40,
    seed: int = 0,
) -> Attack:
    """Search prompts on which the circuit's margin is lowest, then try them on the dense model.

    Random prompts of one length in tokens are changed step by step (digits, letters, order of the elements, place
    of the inner bracket), never in length; a change stays when it lowers the circuit's margin of the right closer.
    The `keep` lowest are tried on the dense model, which the search never sees. n: pairs of random prompts drawn.
    Raises ValueError when the prompts do not fit, or the circuit is another task's or another model's.
    """
    length, distractors = checked("length", length, Count), checked("distractors", distractors, Whole)
    n, keep = checked("n", n, Count), checked("keep", keep, Count)
    rounds, seed = checked("rounds", rounds, Whole), checked("seed", seed, Seed)
    check_inputs(dense, sparse, circuit)
    side = Side(dense, "dense")
    task = Brackets(length=length, distractors=distractors)
    if task.n_ctx > min(side.n_ctx, sparse.config.n_ctx):
        raise ValueError(
            f"length: prompts of {length} elements and {distractors} distractors take {task.n_ctx} tokens; expected at "
            f"most n_ctx = {min(side.n_ctx, sparse.config.n_ctx)}."
        )
    start = _of_one_length(task.batch(n, split="test", seed=seed).tokens_and_targets())
    found, lowest = search(sparse, circuit, task, start, rounds=rounds, seed=seed)
    best = lowest.argsort()[:keep]
    chosen = _rows(found, best)
    end = int(start.position[0]) + 1
    by_dense = model_margins(side, start)
    return Attack(
        prompts=tuple(task.tokenizer.decode(row[:end].tolist()) for row in chosen.tokens),
        length=length,
        n_tokens=end,
        n_random=len(start.tokens),
        random_error=error_rate(by_dense),
        random_deep_error=error_rate(by_dense, start.answer == task.tokenizer.id("]]")),
        found_error=error_rate(model_margins(side, chosen)),
        random_margin=float(circuit_margins(sparse, circuit, start).mean()),
        found_margin=float(lowest[best].mean()),
    )


def search(
    sparse: SparseTransformer, circuit: Circuit, task: Brackets, start: Targets, *, rounds: int, seed: int
) -> tuple[Targets, Float[Tensor, " rows"]]:
    """Each prompt changed to lower the circuit's margin of its right closer, and the margins reached."""
    rng = random.Random(seed)
    current, lowest = start, circuit_margins(sparse, circuit, start)
    for _ in range(rounds):
        tokens = current.tokens.clone()
        for row, end in zip(tokens, (current.position + 1).tolist(), strict=True):
            row[:end] = torch.tensor(mutated(row[:end].tolist(), task.tokenizer, rng)).to(row)
        changed = current._replace(tokens=tokens)
        reached = circuit_margins(sparse, circuit, changed)
        better = reached < lowest
        current = current._replace(tokens=torch.where(better[:, None], tokens, current.tokens))
        lowest = torch.where(better, reached, lowest)
    return current, lowest


def mutated(ids: list[int], tokenizer: Tokenizer, rng: random.Random) -> list[int]:
    """A prompt of as many tokens, with the same depth: a character, the order or the inner bracket changed."""
    text = tokenizer.decode(ids)
    before, line = text[: text.rfind("\n") + 1], text[text.rfind("\n") + 1 :]
    kind = rng.choice(("digit", "letter", "order", "bracket"))
    if kind in ("digit", "letter"):
        alphabet = DIGITS[1:] if kind == "digit" else LETTERS
        places = [i for i, character in enumerate(text) if character in alphabet]
        if not places:
            return ids
        i = rng.choice(places)
        return tokenizer.encode(text[:i] + rng.choice(alphabet) + text[i + 1 :])
    name, inside = line.split("[", 1)
    deep = "[" in inside
    elements = [element.lstrip("[") for element in inside.split(", ")]
    inner = next((i for i, element in enumerate(inside.split(", ")) if "[" in element), 0)
    if kind == "order":
        rng.shuffle(elements)
    else:
        inner = rng.randrange(len(elements))
    if deep:
        elements[inner] = "[" + elements[inner]
    return tokenizer.encode(f"{before}{name}[{', '.join(elements)}")


def _rows(targets: Targets, rows: Tensor) -> Targets:
    return Targets(*(field[rows] for field in targets))


def _of_one_length(targets: Targets) -> Targets:
    """The rows of the most frequent prompt length, so that found and random prompts are equally long."""
    end = Counter(targets.position.tolist()).most_common(1)[0][0]
    return _rows(targets, (targets.position == end).nonzero().flatten())
