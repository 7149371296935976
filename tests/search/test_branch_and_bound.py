"""The first look of a branch and bound: few layouts under fewer policies, and the problem that promises most."""

from unittest import mock

import msgspec

from autopart.records.layer_graph import Recompute
from autopart.records.problem import Problem
from autopart.search import every_assignment
from autopart.search.branch_and_bound import LOOKED_AT, BranchAndBound
from autopart.search.microbatch_sizes import search_sizes
from tests.support.problems import chain_graph, cluster, layer, problem

NEVER = float("inf")


def short_of_memory(num_layers: int = 24, gpus: int = 24, scale: float = 1.0) -> Problem:
    """Equal layers that fit without policies only where few microbatches are in flight."""
    again = Recompute(extra_time=0.25, stash_bytes=1)
    layers = [
        msgspec.structs.replace(
            layer(f"l{i}"), forward_time=scale, stash_bytes=100, recompute=again
        )
        for i in range(num_layers)
    ]
    asked = problem(
        chain_graph(*layers, num_bytes=0), 48, cluster=cluster(1, gpus, memory_bytes=1500)
    )
    demands = msgspec.structs.replace(asked.demands, recompute="auto")
    return msgspec.structs.replace(asked, demands=demands)


def test_a_start_without_policies_visits_few_layouts():
    asked = short_of_memory()
    visits: list[tuple[str, int]] = []
    visit = every_assignment.visit

    def counted(found: object, layout: object, quick: float) -> object:
        visits.append((found.problem.demands.recompute, len(layout.stage_ranks)))  # pyright: ignore
        return visit(found, layout, quick)  # pyright: ignore

    with mock.patch.object(every_assignment, "visit", counted):
        outcome = search_sizes([asked], "auto", NEVER)
    never = [stages for recompute, stages in visits if recompute == "never"]
    assert 0 < len(set(never)) <= LOOKED_AT
    assert outcome.best == 0


def test_the_problem_that_promises_most_comes_first():
    """The quick bound of the first one is smaller, but its memory leaves slow plans only."""
    slow, fast = short_of_memory(), short_of_memory(scale=1.1)
    fast = msgspec.structs.replace(
        fast, cluster=msgspec.structs.replace(fast.cluster, memory_bytes=100_000)
    )
    searches = [BranchAndBound(one, "auto") for one in (slow, fast)]
    assert searches[0].quick_bound < searches[1].quick_bound
    for search in searches:
        search.phases[0].run(NEVER)
    assert searches[0].promise > searches[1].promise
    assert all(search.promise >= search.quick_bound for search in searches)
