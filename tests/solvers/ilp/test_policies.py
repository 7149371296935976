"""Partition and policies three times: the integer program, the program over cuts, and trying everything."""

import random
import time
from collections.abc import Sequence

import msgspec
import numpy as np
import pytest

from autopart.activations.best_totals import with_best_policies
from autopart.activations.policies import StagePolicies
from autopart.cost.cuts import all_cuts, partition_of
from autopart.cost.memory_limits import fits_on_ranks
from autopart.errors import InfeasibleError
from autopart.pricing import fits, most_bytes, price
from autopart.records.cluster import HostLink
from autopart.records.layouts import Layout, layouts, shapes
from autopart.records.problem import Demands, Problem
from autopart.solvers import cuts_dp
from autopart.solvers.ilp import program as integer_program
from tests.activations.test_best_policies import forced, least_busy
from tests.activations.test_frontier import drawn
from tests.support.oracle import partitions
from tests.support.problems import random_problem
from tests.support.seeds import seeds

FOREVER = float("inf")
ALLOWED = (
    Demands(recompute="auto"),
    Demands(offload="auto"),
    Demands(recompute="auto", offload="auto"),
)


def tried(asked: Problem, layout: Layout) -> float:
    """The smallest objective over all partitions and policies that fit.

    Stages share only the partition, so each stage's best policies are the best for all.
    """
    least = FOREVER
    for partition in partitions(asked, len(layout.stage_ranks)):
        policies = least_busy(asked, layout, partition)
        if policies is not None:
            least = min(
                least, integer_program.finish_of(forced(asked, policies), layout, partition)
            )
    return least


def over_cuts(asked: Problem, layout: Layout) -> float:
    """The same by the dynamic program over cuts, with frontiers for the policies."""
    cuts = all_cuts(asked.graph)
    before = cuts.totals.forward_time[0] + cuts.totals.backward_time[0]
    costs = []
    for stage, period in enumerate(
        cuts_dp._periods(asked, layout, cuts, integer_program.SEND_SHARE)
    ):
        fit = fits_on_ranks(with_best_policies(asked, layout, cuts, stage), asked, layout, stage)
        costs.append(np.where(fit, before[:, None] + period, np.inf))
    best = cuts_dp.best_path(costs, cuts.nested)
    return FOREVER if best is None else best.largest


def tight(asked: Problem, seed: int) -> tuple[Problem, Layout] | None:
    """The problem with a layout, and memory between the least that fits and the most that is useful.

    None where no layout is possible.
    """
    rng = random.Random(seed)
    try:
        layout = rng.choice(layouts(asked, *rng.choice(shapes(asked))))
    except InfeasibleError:
        return None
    cuts = all_cuts(asked.graph)
    paths = cuts_dp.solve(with_memory(asked, 1 << 40), layout, cuts)
    leanest = cuts_dp.least_memory(asked, layout, cuts)
    if not paths or leanest is None:
        return None
    kept, least = (
        most_bytes(price(with_memory(asked, limit), layout, partition_of(cuts, path)))
        for limit, path in ((1 << 40, paths[0]), (1, leanest.path))
    )
    return with_memory(asked, int(least + rng.uniform(-0.1, 1.0) * (kept - least))), layout


def with_memory(asked: Problem, num_bytes: int) -> Problem:
    machine = msgspec.structs.replace(asked.cluster, memory_bytes=max(1, num_bytes))
    return msgspec.structs.replace(asked, cluster=machine)


def policies_found(
    asked: Problem, layout: Layout, best: float, seed: int
) -> Sequence[StagePolicies]:
    """The policies on the integer program's stages, which must fit and reach the best; none where nothing fits."""
    partition = integer_program.solve(asked, layout, None, time.perf_counter() + 60)
    assert (partition is None) == (best == FOREVER), seed
    if partition is None:
        return ()
    decision = price(asked, layout, partition)
    assert fits(asked, decision), seed
    assert integer_program.finish_of(asked, layout, partition) == pytest.approx(best, rel=1e-5), (
        seed
    )
    return decision.policies


@pytest.mark.parametrize("block", seeds(0, 25, slow=3))
def test_partition_and_policies_in_the_integer_program_equal_trying_everything(block: int) -> None:
    changes = 0
    for seed in range(20 * block, 20 * block + 20):
        asked = drawn(seed, most_layers=5, demands=ALLOWED[seed % len(ALLOWED)])
        found = tight(asked, seed)
        if found is None:
            continue
        asked, layout = found
        best = tried(asked, layout)
        assert over_cuts(asked, layout) == pytest.approx(best, rel=1e-9), seed
        policies = policies_found(asked, layout, best, seed)
        changes += any(not own.keeps_all for own in policies)
    assert changes >= 8


def with_state_on_host(seed: int) -> Problem:
    """A problem whose optimizer state may or must be on the host."""
    rng = random.Random(seed)
    asked = random_problem(rng, branching=True, tight=False)
    machine = msgspec.structs.replace(
        asked.cluster,
        host_link=HostLink(bandwidth=100.0, latency=0.0, overlaps=False),
        host_memory_bytes=rng.choice([None, rng.randrange(1, 2000)]),
    )
    places = Demands(offload_optimizer="always" if seed % 3 == 0 else "auto")
    return msgspec.structs.replace(asked, cluster=machine, demands=places)


@pytest.mark.parametrize("block", seeds(0, 5))
def test_the_integer_program_with_optimizer_state_on_the_host_equals_trying_everything(
    block: int,
) -> None:
    hosted = 0
    for seed in range(50 * block, 50 * block + 50):
        found = tight(with_state_on_host(seed), seed)
        if found is None:
            continue
        asked, layout = found
        best = min(
            (
                integer_program.finish_of(asked, layout, partition)
                for partition in partitions(asked, len(layout.stage_ranks))
                if fits(asked, price(asked, layout, partition))
            ),
            default=FOREVER,
        )
        policies = policies_found(asked, layout, best, seed)
        hosted += any(own.optimizer_on_host for own in policies)
    assert hosted >= 2
