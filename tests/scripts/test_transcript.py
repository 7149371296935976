"""The transcript in README.md is what its commands print."""

import pytest

from tests.support.places import ROOT
from tests.support.scripts import load_script


@pytest.mark.slow
def test_the_transcript_is_what_its_commands_print_now() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert load_script("transcript").written(text) == text, "run scripts/transcript.py"


def test_parts_of_an_output_stand_in_their_order_with_dots_between() -> None:
    kept = load_script("transcript")._kept
    output = ["a 1", "b 1", "c 1", "c 2", "d 1", "e 1"]
    assert kept(output, (("b", "b"), ("c", "d"))) == ["…", "b 1", "c 1", "c 2", "d 1", "…"]
    assert kept(output, (("a", "b"), ("c", ""))) == output
