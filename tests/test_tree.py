"""Pages about the source are up to date, and what measures the source counts as it says."""

import subprocess
from pathlib import Path

import pytest

from docs.experiments import structure, tree
from docs.experiments.imports import modules

ROOT = Path(__file__).parent.parent
SEARCH = '''"""The search."""

LIMITS: dict = {}
"""What is allowed."""
if LIMITS:
    Prune = int
else:
    Prune = str
"""A pruned thing."""


def prune():
    """Drop parts.

    Then more.
    """
    def inner():
        return 1
    return inner
'''
STALE = f"out of date: run `{tree.COMMAND}`"


def small(root: Path) -> Path:
    """A repository with one room and one task."""
    files = {
        "circuits/__init__.py": '"""Circuits."""\n\n__all__ = ["prune"]\n\nfrom circuits.pruning import prune\n',
        "circuits/files.py": '"""Files."""\n',
        "circuits/pruning/__init__.py": '"""Pruning. All of it.\n\nMore.\n"""\n\nfrom circuits.pruning.search import '
        'LIMITS, Prune, prune\n\n__all__ = ["LIMITS", "Prune", "prune"]\n',
        "circuits/pruning/search.py": SEARCH,
        "tasks/__init__.py": '"""Tasks."""\n',
        "tasks/quotes.py": '"""Quotes."""\n',
        "docs/experiments/toy.py": '"""A toy."""\n',
        "tests/test_a.py": "assert True\n" * 6,
        "README.md": f"before\n{tree.BEGIN}\nold\n{tree.END}\nafter\n",
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_the_tree_in_the_readme_is_up_to_date():
    assert tree.short_tree(ROOT) in (ROOT / "README.md").read_text(), STALE


@pytest.mark.parametrize(("page", "made"), [(tree.TREE, tree.full_tree), (tree.NAMES, tree.names_page)])
def test_a_page_of_the_reference_is_up_to_date(page, made):
    assert (ROOT / page).read_text() == made(ROOT), STALE


def test_the_tree_shows_every_entry():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    there = {path.partition("/")[0] for path in listed.stdout.split()}
    assert there - set(tree.TOP) == {".gitignore", ".pre-commit-config.yaml", "LICENSE", "README.md"}
    assert all((ROOT / name).exists() for name in tree.TOP)


def test_pages_of_a_small_repository(tmp_path):
    readme, every_file, names = tree.write_pages(small(tmp_path))
    text = readme.read_text()
    assert (text.startswith(f"before\n{tree.BEGIN}\n\n"), text.endswith(f"\n\n{tree.END}\nafter\n")) == (
        True,
        True,
    )
    assert "    circuits/        Circuits\n      pruning/       Pruning. All of it\n      files.py " in text
    assert "old" not in text
    assert (
        "## circuits/\n\n    files.py     Files\n    pruning/     Pruning. All of it\n      search.py  The search\n"
        in (every_file.read_text())
    )
    assert "## docs/experiments/\n\n    toy.py  A toy\n" in every_file.read_text()
    assert "## circuits\n\nCircuits\n\n- `prune`: Drop parts\n" in names.read_text()
    assert (
        "- `LIMITS`: What is allowed\n- `Prune`: A pruned thing\n- `prune`: Drop parts\n" in names.read_text()
    )


def test_a_page_follows_the_source(tmp_path):
    root = small(tmp_path)
    before = [made(root) for made in (tree.short_tree, tree.full_tree, tree.names_page)]
    (root / "circuits" / "pruning" / "__init__.py").write_text('"""Gone."""\n__all__ = []\n')
    with pytest.raises(ValueError, match=r"circuits.pruning.prune: expected a definition with a docstring"):
        tree.names_page(root)
    (root / "circuits" / "__init__.py").write_text('"""Circuits."""\n')
    after = [made(root) for made in (tree.short_tree, tree.full_tree, tree.names_page)]
    assert all(was != now for was, now in zip(before, after, strict=True))


def test_what_says_nothing_of_itself_is_refused(tmp_path):
    root = small(tmp_path)
    (root / "circuits" / "pruning" / "search.py").write_text(
        "LIMITS = {}\n\n\nPrune = int\n\n\ndef prune(): ...\n"
    )
    with pytest.raises(ValueError, match=r"search.py: expected a docstring"):
        tree.full_tree(root)
    for name in ("LIMITS", "Prune", "prune"):
        with pytest.raises(ValueError, match=f"circuits.pruning.search.{name}: expected a definition"):
            tree.summary("circuits.pruning", name, modules(root))
    (root / "README.md").write_text("no marks")
    with pytest.raises(ValueError, match="expected '<!-- the tree: begin -->'"):
        tree.write_pages(root)


def test_sizes_are_counted_from_the_source(tmp_path):
    found = structure.sizes(small(tmp_path))
    assert found["files"] == 6
    assert (found["functions"], found["function_median"], found["function_longest"]) == (2, 5.0, 8)
    assert found["function_longest_name"] == "circuits/pruning/search.py:prune"
    assert found["file_longest_name"] == "circuits/pruning/search.py"
    assert (found["file_median"], found["file_longest"], found["lines"]) == (3, 19, 35)
    assert found["tests_over_code"] == pytest.approx(6 / 35)
    assert (found["public_names"], found["public_names_of_rooms"]) == (1, {"circuits.pruning": 3})
    assert (found["cycles"], found["files_in_cycles"]) == (0, 0)


def test_circles_are_counted_lazy_ones_and_doors_too(tmp_path):
    root = small(tmp_path)
    (root / "circuits" / "files.py").write_text("def f():\n    import circuits.pruning.search")
    (root / "circuits" / "pruning" / "search.py").write_text("import circuits.files")
    (root / "circuits" / "views.py").write_text("def plot():\n    import circuits.plots")
    (root / "circuits" / "plots.py").write_text("import circuits.views")
    found = structure.sizes(root)
    keys = ("cycles", "files_in_cycles", "files_in_cycles_with_doors")
    assert [found[key] for key in keys] == [1, 3, 5]


def test_times_are_medians_of_rounds_that_take_turns(tmp_path, monkeypatch):
    taken = iter([9.0, 9.0, 1.0, 10.0, 3.0, 30.0, 2.0, 20.0])
    called = []
    monkeypatch.setattr(structure, "seconds_of", lambda words, root: called.append(words[1]) or next(taken))
    found = structure.medians({"a": ["-c", "1"], "b": ["-c", "2"]}, rounds=3)
    assert found == {"a": 2.0, "b": 20.0}
    assert called == ["1", "2"] * 4
    with pytest.raises(ValueError, match="rounds: got 0; expected at least 1"):
        structure.medians({}, rounds=0)


def test_a_process_that_fails_gives_no_time(tmp_path):
    assert structure.seconds_of(["-c", "pass"], tmp_path) > 0
    with pytest.raises(subprocess.CalledProcessError):
        structure.seconds_of(["-c", "raise SystemExit(1)"], tmp_path)


@pytest.mark.slow
def test_the_results_have_their_headlines(tmp_path, monkeypatch):
    monkeypatch.setattr(structure, "medians", lambda commands, rounds, root: dict.fromkeys(commands, 2.0))
    found = {**structure.sizes(ROOT), **structure.starts(1, ROOT)}
    assert set(structure.HEADLINES) <= set(found)
    assert {"torch", "transformer_lens"} <= set(found["first_use_needs"]) <= structure.libraries(ROOT)
