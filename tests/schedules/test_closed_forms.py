"""The length of each schedule against the closed form in its paper and its generator.

Sends are free and all stages alike. There are k ranks, v stages per rank and m microbatches. The
length is the whole step in slots of one stage (`pictures.slots`).
"""

from collections.abc import Callable
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autopart.schedules.catalogue import KINDS
from autopart.schedules.pipeline import Pipeline
from tests.support.pictures import slots

LENGTHS = {"F": 1, "B": 2, "I": 1, "W": 1}
ALIKE = {"F": 1, "B": 1, "I": 1, "W": 1}
HIDDEN = {"F": 1, "B": 2, "I": 1, "W": 1, "P": 2}
"""A forward beside a backward takes no longer than the backward."""


def makespan(name: str, pipeline: Pipeline, lengths: dict[str, int]) -> tuple[int, list[int]]:
    """The whole step, and each rank's idle slots between its first and last actions."""
    kind = KINDS[name]
    schedule = kind.generate(pipeline)
    start = slots(schedule, pipeline.num_stages, lengths)
    end = {action: at + lengths[action.op] for action, at in start.items()}
    idle = [end[o[-1]] - start[o[0]] - sum(lengths.get(a.op, 0) for a in o) for o in schedule]
    return max(end.values()), idle


class Form(NamedTuple):
    name: str
    per_rank: int
    slots: Callable[[int, int, int], int]
    """Slots in a step with k ranks, v stages per rank and m microbatches."""
    lengths: dict[str, int] = LENGTHS
    multiple: bool = False
    """Whether m must be a multiple of k, and k even."""


