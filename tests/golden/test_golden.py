"""Plans, documents and exports are unchanged, to the byte."""

import pytest

from tests.golden.cases import EXPECTED, QUICK, SLOW, content, outcome


@pytest.mark.parametrize("name", QUICK)
def test_the_outcome_of_a_case_is_unchanged(name: str) -> None:
    assert content(outcome(name)) == (EXPECTED / f"{name}.json").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_the_outcome_of_a_slow_case_is_unchanged(name: str) -> None:
    assert content(outcome(name)) == (EXPECTED / f"{name}.json").read_text(encoding="utf-8")


def test_every_expected_file_belongs_to_a_case() -> None:
    assert {path.stem for path in EXPECTED.glob("*.json")} == {*QUICK, *SLOW}
