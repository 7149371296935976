"""Partition and ways of layers three times: the integer program, the program over cuts, and trying everything."""

import random
import time
from collections.abc import Sequence

import msgspec
import numpy as np
import pytest

from autopart.cluster import HostLink
from autopart.cost import fits_on_ranks
from autopart.cuts import all_cuts, partition_of
from autopart.errors import InfeasibleError
from autopart.layouts import Layout, layouts, shapes
from autopart.pricing import fits, most_bytes, price
from autopart.problem import Demands, Problem
from autopart.solvers import chain, ilp
from autopart.treated import treated
from autopart.ways import StageWays
from tests.oracle import partitions
from tests.problems import random_problem
from tests.seeds import seeds
from tests.test_frontier import drawn, forced, least_busy

FOREVER = float("inf")
ALLOWED = (
    Demands(recompute="auto"),
    Demands(offload="auto"),
    Demands(recompute="auto", offload="auto"),
)


def tried(asked: Problem, layout: Layout) -> float:
    """The smallest objective of all partitions and of all ways of their layers that fit. Stages share nothing
    but the partition, so that the best ways of each are the best of all."""
    least = FOREVER
    for partition in partitions(asked, len(layout.stage_ranks)):
        ways = least_busy(asked, layout, partition)
        if ways is not None:
            least = min(least, ilp.finish_of(forced(asked, ways), layout, partition))
    return least


def over_cuts(asked: Problem, layout: Layout) -> float:
    """The same by the dynamic program over cuts, with frontiers for the ways."""
    cuts = all_cuts(asked.graph)
    before = cuts.loads.forward_time[0] + cuts.loads.backward_time[0]
    costs = []
    for stage, period in enumerate(chain._periods(asked, layout, cuts, ilp.SEND_SHARE)):
        fit = fits_on_ranks(treated(asked, layout, cuts, stage), asked, layout, stage)
        costs.append(np.where(fit, before[:, None] + period, np.inf))
    best = chain.best_path(costs, cuts.nested)
    return FOREVER if best is None else best.largest


def tight(asked: Problem, seed: int) -> tuple[Problem, Layout] | None:
    """The problem with a layout, in memory between the least that does there and what keeping all takes; None
    where no layout is possible."""
    rng = random.Random(seed)
    try:
        layout = rng.choice(layouts(asked, *rng.choice(shapes(asked))))
    except InfeasibleError:
        return None
    cuts = all_cuts(asked.graph)
    paths = chain.solve(with_memory(asked, 1 << 40), layout, cuts)
    leanest = chain.least_memory(asked, layout, cuts)
    if not paths or leanest is None:
        return None
    kept, least = (
        most_bytes(price(with_memory(asked, limit), layout, partition_of(cuts, path)))
        for limit, path in ((1 << 40, paths[0]), (1, leanest))
    )
    return with_memory(asked, int(least + rng.uniform(-0.1, 1.0) * (kept - least))), layout


def with_memory(asked: Problem, num_bytes: int) -> Problem:
    machine = msgspec.structs.replace(asked.cluster, memory_bytes=max(1, num_bytes))
    return msgspec.structs.replace(asked, cluster=machine)


def ways_found(asked: Problem, layout: Layout, best: float, seed: int) -> Sequence[StageWays]:
    """Of the integer program's stages, which must fit and be as fast as the best; none where nothing fits."""
    partition = ilp.solve(asked, layout, None, time.perf_counter() + 60)
    assert (partition is None) == (best == FOREVER), seed
    if partition is None:
        return ()
    decision = price(asked, layout, partition)
    assert fits(asked, decision), seed
    assert ilp.finish_of(asked, layout, partition) == pytest.approx(best, rel=1e-5), seed
    return decision.ways


@pytest.mark.parametrize("block", seeds(2, 25))
def test_partition_and_ways_of_the_integer_program_equal_trying_everything(block: int) -> None:
    treats = 0
    for seed in range(20 * block, 20 * block + 20):
        asked = drawn(seed, most_layers=5, demands=ALLOWED[seed % len(ALLOWED)])
        found = tight(asked, seed)
        if found is None:
            continue
        asked, layout = found
        best = tried(asked, layout)
        assert over_cuts(asked, layout) == pytest.approx(best, rel=1e-9), seed
        ways = ways_found(asked, layout, best, seed)
        treats += any(own.recompute or own.selective or own.offload for own in ways)
    assert treats >= 8


def with_state_on_host(seed: int) -> Problem:
    """A problem whose optimizer state may lie on the host, or must."""
    rng = random.Random(seed)
    asked = random_problem(rng, branching=True, tight=False)
    machine = msgspec.structs.replace(
        asked.cluster,
        host_link=HostLink(bandwidth=100.0, latency=0.0, overlaps=False),
        host_memory_bytes=rng.choice([None, rng.randrange(1, 2000)]),
    )
    places = Demands(offload_optimizer="always" if seed % 3 == 0 else "auto")
    return msgspec.structs.replace(asked, cluster=machine, demands=places)


@pytest.mark.parametrize("block", seeds(1, 5))
def test_optimizer_state_lies_on_the_host_in_the_integer_program_too(block: int) -> None:
    hosted = 0
    for seed in range(50 * block, 50 * block + 50):
        found = tight(with_state_on_host(seed), seed)
        if found is None:
            continue
        asked, layout = found
        best = min(
            (
                ilp.finish_of(asked, layout, partition)
                for partition in partitions(asked, len(layout.stage_ranks))
                if fits(asked, price(asked, layout, partition))
            ),
            default=FOREVER,
        )
        ways = ways_found(asked, layout, best, seed)
        hosted += any(own.optimizer_on_host for own in ways)
    assert hosted >= 2
