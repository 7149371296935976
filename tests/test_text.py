"""Names and counts in sentences, and the sentences of the package."""

import ast
import itertools
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import autopart
from autopart.text import LONGEST_CLAUSE, counted, known_names, quoted, shortened, visible
from tests.support.hostile_names import HOSTILE, OBEYED

NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


@pytest.mark.slow
@given(st.text())
def test_visible_text_is_one_line_that_no_terminal_obeys(text: str) -> None:
    shown = visible(text)
    assert not OBEYED.search(shown)
    assert len(shown.splitlines()) <= 1
    assert visible(shown) == shown


def test_visible_text_keeps_words_and_shows_the_rest() -> None:
    assert visible("Schicht 3 — 层 é") == "Schicht 3 — 层 é"
    assert visible("a\nb\x1b[31m") == r"a\nb\x1b[31m"
    assert visible("\ud800") == r"\ud800"


def check_quoted(name: str) -> None:
    literal = quoted(name)
    assert not OBEYED.search(literal) and "\n" not in literal
    assert ast.literal_eval(literal) == name
    assert tomllib.loads(f"x = {literal}")["x"] == name
    assert yaml.safe_load(f"x: [{literal}]")["x"] == [name]


@given(NAMES)
def test_a_quoted_name_is_the_same_string_in_python_toml_and_yaml(name: str) -> None:
    check_quoted(name)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_is_the_same_string_in_each_language(name: str) -> None:
    check_quoted(name)


def test_advice_on_an_unknown_name_begins_with_the_nearest_known_one() -> None:
    assert (
        known_names("h10-sxm", ["a10", "h100-sxm"]) == "did you mean h100-sxm? known: a10, h100-sxm"
    )
    assert known_names("banana", ["a10", "h100-sxm"]) == "known: a10, h100-sxm"


def test_a_count_agrees_with_its_noun() -> None:
    assert [counted(n, "layer") for n in (0, 1, 2)] == ["0 layers", "1 layer", "2 layers"]
    assert counted(2, "GPU") == "2 GPUs"
    assert counted(1, "layer is", "layers are") == "1 layer is"
    assert counted(2, "layer is", "layers are") == "2 layers are"
    assert counted(2, "microbatch") == "2 microbatches"


@given(st.text(st.characters(codec="ascii"), max_size=900))
def test_a_shortened_clause_has_a_limit(text: str) -> None:
    clause, _, advice = shortened(text).partition("; ")
    assert len(clause) <= LONGEST_CLAUSE
    before, _, after = text.partition("; ")
    if len(before) <= LONGEST_CLAUSE:
        assert clause == before
    if "; " not in clause:
        assert advice == after


def test_a_long_path_loses_its_middle_and_the_advice_stays() -> None:
    path = f"/{'very-long-folder/' * 30}plan.json"
    said = shortened(f"{path}: there is no such file; make it with autopart solve")
    assert said.startswith("/very-long-folder/")
    assert said.endswith("plan.json: there is no such file; make it with autopart solve")


NOUNS = [
    "layer",
    "stage",
    "rank",
    "replica",
    "microbatch",
    "GPU",
    "node",
    "sample",
    "process",
    "profile",
    "warning",
    "parameter",
    "value",
    "message",
    "unit",
    "draw",
    "machine",
    "operation",
    "error",
    "line",
    "action",
    "plan",
    "option",
    "buffer",
    "module",
    "group",
    "order",
    "cut",
    "byte",
    "accelerator",
    "device",
    "step",
    "pipeline",
    "edge",
    "file",
]
_PLURAL = re.compile(rf"^ (?:more |other )?(?:{'|'.join(NOUNS)})(?:s|es)\b(?!/)")
_NO_COUNT = re.compile(r"\.join\(|^(?:sorted\(replicas\)|counts(?:\[-1\])?|listed)$")
"""Values before a plural that are lists, or counts of at least two."""


def plurals(tree: ast.AST) -> Iterator[str]:
    """The counts in `tree` that stand before a plural as they are: `{n} layers`."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.JoinedStr):
            continue
        for one, other in itertools.pairwise(node.values):
            if not isinstance(one, ast.FormattedValue) or one.format_spec is not None:
                continue
            count = ast.unparse(one.value)
            words = str(getattr(other, "value", ""))
            large = count.isupper() or " are too many" in words
            if _PLURAL.match(words) and not _NO_COUNT.search(count) and not large:
                yield f"{{{count}}}{words}"


@pytest.mark.slow
def test_no_sentence_of_the_package_says_1_layers() -> None:
    assert list(plurals(ast.parse("f'{n} layers, {m} other ranks, {t} samples/s'"))) == [
        "{n} layers, ", "{m} other ranks, ",
    ]  # fmt: skip
    package = Path(autopart.__file__).parent
    found = [
        f"{path.relative_to(package)}: {words}"
        for path in package.rglob("*.py")
        if path.parent.name != "exported"  # They import nothing of ours; see their own messages.
        for words in plurals(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert found == []
