"""Laws of larger spaces: with more choices, and time enough, no plan is worse."""

import itertools
import random
from collections.abc import Mapping
from typing import Any

import msgspec
import pytest

from autopart.errors import InfeasibleError, NoPlanFound
from autopart.records.cluster import Cluster, cluster_of
from autopart.records.profile import Profile, load_profile
from autopart.search.planner import solve
from tests.activations.test_frontier import some_host, with_recompute_costs
from tests.support.long_tests import long_tests
from tests.support.places import ROOT
from tests.support.problems import profile, random_problem
from tests.support.seeds import seeds

LARGER: Mapping[str, tuple[Mapping[str, Any], ...]] = {
    "replicas": ({}, {"replicas_per_stage": True}),
    "policies": ({}, {"recompute": "auto"}, {"recompute": "auto", "offload": "auto"}),
    "sizes": (
        {"microbatch_sizes": (2,)},
        {"microbatch_sizes": (1, 2)},
        {"microbatch_sizes": (1, 2, 4)},
    ),
    "named schedules": ({}, {"schedule": "gpipe,1f1b,zb-h1"}),
    "own orders": ({}, {"schedule": "auto"}, {"schedule": "auto", "recompute": "auto"}),
    "own orders and sizes": (
        {"schedule": "auto", "microbatch_sizes": (2,)},
        {"schedule": "auto", "microbatch_sizes": (1, 2)},
    ),
}
"""Rows of options; each allows more than the one before it."""

ENOUGH = 240.0
"""Seconds; the searches here end by themselves long before."""


def step(given: Profile, machine: Cluster, options: Mapping[str, Any]) -> float:
    """The step of the best plan in seconds; infinite where there is none."""
    asked: dict[str, Any] = {"global_batch": 8, "time_limit": ENOUGH, **options}
    try:
        return solve(given, machine, **asked).prediction.step_time
    except (InfeasibleError, NoPlanFound):
        return float("inf")


def small_case(seed: int) -> tuple[Profile, Cluster]:
    """A random profile with microbatches of one sample, on up to four GPUs."""
    rng = random.Random(seed)
    asked = random_problem(rng, branching=seed % 3 == 0, tight=seed % 2 == 0)
    graph = with_recompute_costs(rng, asked.graph, alike=False)
    return profile(graph), msgspec.structs.replace(asked.cluster, host_link=some_host(rng, graph))


OWN = ("own orders", "own orders and sizes")
"""Kinds that take seconds of search for each problem."""


@pytest.mark.parametrize("kind", [kind for kind in LARGER if kind not in OWN])
@pytest.mark.parametrize("seed", seeds(2, 25))
def test_more_choices_never_make_a_small_plan_worse(seed: int, kind: str) -> None:
    check_small(seed, kind)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [OWN[0], *long_tests(*OWN[1:])])
@pytest.mark.parametrize("seed", seeds(0, 6, slow=1))
def test_more_own_orders_never_make_a_small_plan_worse(seed: int, kind: str) -> None:
    check_small(seed, kind)


def check_small(seed: int, kind: str) -> None:
    """Each larger space has a plan that is no worse."""
    given, machine = small_case(seed)
    steps = [step(given, machine, options) for options in LARGER[kind]]
    for smaller, larger in itertools.pairwise(steps):
        assert larger <= smaller * (1 + 1e-9), (kind, steps)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama-8b", *long_tests("encdec-base", "unet-base")])
@pytest.mark.parametrize("kind", ["replicas", "policies", "sizes", "named schedules"])
def test_more_choices_never_make_a_model_of_the_zoo_worse(name: str, kind: str) -> None:
    given = load_profile(ROOT / "profiles" / f"{name}-h100-sxm-mb2.json")
    machine = cluster_of("h100-sxm", 8, nodes=2)
    base = {"global_batch": 64}
    steps = [step(given, machine, base | dict(options)) for options in LARGER[kind]]
    for smaller, larger in itertools.pairwise(steps):
        assert larger <= smaller * (1 + 1e-9), (kind, steps)
