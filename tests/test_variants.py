"""The table of docs/explanation/variants.md is what the tests of every analysis on every variant hold.

Written anew, from the top of the repository, by `PYTHONPATH=. python tests/test_variants.py`.
"""

from pathlib import Path

import pytest
import test_encdec_options as stacks
import test_options as decoders

from circuits.files import write_text
from circuits.model.options import WHY
from circuits.plots.markdown import around_marks, markdown_table

PAGE = Path(__file__).parent.parent / "docs" / "explanation" / "variants.md"
MARKS = tuple(f"<!-- table of variants: {place} -->" for place in ("begin", "end"))
DECODERS = {
    "plain": ("default",),
    "composed": ("static", "full"),
    "turbo": ("turbo",),
    "experts": ("experts",),
}
PARTLY = {"static": "dynamic maps only", "full": "static maps only"}
"""What a refusal of one kind of composed heads leaves."""
REASONS = {
    "few_bits, learning": "It learns or differentiates, and rounding has no gradients. Learn on the model as it "
    "is, and run inside `approximated` what was found.",
    "experts=0": "It looks at routers, and there are none.",
    "compose='none'": "It looks at what composes heads, and nothing does.",
    **{option: WHY[option] for option in ("few_bits", "compose", "experts", "arch")},
    "norm_position": f"Norms that come first: yes. {WHY['norm_position']}",
}
"""Why an analysis is refused, by what a cell of the table says."""


def reason_of(refusal: str) -> str:
    """The key of `REASONS` for what a refusal's message must hold."""
    if refusal == decoders.NO_GRADIENTS["turbo"]:
        return "few_bits, learning"
    return refusal if refusal in REASONS else refusal.partition("=")[0]


def decoder_cell(name: str, variant: str) -> str:
    refused = {
        option: reason_of(decoders.TABLE[name].refuses[option])
        for option in DECODERS[variant]
        if option in decoders.TABLE[name].refuses
    }
    if not refused:
        return "yes"
    (reason,) = set(refused.values())
    if len(refused) < len(DECODERS[variant]):
        (option,) = refused
        return f"{PARTLY[option]}: {reason}"
    return f"no: {reason}"


def encdec_cell(name: str) -> str:
    known = "fit_bridges" if name == "fit_bridges, dense side" else name
    return {
        "works": "yes",
        "norms first": "norms first only: norm_position",
        "two stacks": "no: arch",
        "routed": "no: experts=0",
        "composed": "no: compose='none'",
    }[stacks.CELLS[known]]


def table() -> str:
    """One line an analysis, and the reasons that cells name."""
    head = ["analysis", "plain", "composed", "turbo", "encdec", "experts"]
    body = [
        [
            f"`{name.partition(',')[0]}`{''.join(name.partition(',')[1:])}",
            *(decoder_cell(name, variant) for variant in ("plain", "composed", "turbo")),
            encdec_cell(name),
            decoder_cell(name, "experts"),
        ]
        for name in decoders.TABLE
    ]
    cells = " ".join(cell for line in body for cell in line[1:])
    named = [f"- **{key}**: {text}" for key, text in REASONS.items() if f": {key}" in cells]
    return markdown_table(head, body) + "\n\n" + "\n".join(named)


def page() -> str:
    before, after = around_marks(PAGE, *MARKS)
    return f"{before}\n\n{table()}\n\n{after}"


def test_the_page_says_what_the_tests_hold() -> None:
    assert PAGE.read_text() == page(), "write it anew: PYTHONPATH=. python tests/test_variants.py"


def test_a_cell_is_of_the_tests() -> None:
    assert decoder_cell("prune", "plain") == "yes"
    assert decoder_cell("prune", "turbo") == "no: few_bits, learning"
    assert decoder_cell("composition", "composed") == "static maps only: compose"
    assert encdec_cell("steer") == "no: arch"
    assert encdec_cell("routing") == "no: experts=0"
    with pytest.raises(KeyError):
        decoder_cell("no such analysis", "plain")


if __name__ == "__main__":
    write_text(PAGE, page())
