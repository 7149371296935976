"""The exhaustive optimizer: every setting, every place, every partition, each priced."""

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import msgspec

from autopart.records.cluster import Link
from autopart.records.problem import CUSTOM, Problem
from autopart.schedules.catalogue import KINDS
from autopart.schedules.pipeline import Pipeline
from tests.support.witness.draws import MIRRORED, with_memory
from tests.support.witness.graphs import keeps_pins, members_of, partitions
from tests.support.witness.placements import (
    Gpus,
    Place,
    StageSlots,
    gpus_of,
    places,
    places_in_order,
)
from tests.support.witness.pricing import Price, Pricer, Setting

MOST_STAGES_PER_RANK = 4
"""The largest number where a schedule takes any stages per rank, as docs/solving.md says."""

Placing = Callable[[Gpus, StageSlots], Mapping[Place, StageSlots]]
"""The places that are tried for given slots, each with its ranks."""


class Found(NamedTuple):
    """The best plan in words that a reader can check."""

    value: float
    """Seconds that the problem minimises."""
    setting: Setting
    stage_ranks: StageSlots
    layers: tuple[tuple[str, ...], ...]
    """For each stage its layers by name."""
    price: Price

    @property
    def words(self) -> str:
        """The plan in one line."""
        own = "" if self.setting.own_orders is None else f" with orders {self.setting.own_orders}"
        return f"{self.setting.schedule} on {self.stage_ranks} with {self.layers}{own} takes {self.value}"


