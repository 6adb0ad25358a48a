"""How the circuit of the translator that ships works: what its head of cross-attention looks at, and what it fetches.

python -m docs.experiments.encdec_circuit    -> docs/encdec.png, and the numbers of docs/explanation/encdec.md
"""

from collections import defaultdict
from pathlib import Path
from statistics import mean
from typing import NamedTuple

import torch
import typer
from rich.console import Console

from circuits.plots import figure_to_png
from circuits.zoo import load
from circuits.zoo.shipped import ZooModel
from tasks.transduction import ADJECTIVES

PICTURE = Path("docs/encdec.png")
HEAD, VALUE = 6, 50
"""The head that is left in the circuit, and the value channel that it needs most."""
N_PAIRS = 200


class Noun(NamedTuple):
    """Of a noun as the subject, over the prompts where it is that."""

    look: float
    """Share of the head's attention that it gets at the first word to be said."""
    value: float
    """What the value channel is there."""


def main() -> None:
    """Draw the circuit, and print what each noun gets and gives."""
    found = load("translate")
    figure_to_png(found.circuit.plot(), PICTURE, width=1100, scale=1)
    for noun, seen in sorted(subjects(found).items(), key=lambda item: item[1].value):
        Console().print(f"{noun:<8} look {seen.look:.2f}, value {seen.value:.2f}")


def subjects(found: ZooModel) -> dict[str, Noun]:
    """Looks and values of every noun that is a subject: the second word, or the third behind an adjective."""
    targets = found.task.batch(N_PAIRS, split="test", seed=5).tokens_and_targets()
    with torch.no_grad():
        _, cache = found.model.run_with_cache(targets.tokens)
    looks = cache["blocks.0.cross.hook_pattern"][:, HEAD, 0]
    values = cache["blocks.0.cross.hook_v"].flatten(2)[..., VALUE]
    seen: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for row, tokens in enumerate(targets.tokens[:, :3].tolist()):
        words = [found.task.tokenizer.token(token).strip() for token in tokens]
        at = 2 if words[1] in ADJECTIVES else 1
        seen[words[at]].append((float(looks[row, at]), float(values[row, at])))
    return {noun: Noun(*map(mean, zip(*both, strict=True))) for noun, both in seen.items()}


if __name__ == "__main__":
    typer.run(main)
