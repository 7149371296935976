"""A search that runs out of time anywhere answers honestly: `verify` accepts its plan and bound.

The clock here moves by a fixed step at each reading. So a limit in seconds is a limit on readings,
and the search is cut off at the same place on every machine.
"""

import random
import time
from collections.abc import Mapping
from typing import Any

import msgspec
import pytest

from autopart.certificate.verify import verify
from autopart.errors import InfeasibleError, NoPlanFound
from autopart.records.cluster import Cluster
from autopart.records.profile import Profile
from autopart.search.planner import solve
from tests.activations.test_frontier import some_host, with_recompute_costs
from tests.support.problems import profile, random_problem
from tests.support.seeds import seeds

STEP = 0.05
"""Seconds from one reading to the next."""

LIMITS = (0.0, 0.3, 1.0, 3.0, 7.0, 15.0, 40.0, 100.0)
"""Seconds: from a handful of readings to thousands."""

KINDS: Mapping[str, Mapping[str, Any]] = {
    "default": {},
    "replicas per stage": {"replicas_per_stage": True},
    "own orders": {"schedule": "auto"},
    "policies": {"recompute": "auto", "offload": "auto"},
    "sizes": {"microbatch_sizes": (1, 2, 4)},
    "bottleneck": {"objective": "bottleneck"},
    "integer program": {"solver": "ilp"},
}


class Clock:
    """A clock that moves by `STEP` at each reading."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        self.now += STEP
        return self.now


def case(seed: int) -> tuple[Profile, Cluster]:
    """A random profile with microbatches of one sample, on up to four GPUs."""
    rng = random.Random(seed)
    asked = random_problem(rng, branching=seed % 3 == 0, tight=seed % 4 == 0)
    graph = with_recompute_costs(rng, asked.graph, alike=False)
    return profile(graph), msgspec.structs.replace(asked.cluster, host_link=some_host(rng, graph))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", seeds(2, 30, slow=4))
def test_wherever_time_ends_the_plan_and_its_bound_are_verified(
    seed: int, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, machine = case(seed)
    whole = step_of(given, machine, kind)
    for limit in LIMITS:
        with monkeypatch.context() as patched:
            patched.setattr(time, "perf_counter", Clock())
            try:
                plan = solve(given, machine, global_batch=8, time_limit=limit, **KINDS[kind])
            except NoPlanFound:
                continue
            except InfeasibleError:
                assert whole is None, "a search that is out of time does not say infeasible"
                continue
        checks = verify(plan, given)
        assert all(check.passed for check in checks), (limit, checks[-1])
        # The bound holds for the best plan that a whole search finds.
        assert whole is None or plan.certificate.lower_bound <= whole * (1 + 1e-9), limit


def step_of(given: Profile, machine: Cluster, kind: str) -> float | None:
    """Seconds of the best plan under a real clock; None where none is found."""
    # Own orders are searched on and on while the gap is open.
    seconds = 2.0 if kind == "own orders" else 240.0
    try:
        plan = solve(given, machine, global_batch=8, time_limit=seconds, **KINDS[kind])
    except (InfeasibleError, NoPlanFound):
        return None
    assert plan.certificate.gap is not None
    return plan.certificate.lower_bound * (1 + plan.certificate.gap)
