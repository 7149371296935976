"""The integer program where memory is that of a rank along its order, against trying everything."""

import itertools
import random
import time
from collections.abc import Iterator

import msgspec
import pytest

from autopart.activations.policies import StagePolicies, has_policies
from autopart.errors import InfeasibleError
from autopart.pricing import Decision, fits, most_bytes, price
from autopart.records.cluster import host_share
from autopart.records.layer_graph import LayerGraph, SplitBackward
from autopart.records.layouts import Layout, Partition, layouts, shapes
from autopart.records.problem import Demands, Problem
from autopart.solvers.ilp import program as integer_program
from tests.activations.test_frontier import every_choice_on, some_host, with_recompute_costs
from tests.support.oracle import partitions
from tests.support.problems import random_problem
from tests.support.seeds import seeds

FOREVER = float("inf")
KEPT = Demands()
ALLOWED = (
    Demands(recompute="auto"),
    Demands(offload="auto"),
    Demands(recompute="auto", offload="auto"),
    KEPT,
)
SCHEDULES = (
    "interleaved-1f1b", "zbv", "zb-h1", "interleaved-1f1b", "zb-h2", "interleaved-zb", "zbv", "v-half",
    "looped-bfs", "dualpipev", "eager-1f1b", "chimera", "gems", "bpipe", "hanayo", "paired-1f1b",
)  # fmt: skip


def with_split_backwards(rng: random.Random, graph: LayerGraph) -> LayerGraph:
    """The graph with bytes for I and W; a layer may keep more from I to W than its stash."""
    layers = tuple(
        msgspec.structs.replace(
            la,
            split_backward=SplitBackward(
                waiting_bytes=rng.randrange(la.stash_bytes + 8),
                waiting_value_bytes=rng.randrange(20),
                input_grad_workspace_bytes=rng.randrange(30),
                weight_grad_workspace_bytes=rng.randrange(30),
            ),
        )
        for la in graph.layers
    )
    return msgspec.structs.replace(graph, layers=layers)


def asked_under(seed: int, schedule: str, demands: Demands) -> tuple[Problem, Layout] | None:
    """A problem with one layout of a schedule, and memory between the least that fits and the most that is useful.

    None where the drawn problem has no such layout.
    """
    rng = random.Random(f"{schedule} {seed}")
    while True:
        asked = random_problem(rng, branching=seed % 3 > 0, tight=False)
        gpus = asked.cluster.num_nodes * asked.cluster.gpus_per_node
        if len(asked.graph.layers) == 4 and gpus > 1:
            break
    graph = with_recompute_costs(rng, asked.graph, alike=seed % 5 == 0 and not asked.graph.tied)
    if rng.random() < 0.6:
        graph = with_split_backwards(rng, graph)
    machine = msgspec.structs.replace(
        asked.cluster,
        host_link=some_host(rng, graph),
        host_memory_bytes=None if seed % 2 else rng.randrange(2000),
    )
    demands = msgspec.structs.replace(demands, schedules=(schedule,))
    asked = msgspec.structs.replace(asked, graph=graph, cluster=machine, demands=demands)
    try:
        layout = rng.choice(layouts(asked, *rng.choice(shapes(asked))))
    except InfeasibleError:
        return None
    own = list(partitions(asked, len(layout.stage_ranks)))
    if not own:
        return None
    kept, least = (
        min(most_bytes(price(with_memory(asked, limit), layout, one)) for one in own)
        for limit in (1 << 40, 1)
    )
    return with_memory(asked, int(least + rng.uniform(-0.1, 1.0) * (kept - least))), layout


def with_memory(asked: Problem, num_bytes: int) -> Problem:
    machine = msgspec.structs.replace(asked.cluster, memory_bytes=max(1, num_bytes))
    return msgspec.structs.replace(asked, cluster=machine)


def tried(asked: Problem, layout: Layout) -> float:
    """The smallest objective over all partitions and policies that fit: (9), computed from predictions."""
    return min(
        (
            finish
            for one in partitions(asked, len(layout.stage_ranks))
            for finish in _finishes(asked, layout, one)
        ),
        default=FOREVER,
    )


