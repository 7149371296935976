"""Sizings beside an oracle that solves every number of GPUs by itself (tests/support/sizings.py)."""

from typing import Any

import msgspec
import pytest

import autopart
from autopart.records.cluster import Link
from autopart.records.size import Sizing
from tests.support.problems import chain_graph, cluster, layer, profile
from tests.support.seeds import seeds
from tests.support.sizings import (
    EQUAL,
    Point,
    SizedCase,
    every_point,
    front_by_definition,
    meeting,
    random_case,
)


def answer(case: SizedCase, counts: str) -> Sizing | None:
    """The answer to a random question; None where nothing meets the limits."""
    each = max(node.gpus_per_node for node in case.clusters.values())
    try:
        return autopart.size(
            case.profiles,
            case.prices,
            counts=counts,
            most_gpus=each * case.most_nodes,
            count_limit=60.0,
            **case.question,
        ).sizing
    except (autopart.InfeasibleError, autopart.NoPlanFound):
        return None


def check_case(seed: int) -> None:
    """Compare both kinds of search with the oracle."""
    case = random_case(seed)
    points = every_point(case)
    able = meeting(case, points)
    wanted = front_by_definition(able)
    for counts in ("nodes", "auto"):
        found = answer(case, counts)
        if found is None:
            assert wanted == [], seed
            continue
        check_claims(case, found, points, able)
        if counts == "nodes":
            front = sorted((own.gpus, own.training_seconds, own.cost) for own in found.front)
            assert [own[0] for own in front] == [own[0] for own in wanted], seed
            for own, other in zip(front, wanted, strict=True):
                assert own == pytest.approx(other, rel=EQUAL), seed


def check_claims(case: SizedCase, found: Sizing, points: list[Point], able: list[Point]) -> None:
    """Every proven statement holds for the plans of the oracle."""
    by_count = {(own.kind, own.gpus): own for own in points}
    for row in found.counts:
        own = by_count.get((row.gpu, row.gpus))
        assert row.verdict != "no memory" or own is None, row
        if row.verdict in ("too slow", "too dear"):
            assert own not in able, row
        if own is not None:
            assert row.lower_bound is not None, row
    within = float("inf") if case.within_days is None else 86400 * case.within_days
    for kind in found.kinds:
        fewest = kind.fewest
        holding = [own.gpus for own in points if own.kind == kind.gpu]
        in_time = [
            own.gpus
            for own in points
            if own.kind == kind.gpu and own.seconds <= within * (1 + EQUAL)
        ]
        assert fewest.no_memory < min(holding, default=1 << 30), fewest
        assert fewest.too_slow < min(in_time, default=1 << 30), fewest
        if not fewest.undecided:
            assert fewest.gpus == min(in_time, default=None), fewest


@pytest.mark.parametrize("seed", seeds(0, 300, slow=8))
def test_the_front_and_every_claim_equal_those_of_all_counts_solved(seed: int) -> None:
    check_case(seed)


def small_case(**keywords: Any) -> autopart.SizedPlans:
    """Four equal layers on one to four nodes of one GPU, at a dollar per GPU second."""
    graph = chain_graph(*(layer(f"l{at}", num_trainable=10, param_bytes=40) for at in range(4)))
    node = msgspec.structs.replace(
        cluster(1, 1, memory_bytes=10_000, inter_node=Link(bandwidth=1e12)), gpu="cpu"
    )
    asked: dict[str, Any] = {
        "tokens": 80.0,
        "tokens_per_sample": 1,
        "global_batch": 8,
        "most_gpus": 4,
        "counts": "nodes",
        "clusters": {"mine": node},
    }
    return autopart.size(profile(graph), {"mine": 3600.0}, **(asked | keywords))


def test_the_first_of_equal_plans_has_the_mark() -> None:
    front = small_case().sizing.front
    assert [own.marks for own in front] == [("cheapest", "fewest"), (), ("fastest",)]