FORMS = [
    Form("gpipe", 1, lambda k, v, m: 3 * (m + k - 1)),
    Form("1f1b", 1, lambda k, v, m: 3 * (m + k - 1)),
    Form("bpipe", 1, lambda k, v, m: 3 * (m + k - 1), multiple=True),
    Form("eager-1f1b", 1, lambda k, v, m: 3 * (m + k - 1)),
    Form("looped-bfs", 2, lambda k, v, m: 3 * (v * m + k - 1)),
    Form("looped-bfs", 4, lambda k, v, m: 3 * (v * m + k - 1)),
    Form("interleaved-1f1b", 2, lambda k, v, m: 3 * (v * m + k - 1), multiple=True),
    Form("interleaved-1f1b", 3, lambda k, v, m: 3 * (v * m + k - 1), multiple=True),
    Form("interleaved-zb", 2, lambda k, v, m: 3 * v * m + k - 1, multiple=True),
    Form("interleaved-zb", 3, lambda k, v, m: 3 * v * m + k - 1, multiple=True),
    Form("zb-h1", 1, lambda k, v, m: 3 * m + k - 1),
    Form("zb-h2", 1, lambda k, v, m: 3 * m + k - 1),
    Form("zbv", 2, lambda k, v, m: 6 * m + k - 1),
    Form("v-half", 2, lambda k, v, m: 6 * m + max(1, 3 * k - (4 if k % 2 else 7))),
    Form("v-min", 2, lambda k, v, m: 6 * m + 4 * k - (7 if k % 3 == 0 else 5)),
    Form("paired-1f1b", 1, lambda k, v, m: 3 * (m + k - 1)),
    Form("paired-1f1b", 1, lambda k, v, m: 2 * (m - 1) + 3 * k, HIDDEN),
    Form("paired-interleaved-1f1b", 2, lambda k, v, m: 3 * (v * m + k - 1), multiple=True),
    Form(
        "paired-interleaved-1f1b",
        3,
        lambda k, v, m: 2 * v * m + (v + 2) * k - 2,
        HIDDEN,
        multiple=True,
    ),
    Form("paired-dualpipev", 2, lambda k, v, m: 6 * m + 2 * (k - 1)),
    Form("paired-dualpipev", 2, lambda k, v, m: 4 * m + 3 * k, HIDDEN),
    Form("dualpipev", 2, lambda k, v, m: 6 * m + k - 1),
    Form("chimera", 1, lambda k, v, m: 2 * m + k - 2, ALIKE, multiple=True),
    Form("chimera", 1, lambda k, v, m: 3 * m + (k - 2) * (m // k + 1), multiple=True),
    Form("gems", 1, lambda k, v, m: (2 * k + 1) * m + k - 1),
    Form("hanayo", 2, lambda k, v, m: 2 * v * m + 2 * (k - 1), ALIKE, multiple=True),
    Form("hanayo", 4, lambda k, v, m: 2 * v * m + 2 * (k - 1), ALIKE, multiple=True),
    Form("hanayo", 4, lambda k, v, m: 3 * v * m + 2 * (k - 1) * (m // k + 1), multiple=True),
]


@pytest.mark.slow
@settings(max_examples=20)
@pytest.mark.parametrize("form", FORMS, ids=lambda form: f"{form.name}-{form.per_rank}")
@given(half=st.integers(1, 5), odd=st.booleans(), times=st.integers(1, 4), rest=st.integers(0, 7))
def test_the_step_equals_the_closed_form(form: Form, half: int, odd: bool, times: int, rest: int):
    ranks = 2 * half if form.multiple else 2 * half + odd
    microbatches = ranks * times if form.multiple else 2 * (ranks * times + rest)
    pipeline = Pipeline(ranks, form.per_rank, microbatches)
    expected = form.slots(ranks, form.per_rank, microbatches)
    assert makespan(form.name, pipeline, form.lengths)[0] == expected


def test_every_schedule_has_a_closed_form():
    assert {form.name for form in FORMS} == set(KINDS)


@pytest.mark.slow
@given(st.integers(1, 10), st.integers(0, 20), st.sampled_from(["zb-h2", "zbv"]))
def test_no_rank_idles_after_its_first_action_under_a_zero_bubble_schedule(
    ranks: int, more: int, name: str
):
    pipeline = Pipeline(ranks, KINDS[name].stages_per_rank or 1, 2 * ranks - 1 + more)
    assert makespan(name, pipeline, LENGTHS)[1] == [0] * ranks


@pytest.mark.slow
@given(st.integers(1, 8), st.integers(0, 20), st.integers(1, 9), st.integers(1, 9))
def test_h1_hides_weight_gradients_in_the_drain(ranks: int, more: int, both: int, weights: int):
    """The paper's bubble (k - 1) (F + I - W), if F = I and W is not longer."""
    weights = min(weights, both)
    lengths = {"F": both, "I": both, "W": weights, "B": both + weights}
    step, _idle = makespan("zb-h1", Pipeline(ranks, 1, ranks + more), lengths)
    busy = (ranks + more) * (2 * both + weights)
    assert step == busy + (ranks - 1) * (2 * both - weights)


@settings(max_examples=10)
@given(st.integers(2, 10))
def test_bubbles_are_those_of_the_papers(ranks: int):
    """The bubbles, with B = 2 F:

    Hanayo     (2 k - 2) / (3 k w + 2 k - 2) for w waves and k microbatches
    Chimera    (k - 2) / (3 k / 2 + k - 2) for k microbatches
    GEMS       (k - 1) / (k + 1 / 2) between fill and drain
    """
    for waves in (1, 2):
        step, _ = makespan("hanayo", Pipeline(ranks, 2 * waves, ranks), LENGTHS)
        bubble = 1 - 6 * waves * ranks / step
        paper = (2 * ranks - 2) / (3 * ranks * waves + 2 * ranks - 2)
        assert bubble == pytest.approx(paper)
    even = 2 * (ranks // 2)
    step, _ = makespan("chimera", Pipeline(even, 1, even), LENGTHS)
    assert 1 - 3 * even / step == pytest.approx((even - 2) / (1.5 * even + even - 2))
    more, _ = makespan("gems", Pipeline(ranks, 1, 6), LENGTHS)
    less, _ = makespan("gems", Pipeline(ranks, 1, 4), LENGTHS)
    assert 1 - 6 / (more - less) == pytest.approx((ranks - 1) / (ranks + 0.5))


@given(st.integers(2, 10))
def test_schedules_with_controlled_memory_keep_about_a_half_and_a_third(ranks: int):
    pipeline = Pipeline(ranks, 2, 6 * ranks)
    full = 2 * ranks
    assert max(KINDS["zbv"].in_flight(pipeline)) == full
    assert max(KINDS["v-half"].in_flight(pipeline)) <= full / 2 + 2
    assert max(KINDS["v-min"].in_flight(pipeline)) <= full / 3 + 8 / 3