def settings(problem: Problem) -> Iterator[Setting]:
    """Every named schedule with every number of stages and replicas that the demands allow."""
    demands, count = problem.demands, problem.num_microbatches
    gpus = problem.cluster.num_nodes * problem.cluster.gpus_per_node
    layers = len(problem.graph.layers)
    if demands.replicas_per_stage:
        for counts in replica_counts(min(layers, gpus), gpus, count):
            if demands.num_stages in (None, len(counts)) and demands.stages_per_rank in (None, 1):
                ends = list(itertools.accumulate(counts))
                slots = tuple(
                    tuple(range(end - own, end)) for end, own in zip(ends, counts, strict=True)
                )
                yield from (Setting(name, slots, count) for name in demands.schedules)
        return
    yield from both_ways(problem, gpus)
    for name, ranks, replicas in itertools.product(
        [name for name in demands.schedules if name not in MIRRORED],
        range(1, gpus + 1),
        range(1, count + 1),
    ):
        if ranks * replicas > gpus or count % replicas or name == CUSTOM:
            continue
        if demands.num_replicas not in (None, replicas):
            continue
        for per_rank in stages_on_each_rank(name, ranks, demands.stages_per_rank):
            stages = ranks * per_rank
            pipeline = Pipeline(ranks, per_rank, count // replicas)
            if (
                stages <= layers
                and demands.num_stages in (None, stages)
                and KINDS[name].takes(pipeline)
            ):
                yield Setting(name, grid(KINDS[name].placement(ranks, per_rank), replicas), count)


def both_ways(problem: Problem, gpus: int) -> Iterator[Setting]:
    """Two pipelines over the same ranks: stage s on rank s for even microbatches, else on rank k - 1 - s."""
    demands, count = problem.demands, problem.num_microbatches
    names = [name for name in demands.schedules if name in MIRRORED]
    most = min(gpus, len(problem.graph.layers))
    for name, stages, pairs in itertools.product(names, range(2, most + 1, 2), range(1, gpus + 1)):
        if stages * pairs > gpus or count % (2 * pairs):
            continue
        asked = demands.num_stages, demands.num_replicas, demands.stages_per_rank
        if all(
            want in (None, has) for want, has in zip(asked, (stages, 2 * pairs, 2), strict=True)
        ):
            slots = [
                [pair * stages + at for pair in range(pairs) for at in (s, stages - 1 - s)]
                for s in range(stages)
            ]
            yield Setting(name, tuple(map(tuple, slots)), count)


def replica_counts(most_stages: int, gpus: int, most: int) -> tuple[tuple[int, ...], ...]:
    """Every list of replicas per stage that has room on so many GPUs."""
    return tuple(
        counts
        for stages in range(1, most_stages + 1)
        for counts in itertools.product(range(1, min(most, gpus) + 1), repeat=stages)
        if sum(counts) <= gpus
    )


def stages_on_each_rank(name: str, ranks: int, demanded: int | None) -> Sequence[int]:
    """The stages per rank that a schedule takes; a single rank has one."""
    fixed = KINDS[name].stages_per_rank
    able = range(2, max(MOST_STAGES_PER_RANK, demanded or 0) + 1) if fixed is None else (fixed,)
    return [
        per_rank
        for per_rank in able
        if demanded in (None, per_rank) and (ranks > 1 or per_rank == 1)
    ]


@functools.lru_cache(maxsize=4096)
def grid(placement: tuple[int, ...], replicas: int) -> StageSlots:
    """The slots of each stage, where each rank in a pipeline has so many replicas."""
    return tuple(tuple(range(at * replicas, (at + 1) * replicas)) for at in placement)


def placing_of(problem: Problem) -> Placing:
    """The places that the certificate speaks of.

    All of them; where GPUs differ and stages have replicas of their own, those in the GPUs' order.
    """
    in_order = problem.cluster.gpus and problem.demands.replicas_per_stage
    return places_in_order if in_order else places


def optimum(problem: Problem, placing: Placing | None = None) -> Found | None:
    """The best plan of all; None where no plan fits.

    A partition is skipped only if some rank's own work takes as long as the best value, or if its step does
    where every send and every sync has the better of both links. A step grows with each of its terms.
    """
    pricer, eased = Pricer(problem), Pricer(_with_better_links(problem))
    best: Found | None = None
    for setting, ranks_of, cuts in _candidates(problem, pricer, placing or placing_of(problem)):
        beat = best.value if best else float("inf")
        if len(ranks_of) > 1 and not problem.cluster.gpus and not problem.cluster.network:
            least = eased.price(setting, next(iter(ranks_of)), cuts, beat)
            if least is None or not least.fits or value_of(problem, least) >= beat:
                continue
        for place, stage_ranks in ranks_of.items():
            price = pricer.price(setting, place, cuts, beat)
            if price is None or not price.fits or value_of(problem, price) >= beat:
                continue
            beat = value_of(problem, price)
            best = found_at(problem, setting, stage_ranks, cuts, price)
    return best


def found_at(
    problem: Problem,
    setting: Setting,
    stage_ranks: StageSlots,
    cuts: tuple[int, ...],
    price: Price,
) -> Found:
    """A plan with its price, in words."""
    layers = tuple(
        tuple(problem.graph.layers[at].name for at in members_of(a, b))
        for a, b in itertools.pairwise(cuts)
    )
    return Found(value_of(problem, price), setting, stage_ranks, layers, price)


def low_memory(problem: Problem, placing: Placing | None = None) -> int | None:
    """About the least bytes per GPU with which some plan fits; None where there is no plan at all.

    It is exact where host memory is not limited and all GPUs are alike.
    """
    # Where nothing fits, each stage takes the policies with the fewest bytes.
    pricer = Pricer(with_memory(problem, 0))
    return min(
        (
            max(pricer.peaks(setting, next(iter(ranks_of)), cuts))
            for setting, ranks_of, cuts in _candidates(
                problem, pricer, placing or placing_of(problem)
            )
        ),
        default=None,
    )


def _with_better_links(problem: Problem) -> Problem:
    """The problem where both links have the better figures of both."""
    links = (problem.cluster.intra_node, problem.cluster.inter_node)
    best = Link(
        bandwidth=max(link.bandwidth for link in links),
        latency=min(link.latency for link in links),
        all_reduce_factor=min(link.all_reduce_factor for link in links),
    )
    cluster = msgspec.structs.replace(problem.cluster, intra_node=best, inter_node=best)
    return msgspec.structs.replace(problem, cluster=cluster)


def _candidates(
    problem: Problem, pricer: Pricer, placing: Placing
) -> Iterator[tuple[Setting, Mapping[Place, StageSlots], tuple[int, ...]]]:
    gpus = gpus_of(problem.cluster)
    kept: dict[int, list[tuple[int, ...]]] = {}
    for setting in settings(problem):
        stages = len(setting.slots)
        if stages not in kept:
            kept[stages] = [
                cuts
                for cuts in partitions(pricer.facts, stages)
                if keeps_pins(pricer.facts, problem.demands, cuts)
            ]
        ranks_of = placing(gpus, setting.slots)
        if ranks_of:
            for cuts in kept[stages]:
                yield setting, ranks_of, cuts


def value_of(problem: Problem, price: Price) -> float:
    """The seconds of a plan that the problem minimises."""
    return {"step": price.step, "period": price.period, "bottleneck": price.bottleneck}[
        problem.objective
    ]