def test_days_and_cost_are_steps_times_the_step() -> None:
    sizing = small_case().sizing
    assert sizing.num_steps == 10
    for own in sizing.front:
        assert own.training_seconds == pytest.approx(10 * own.step_time)
        assert own.cost == pytest.approx(own.training_seconds * own.gpus)
    assert [own.gpus for own in sizing.front] == [1, 2, 4]


def test_plans_belong_to_the_front_and_are_verified() -> None:
    found = small_case(most_gpus=2)
    assert [plan.prediction.step_time for plan in found.plans] == [
        own.step_time for own in found.sizing.front
    ]


def test_a_date_that_is_met_to_the_second_is_met() -> None:
    one = small_case().sizing.front[0]
    again = small_case(within_days=one.training_seconds / 86400).sizing
    assert again.front[0].gpus == 1
    assert again.kinds[0].fewest.too_slow == 0


def test_fewer_gpus_are_excluded_by_a_bound() -> None:
    two = small_case().sizing.front[1]
    sizing = small_case(within_days=two.training_seconds / 86400, counts="auto").sizing
    fewest = sizing.kinds[0].fewest
    assert (fewest.gpus, fewest.too_slow, fewest.undecided) == (2, 1, ())
    assert fewest.lower_bound is not None and fewest.needed is not None
    assert fewest.lower_bound >= fewest.needed


def test_a_budget_that_nothing_meets_names_the_nearest_plan() -> None:
    with pytest.raises(autopart.InfeasibleError, match="meets 1 dollars: the nearest is 1 mine"):
        small_case(budget=1.0)


def test_a_date_that_nothing_meets_names_the_fastest_plan() -> None:
    with pytest.raises(autopart.InfeasibleError, match="the nearest is 4 mine with"):
        small_case(within_days=1e-9)


def test_a_model_that_no_number_of_gpus_holds_is_told() -> None:
    node = msgspec.structs.replace(cluster(1, 1, memory_bytes=10), gpu="cpu")
    with pytest.raises(autopart.InfeasibleError, match="no plan fits on any number"):
        small_case(clusters={"mine": node})


def test_what_was_not_decided_in_time_is_told() -> None:
    with pytest.raises(autopart.NoPlanFound, match="not decided: 4 numbers of GPUs"):
        small_case(time_limit=0.0, counts="nodes", budget=1e9, count_limit=0.0)


@pytest.mark.parametrize(
    ("keywords", "said"),
    [
        ({"tokens": 0.0}, "--tokens 0: write a number above 0"),
        ({"tokens": float("nan")}, "--tokens nan"),
        ({"within_days": -1.0}, "--within -1"),
        ({"budget": float("inf")}, "--budget inf"),
        ({"global_batch": None}, "--global-batch 1024"),
        ({"objective": "bottleneck"}, "--objective step or period"),
        ({"solver": "uniform"}, "--solver auto, dp or ilp"),
        ({"tokens_per_sample": None}, "no input of token ids"),
        ({"most_gpus": 10**20}, "at most 262144 GPUs"),
        ({"counts": "some"}, "write numbers of GPUs such as"),
    ],
)
def test_a_question_that_makes_no_sense_is_refused(keywords: dict[str, object], said: str) -> None:
    with pytest.raises(autopart.UsageError, match=said):
        small_case(**keywords)


def test_a_number_that_groups_do_not_divide_excludes_no_smaller_one() -> None:
    """A group with shard degree 2 is two nodes of one GPU: it divides 2 and 4 of them, and not 3."""
    found = small_case(shard="zero3", shard_degree=2).sizing
    assert [own.gpus for own in found.front] == [2, 4]
    bounds = {row.gpus: row.lower_bound for row in found.counts}
    steps = {own.gpus: own.step_time for own in found.front}
    for gpus, step in steps.items():
        bound = bounds[gpus]
        assert bound is not None and bound <= step * (1 + EQUAL)