def _finishes(asked: Problem, layout: Layout, partition: Partition) -> Iterator[float]:
    """The objective of a partition under its best policies, where it fits.

    Ranks share only the partition: each has the policies with the fewest seconds.
    """
    kept = (StagePolicies(),) * len(partition)
    plain = price(asked, layout, partition, given=kept).prediction.stages
    ahead = [0.0, *itertools.accumulate(own.forward_time + own.backward_time for own in plain)]
    finish = 0.0
    for rank in dict.fromkeys(min(ranks) for ranks in layout.stage_ranks):
        stages = [s for s, ranks in enumerate(layout.stage_ranks) if min(ranks) == rank]
        least = FOREVER
        for chosen in itertools.product(*(_choices(asked, layout, partition[s]) for s in stages)):
            given = list(kept)
            for stage, own in zip(stages, chosen, strict=True):
                given[stage] = own
            decision = price(asked, layout, partition, given=tuple(given))
            if _fits_on(asked, layout, decision, stages):
                least = min(least, _periods(asked, decision, stages))
        if least == FOREVER:
            return
        first = stages[0]
        own_microbatches = layout.num_microbatches / len(layout.stage_ranks[first])
        finish = max(finish, ahead[first] + own_microbatches * least)
    yield finish


def _choices(asked: Problem, layout: Layout, members: tuple[int, ...]) -> Iterator[StagePolicies]:
    if has_policies(layout.schedule):
        yield from every_choice_on(asked.graph, members, asked.demands)
    else:
        yield StagePolicies()


def _fits_on(asked: Problem, layout: Layout, decision: Decision, stages: list[int]) -> bool:
    """Whether the ranks with some stages keep their limits; other ranks may not."""
    predicted, share = decision.prediction, host_share(asked.cluster)
    assert predicted.rank_peak_bytes
    hosted = list(predicted.rank_host_bytes or [0] * len(predicted.rank_peak_bytes))
    if not predicted.rank_host_bytes:
        for own, ranks in zip(predicted.stages, layout.stage_ranks, strict=True):
            for rank in ranks:
                hosted[rank] = own.memory.host
    return all(
        predicted.rank_peak_bytes[rank] <= asked.cluster.memory_bytes
        and (share is None or hosted[rank] <= share)
        for rank in layout.stage_ranks[stages[0]]
    )


def _periods(asked: Problem, decision: Decision, stages: list[int]) -> float:
    """Seconds of a rank for one microbatch on each of its stages, with half of its sends."""
    every = decision.prediction.stages
    total = 0.0
    for stage in stages:
        total += every[stage].busy_time
        if asked.cluster.sends_overlap:
            sends = every[stage].send_time + every[stage].send_back_time
            if stage:
                sends += every[stage - 1].send_time
            if stage < len(every) - 1:
                sends += every[stage + 1].send_back_time
            total += integer_program.SEND_SHARE * sends
    return total


@pytest.mark.parametrize("block", seeds(1, 30, slow=3))
def test_the_integer_program_under_each_schedule_equals_trying_everything(block: int) -> None:
    """All named single-direction schedules with policies, and those in both directions or with lent stash without."""
    changes = asked_for = 0
    each = 6 if block == 0 else 30
    for seed in range(each * block, each * (block + 1)):
        schedule = SCHEDULES[seed % len(SCHEDULES)]
        found = asked_under(
            seed, schedule, ALLOWED[seed % len(ALLOWED)] if has_policies(schedule) else KEPT
        )
        if found is None:
            continue
        asked, layout = found
        best = tried(asked, layout)
        partition = integer_program.solve(asked, layout, None, time.perf_counter() + 60)
        assert (partition is None) == (best == FOREVER), (schedule, seed)
        if partition is None:
            continue
        asked_for += 1
        decision = price(asked, layout, partition)
        assert fits(asked, decision), (schedule, seed)
        finish = integer_program.finish_of(asked, layout, partition)
        assert finish == pytest.approx(best, rel=1e-5), (schedule, seed)
        changes += any(not own.keeps_all for own in decision.policies)
    assert asked_for >= each // 6
    assert changes >= each // 15
