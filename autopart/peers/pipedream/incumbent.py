"""A problem on a network with one level or two, and the best plan for it so far."""

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from autopart.peers.pipedream.charge_arrays import level_costs
from autopart.peers.pipedream.charged_layers import ChargedLayers
from autopart.peers.pipedream.charges import Network, least_bottleneck
from autopart.peers.pipedream.downset_costs import DownsetCosts
from autopart.peers.pipedream.downset_sums import DownsetSums, grown_sums, mask_sums
from autopart.peers.pipedream.downsets import Downsets, nesting
from autopart.peers.pipedream.pair_seconds import PairSeconds
from autopart.solvers.fewest_ranks import (
    TOLERANCE,
    BestStages,
    DownsetStage,
    bottleneck,
    fewest_ranks,
    tighten,
)

StagesWithin = Callable[[float], tuple[DownsetStage, ...] | None]
"""Stages within a bottleneck, or None."""


class StageEnd(NamedTuple):
    """A stage's end, as a bit mask over all layers ahead of it, and the stage's replicas."""

    ahead: int
    """Bit mask: the layers up to the stage's end."""
    replicas: int


class Best(NamedTuple):
    """The best plan so far: its stage ends, on one level or on the outer one with each node's
    pipeline."""

    value: float
    """Bottleneck in seconds."""
    bound: float
    """Lower bound in seconds."""
    cuts: tuple[StageEnd, ...]
    """Where each stage ends."""
    inner: tuple[tuple[StageEnd, ...], ...] = ()
    """For each outer stage the ends in its pipeline; empty with one level."""

    @property
    def proven(self) -> bool:
        """Whether no plan is better by more than the tolerance."""
        return self.value * (1 - TOLERANCE) <= self.bound


class Task(NamedTuple):
    """A problem: the layers, the network, whether all sends count, and the time."""

    nodes: ChargedLayers
    network: Network
    all_sends: bool
    deadline: float
    """A reading from time.perf_counter()."""

    def in_time(self) -> bool:
        """Whether there is time left."""
        return time.perf_counter() < self.deadline

    def sums(
        self, downsets: Downsets, pieces: Sequence[Sequence[int]] | None = None
    ) -> DownsetSums:
        """Sums for downsets; `pieces` are the layers that each growth step adds, where it adds
        several."""
        if downsets.grown is None:
            return mask_sums(self.nodes, downsets.masks, downsets.tops)
        return grown_sums(self.nodes, downsets.grown, downsets.tops, pieces)

    def costs(
        self, downsets: Downsets, pieces: Sequence[Sequence[int]] | None = None
    ) -> DownsetCosts:
        """Stage costs on the inner level, or on the only one."""
        return level_costs(self.sums(downsets, pieces), self.network, all_sends=self.all_sends)


def spans(start: int, cuts: Sequence[StageEnd]) -> list[tuple[int, StageEnd]]:
    """Each stage as the layers ahead of it, and its end."""
    return list(zip([start, *(cut.ahead for cut in cuts)], cuts, strict=False))


def on_one_machine(task: Task) -> Best:
    """The plan that always exists: nothing is in flight behind a single stage."""
    everything = StageEnd((1 << len(task.nodes.before)) - 1, 1)
    inner = ((everything,),) if len(task.network.machines) > 1 else ()
    low = least_bottleneck(task.nodes, task.network)
    return Best(float(task.nodes.compute.sum()), low, (everything,), inner)


def pair_search(costs: DownsetCosts, downsets: Downsets, machines: int) -> StagesWithin:
    """A search over all pairs of downsets."""
    seconds = PairSeconds(costs, nesting(downsets))
    return lambda limit: fewest_ranks(seconds, limit, machines)


def tightened(
    task: Task, best: Best, search: StagesWithin, costs: DownsetCosts, downsets: Downsets
) -> Best:
    """The better plan: `best`, or the best one over these downsets, with a bound over them."""
    known: BestStages[DownsetStage] | None = BestStages(best.value, best.bound, ())
    # A plan on one machine is far from the optimum as a rule: search upwards from the bound
    # instead.
    if len(best.cuts) == 1:
        known = None
    found = tighten(
        search,
        lambda stages: bottleneck(costs.seconds_of, stages),
        known,
        best.bound,
        best.value,
        task.deadline,
    )
    if found is None:
        return best
    if not found.stages:
        return best._replace(bound=found.lower_bound)
    cuts = tuple(StageEnd(downsets.masks[s.end], costs.machines[s.choice]) for s in found.stages)
    return Best(found.bottleneck, found.lower_bound, cuts)
