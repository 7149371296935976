"""docs/schedules.md is right: its pictures, its rows, and columns that no other test counts."""

import re
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autopart.schedules.catalogue import KINDS
from autopart.schedules.kind import Kind
from autopart.schedules.named.asynchronous import ASYNCHRONOUS
from autopart.schedules.pipeline import Pipeline
from tests.support.pictures import draw, place_stages
from tests.support.places import ROOT

PAGE = (ROOT / "docs" / "schedules.md").read_text(encoding="utf-8")
_SECTION = re.compile(r"^#### (\S+)\n\n(.*?)```text\n(.*?)```", re.MULTILINE | re.DOTALL)
SECTIONS = {name: (words, picture) for name, words, picture in _SECTION.findall(PAGE)}


def rows() -> dict[str, list[str]]:
    """The cells in every row that begins with a schedule's name."""
    found = re.findall(r"^\| `(\S+)` \|(.*)\|$", PAGE, re.MULTILINE)
    return {name: [cell.strip() for cell in rest.split(" | ")] for name, rest in found}


def test_every_schedule_has_its_row_with_its_source():
    table = rows()
    assert set(table) == {*KINDS, *ASYNCHRONOUS}
    for name, kind in {**KINDS, **ASYNCHRONOUS}.items():
        assert table[name][-1] == kind.source


@pytest.mark.parametrize("kind", KINDS.values(), ids=list(KINDS))
def test_every_picture_equals_the_generator_s_schedule(kind: Kind):
    words, picture = SECTIONS[kind.name]
    shape = kind.pictured
    assert f"{shape.num_ranks} ranks, {shape.microbatches_per_replica} microbatches" in " ".join(
        words.split()
    )
    drawn = draw(kind.generate(shape), shape.num_stages)
    assert picture.splitlines() == drawn


LINE: Callable[[int, int], int] = lambda k, v: k - 1  # noqa: E731
SENDS: dict[str, Callable[[int, int], int]] = dict.fromkeys(KINDS, LINE) | {
    "interleaved-1f1b": lambda k, v: v * k - 1,
    "looped-bfs": lambda k, v: v * k - 1,
    "interleaved-zb": lambda k, v: v * k - 1,
    "zbv": lambda k, v: 2 * (k - 1),
    "v-half": lambda k, v: 2 * (k - 1),
    "v-min": lambda k, v: 2 * (k - 1),
    "dualpipev": lambda k, v: 2 * (k - 1),
    "paired-interleaved-1f1b": lambda k, v: v * k - 1,
    "paired-dualpipev": lambda k, v: 2 * (k - 1),
    "hanayo": lambda k, v: v * (k - 1),
}


@settings(max_examples=30)
@given(st.sampled_from(list(KINDS.values())), st.integers(1, 4), st.integers(1, 3))
def test_the_number_of_sends_per_microbatch_follows_the_formula_of_its_placement(
    kind: Kind, half: int, waves: int
):
    pipeline = Pipeline(2 * half, kind.stages_per_rank or 2 * waves, 4 * half)
    places = place_stages(kind, pipeline.num_ranks, pipeline.stages_per_rank)
    schedule = kind.generate(pipeline)
    ran = {a.stage for order in schedule for a in order if a[1:] == ("F", 0)}
    sent = sum(stage - 1 in ran and places[stage][0] != places[stage - 1][0] for stage in ran)
    assert sent == SENDS[kind.name](pipeline.num_ranks, pipeline.stages_per_rank)
