"""The two bounds in a certificate, and the schedules that they cover."""

import msgspec
import pytest

from autopart.certificate.assumptions import assumptions
from autopart.certificate.certificate import certificate, gap_over
from autopart.certificate.verify import verify
from autopart.records.cluster import load_cluster
from autopart.records.plan import SearchedSize
from autopart.records.problem import CUSTOM, Demands
from autopart.records.profile import load_profile
from autopart.search.planner import solve
from tests.support.problems import chain_graph, cluster, layer, problem, profile
from tests.support.shared_data import CASES, needs_cases

CHAIN = chain_graph(*(layer(f"l{i}") for i in range(4)), num_bytes=0)


@pytest.mark.parametrize(
    ("schedules", "words"),
    [
        (("gpipe", "1f1b"), "the orders of gpipe and 1f1b"),
        (("1f1b",), "the order of 1f1b"),
        (("gpipe", "1f1b", "zb-h1"), "the orders of gpipe, 1f1b and zb-h1"),
        (("1f1b", CUSTOM), "any order"),
    ],
)
def test_the_words_name_the_schedules_that_the_bound_covers(
    schedules: tuple[str, ...], words: str
) -> None:
    asked = problem(CHAIN, demands=Demands(schedules=schedules))
    assert words in assumptions(asked, ())


def test_the_bound_over_every_order_lies_below_the_bound_of_the_classic_schedules() -> None:
    plan = solve(profile(CHAIN), cluster(), num_microbatches=4, num_stages=4, num_replicas=1)
    # The last layer waits for 3 s, and then runs 4 x 3 s. 1F1B returns the gradients in 6 s more.
    assert plan.certificate.lower_bound == 21
    assert plan.certificate.any_order_bound == 15
    assert all(check.passed for check in verify(plan, profile(CHAIN)))


@pytest.mark.parametrize("keywords", [{"schedule": "auto"}, {"objective": "bottleneck"}])
def test_both_bounds_are_one_where_no_other_order_is_left(keywords: dict[str, str]) -> None:
    plan = solve(profile(CHAIN), cluster(1, 2), num_microbatches=4, **keywords)  # pyright: ignore
    assert plan.certificate.any_order_bound == plan.certificate.lower_bound


def test_a_bound_over_every_order_that_is_too_high_is_refused() -> None:
    plan = solve(profile(CHAIN), cluster(), num_microbatches=4, num_stages=4, num_replicas=1)
    claim = msgspec.structs.replace(plan.certificate, any_order_bound=20.0)
    checks = verify(msgspec.structs.replace(plan, certificate=claim), profile(CHAIN))
    assert checks[-1].name == "bound" and "no order beats 20.0" in checks[-1].detail


@needs_cases
def test_eager_1f1b_keeps_the_bound_over_every_order_that_1f1b_prints() -> None:
    given = load_profile(CASES / "h2eager.profile.json")
    machine = load_cluster(CASES / "h2eager.cluster.json")
    plain = solve(given, machine, num_stages=3, global_batch=8)
    eager = solve(given, machine, num_stages=3, global_batch=8, schedule="eager-1f1b")
    assert eager.prediction.step_time < plain.certificate.lower_bound
    assert eager.prediction.step_time >= plain.certificate.any_order_bound


@pytest.mark.parametrize(
    ("bound", "value", "gap"),
    [(4.0, 5.0, 0.25), (4.0, 4.0, 0.0), (0.0, 4.0, None), (0.0, 0.0, None), (5e-324, 4.0, None)],
)
def test_the_gap_over_a_bound_of_0_is_unknown(bound: float, value: float, gap: float | None):
    assert gap_over(bound, value) == gap


def test_the_smallest_bound_over_all_sizes_counts():
    sizes = [
        SearchedSize(
            microbatch_size=size,
            profile_hash="",
            profiled_size=1,
            lower_bound=bound,
            simulated=size,
        )
        for size, bound in ((1, 6.0), (2, 4.0), (4, None))
    ]
    asked = problem(chain_graph(layer("a")))
    found = certificate(asked, 5.0, sizes, [asked])
    assert (found.lower_bound, found.gap, found.simulated) == (4.0, 0.25, 7)
    assert "microbatches of 1, 2, 4 samples" in found.assumes
