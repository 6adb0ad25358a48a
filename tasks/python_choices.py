"""The twenty choices between two tokens of Python, each as templates for pairs and a rule.

In a template `<a>` to `<d>` are different variables, `<f>` and `<g>` different functions, `<m>` to `<p>`
digits, `<q>` a digit that starts a number, `<w>` one to three words, and `<pad>` the blank lines that make the
prompts of a pair equally long. The names of the choices are those of "Weight-sparse transformers have
interpretable circuits" (arXiv 2511.13653), where the first four and `while_return_true` are described; the
others are our reading of the names.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Two ways for code to begin, and how each goes on; all strings are templates."""

    frame: str
    """The code, with `<?>` where clean and corrupt differ."""
    clean: str
    """What stands at `<?>` in clean."""
    corrupt: str
    """What stands there in corrupt."""
    answer: str
    """What follows clean; where it is several tokens, its first one counts."""
    foil: str
    """What follows corrupt."""
    rule: Callable[[str], str]
    """From the text of a prompt to what follows it."""


def _line(text: str, back: int = 1) -> str:
    return text.split("\n")[-back]


def _bracket_rule(text: str) -> str:
    return "]" * (_line(text).count("[") - _line(text).count("]"))


def _set_rule(text: str) -> str:
    variable = _line(text).strip()
    return ".add" if f"{variable} = set()" in text else " +="


def _else_rule(text: str) -> str:
    """Once every value of the loop variable but one has a branch, the last needs no condition."""
    loop = text[text.rindex("for ") :]
    return " else" if f"range({loop.count('if ') + 1})" in loop else " elif"


def _swap_rule(text: str) -> str:
    targets, value = re.fullmatch(r" *(.*) = (\w+),", _line(text)).groups()  # type: ignore[union-attr]
    return next(f" {target}" for target in targets.split(", ") if target != value)


def _indent_rule(text: str) -> str:
    line = _line(text, 2)
    depth = len(line) - len(line.lstrip()) + 4 * line.endswith(":")
    # The last space of an indentation belongs to the word after it.
    return " " * (depth - 1)


CHOICES: dict[str, Choice] = {
    "single_double_quote": Choice(
        frame="def <f>(<a>):\n    <b> = <?><w>",
        clean="'",
        corrupt='"',
        answer="'",
        foil='"',
        rule=lambda text: "'" if "'" in _line(text) else '"',
    ),
    "bracket_counting": Choice(
        frame="<a> = [<m>, <?><n>, <o>, <p>",
        clean="[",
        corrupt="<q>",
        answer="]]",
        foil="]",
        rule=_bracket_rule,
    ),
    "set_or_string": Choice(
        frame="def <f>(<a>):\n    <b> = <?>\n<pad>    for <c> in <a>:\n        <b>",
        clean="set()",
        corrupt='""',
        answer=".add",
        foil=" +=",
        rule=_set_rule,
    ),
    "set_or_string_fixedvarname": Choice(
        frame="def <f>(<a>):\n    result = <?>\n<pad>    for <c> in <a>:\n        result",
        clean="set()",
        corrupt='""',
        answer=".add",
        foil=" +=",
        rule=_set_rule,
    ),
    "while_return_true": Choice(
        frame="def <f>(<a>):\n    <b> = <n>\n    <?> True",
        clean="while",
        corrupt="return",
        answer=":",
        foil="\n",
        rule=lambda text: ":" if "while" in _line(text) else "\n",
    ),
    "with_as": Choice(
        frame="def <f>(<a>):\n    <?> open(<a>)",
        clean="with",
        corrupt="return",
        answer=" as",
        foil="\n",
        rule=lambda text: " as" if "with" in _line(text) else "\n",
    ),
    "with_open": Choice(
        frame="<pad>def <f>(<a>, <?>):\n    with",
        clean="path",
        corrupt="socket",
        answer=" open",
        foil=" socket",
        rule=lambda text: " open" if "path" in _line(text, 2) else " socket",
    ),
    "for_while": Choice(
        frame="def <f>(<a>):\n    <?> <b>",
        clean="for",
        corrupt="while",
        answer=" in",
        foil=":",
        rule=lambda text: " in" if "for" in _line(text) else ":",
    ),
    "else_elif": Choice(
        frame="for <a> in range(<?>):\n    if <a> == 0:\n        <f>()\n    elif <a> == 1:\n        <g>()\n   ",
        clean="3",
        corrupt="4",
        answer=" else",
        foil=" elif",
        rule=_else_rule,
    ),
    "if_ternary": Choice(
        frame="def <f>(<a>, <b>):\n    <c> = <a><?> if <b>",
        clean=" + <d>",
        corrupt="\n   ",
        answer=" else",
        foil=":",
        rule=lambda text: " else" if "=" in _line(text) else ":",
    ),
    "if_equals": Choice(
        frame="def <f>(<a>):\n    <b> = <n>\n<?> <a>",
        clean="    if",
        corrupt="\n   ",
        answer=" ==",
        foil=" =",
        rule=lambda text: " ==" if "if" in _line(text) else " =",
    ),
    "fstring_brace": Choice(
        frame='def <f>(<a>):\n    <b> = f"<w> <?><a>',
        clean="{",
        corrupt="(",
        answer="}",
        foil=")",
        rule=lambda text: "}" if "{" in _line(text) else ")",
    ),
    "bracket_brace": Choice(
        frame="<a> = <?><m>, <n>, <o>",
        clean="[",
        corrupt="{",
        answer="]",
        foil="}",
        rule=lambda text: "]" if "[" in _line(text) else "}",
    ),
    "var_swap": Choice(
        frame="def <f>(<a>, <b>):\n    <a>, <b> = <?>,",
        clean="<b>",
        corrupt="<a>",
        answer=" <a>",
        foil=" <b>",
        rule=_swap_rule,
    ),
    "var_if": Choice(
        frame="def <f>(<a>, <b>):\n    <?> = <g>()\n    if",
        clean="<a>",
        corrupt="<b>",
        answer=" <a>",
        foil=" <b>",
        rule=lambda text: f" {_line(text, 2).split()[0]}",
    ),
    "indent_for": Choice(
        frame="def <f>(<a>, <b>):\n    <?>\n",
        clean="for <c> in <b>:",
        corrupt="<a> = <c> in <b>",
        answer="       ",
        foil="   ",
        rule=_indent_rule,
    ),
    "lambda_func": Choice(
        frame="def <f>(<a>):\n<pad>    <b> = <?><c>, <d>",
        clean="lambda ",
        corrupt="<g>(",
        answer=":",
        foil=")",
        rule=lambda text: ":" if "lambda" in _line(text) else ")",
    ),
    "enumerate_range": Choice(
        frame="def <f>(<a>):\n    <b> = <n>\n<pad>    for <?> in",
        clean="i, <c>",
        corrupt="i",
        answer=" enumerate",
        foil=" range",
        rule=lambda text: " enumerate" if "," in _line(text) else " range",
    ),
    "final_kwarg": Choice(
        frame="def <f>(<a>, <b>):\n    <g>(<a><?><b>, <c>",
        clean="=",
        corrupt=", ",
        answer="=",
        foil=")",
        rule=lambda text: "=" if "=" in _line(text) else ")",
    ),
    "class_init": Choice(
        frame="<pad><?> <a>(<b>):\n    def",
        clean="class",
        corrupt="def",
        answer=" __init__",
        foil=" wrapper",
        rule=lambda text: " __init__" if "class" in _line(text, 2) else " wrapper",
    ),
}
