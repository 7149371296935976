"""The glossary is sorted, short, and names code that exists."""

import re
from collections.abc import Iterator

import pytest

from tests.support.places import ROOT

PAGE = (ROOT / "docs" / "concepts.md").read_text(encoding="utf-8")
MOST_WORDS = 25


def rows(heading: str) -> Iterator[list[str]]:
    """The cells in the table under a heading, row by row, without its head."""
    section = PAGE.split(f"## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    for line in lines[2:]:
        yield [cell.strip() for cell in line.strip("|").split("|")]


GLOSSARY = list(rows("Glossary"))
CODE = "\n".join(
    path.read_text(encoding="utf-8") for path in sorted((ROOT / "autopart").rglob("*.py"))
)


@pytest.mark.parametrize("heading", ["Glossary", "Words that we do not use"])
def test_terms_stand_once_and_in_alphabetical_order(heading: str):
    terms = [row[0].lower() for row in rows(heading)]
    assert terms == sorted(set(terms))


@pytest.mark.parametrize("row", GLOSSARY, ids=lambda row: row[0])
def test_a_meaning_is_one_short_sentence(row: list[str]):
    _, meaning, _ = row
    assert meaning.endswith(".") and ". " not in meaning
    assert len(re.findall(r"[A-Za-z'-]+", meaning)) <= MOST_WORDS


@pytest.mark.parametrize("row", GLOSSARY, ids=lambda row: row[0])
def test_the_code_that_a_term_names_exists(row: list[str]):
    for name in re.findall(r"`([^`]+)`", row[2]):
        if name.endswith(("/", ".py")):
            assert (
                list((ROOT / "autopart").rglob(f"*{name.rstrip('/')}"))
                or (ROOT / "autopart" / name).exists()
            ), name
        else:
            word = name.removeprefix("autopart ").removeprefix("--").split()[0].strip('"')
            assert re.search(rf"\b{word.replace('-', '[-_]')}\b", CODE), name


def test_no_term_is_a_word_that_we_do_not_use():
    refused = {row[0].lower() for row in rows("Words that we do not use") if "(" not in row[0]}
    words = {word for row in refused for word in row.split(", ")}
    assert not words & {row[0].lower() for row in GLOSSARY}
