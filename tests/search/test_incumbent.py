"""The incumbent: another quantity decides between equal values."""

import msgspec
import pytest

from autopart.pricing import Decision, price
from autopart.records.layouts import Layout
from autopart.records.problem import Problem
from autopart.search.incumbent import Incumbent
from autopart.search.objectives import searched_objective
from tests.support.problems import chain_graph, cluster, layer, problem

GRAPH = chain_graph(*(layer(f"l{i}", stash_bytes=100) for i in range(2)))


def asking(objective: str) -> Problem:
    return msgspec.structs.replace(problem(GRAPH, cluster=cluster(1, 2)), objective=objective)


def decision(asked: Problem, step_time: float, peak_bytes: int) -> Decision:
    """A decision on two ranks with the given step time and peak instead of its own."""
    layout = Layout(schedule="1f1b", stage_ranks=((0,), (1,)), num_microbatches=4)
    priced = price(asked, layout, ((0,), (1,)))
    prediction = msgspec.structs.replace(
        priced.prediction, step_time=step_time, rank_peak_bytes=(peak_bytes, 1)
    )
    return priced._replace(prediction=prediction)


@pytest.mark.parametrize(
    ("first", "second", "kept"),
    [
        ((2.0, 100), (1.0, 200), 1),
        ((1.0, 200), (2.0, 100), 0),
        ((1.0, 200), (1.0, 100), 1),
        ((1.0, 100), (1.0, 200), 0),
        ((1.0, 200), (1.0 + 1e-14, 100), 1),
    ],
)
def test_of_equal_steps_the_one_with_fewer_bytes_is_kept(
    first: tuple[float, int], second: tuple[float, int], kept: int
):
    asked = asking("step")
    offered = [decision(asked, *first), decision(asked, *second)]
    best = Incumbent(searched_objective(asked), "auto", float("inf"))
    for one in offered:
        best.offer(one, "dp")
    assert best.decision is offered[kept] and best.by == "dp"
    assert best.value == offered[kept].prediction.step_time


def test_of_equal_bottlenecks_the_one_with_the_shorter_step_is_kept():
    asked = asking("bottleneck")
    slow, fast = decision(asked, 30.0, 1), decision(asked, 20.0, 1000)
    best = Incumbent(searched_objective(asked), "auto", float("inf"))
    for one in (slow, fast, slow):
        best.offer(one, "dp")
    assert best.decision is fast
    assert best.value == 4 * 3.0


def test_the_value_is_never_above_the_seconds_to_beat():
    asked = asking("step")
    best = Incumbent(searched_objective(asked), "auto", 5.0)
    assert best.value == 5.0
    best.offer(decision(asked, 6.0, 1), "dp")
    assert best.value == 5.0
    best.offer(decision(asked, 4.0, 1), "dp")
    assert best.value == 4.0
