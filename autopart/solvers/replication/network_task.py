"""A problem on a network of one level or two, and the best plan for it so far."""

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from autopart.loads.pipedream import Network, Nodes, Sums, downset_sums, floor, state_sums
from autopart.solvers.replication.downsets import Costs, PairLoads, States, nesting
from autopart.solvers.replication.dual import (
    TOLERANCE,
    Found,
    Stage,
    bottleneck,
    fewest_machines,
    tighten,
)
from autopart.solvers.replication.pipedream_costs import level_costs

Probe = Callable[[float], tuple[Stage, ...] | None]
"""Stages that keep within a bottleneck, or None."""


class Cut(NamedTuple):
    """Where a stage ends, by the bits of all layers ahead, and its replicas."""

    ahead: int
    replicas: int


class Best(NamedTuple):
    """The best plan so far, of one level or of the outer one with the pipelines of its nodes."""

    value: float
    bound: float
    cuts: tuple[Cut, ...]
    inner: tuple[tuple[Cut, ...], ...] = ()

    @property
    def proven(self) -> bool:
        """Whether no plan is better by more than the tolerance."""
        return self.value * (1 - TOLERANCE) <= self.bound


class Task(NamedTuple):
    """What is to be solved."""

    nodes: Nodes
    network: Network
    all_sends: bool
    deadline: float
    """A reading of time.perf_counter()."""

    def in_time(self) -> bool:
        """Whether there is time left."""
        return time.perf_counter() < self.deadline

    def sums(self, states: States, pieces: Sequence[Sequence[int]] | None = None) -> Sums:
        """The sums of states, given the pieces that they grow by if these are not single layers."""
        if states.grown is None:
            return downset_sums(self.nodes, states.masks, states.tops)
        return state_sums(self.nodes, states.grown, states.tops, pieces)

    def costs(self, states: States, pieces: Sequence[Sequence[int]] | None = None) -> Costs:
        """What stages of the inner level, or of the only one, cost."""
        return level_costs(self.sums(states, pieces), self.network, all_sends=self.all_sends)


def spans(start: int, cuts: Sequence[Cut]) -> list[tuple[int, Cut]]:
    """Each stage as what is ahead of it, and where it ends."""
    return list(zip([start, *(cut.ahead for cut in cuts)], cuts, strict=False))


def on_one_machine(task: Task) -> Best:
    """The plan that always exists, since no microbatch is in flight behind it."""
    everything = Cut((1 << len(task.nodes.before)) - 1, 1)
    inner = ((everything,),) if len(task.network.machines) > 1 else ()
    low = floor(task.nodes, task.network)
    return Best(float(task.nodes.compute.sum()), low, (everything,), inner)


def pair_probe(costs: Costs, states: States, machines: int) -> Probe:
    """The search over all pairs of states."""
    loads = PairLoads(costs, nesting(states))
    return lambda limit: fewest_machines(loads, limit, machines)


def tightened(task: Task, best: Best, probe: Probe, costs: Costs, states: States) -> Best:
    """The better of `best` and the best plan over states, with a bound over these."""
    known: Found[Stage] | None = Found(best.value, best.bound, ())
    if len(best.cuts) == 1:
        known = None  # far away, as a rule: look from below
    found = tighten(
        probe,
        lambda stages: bottleneck(costs, stages),
        known,
        best.bound,
        best.value,
        task.deadline,
    )
    if found is None:
        return best
    if not found.stages:
        return best._replace(bound=found.lower_bound)
    cuts = tuple(Cut(states.masks[s.end], costs.machines[s.choice]) for s in found.stages)
    return Best(found.bottleneck, found.lower_bound, cuts)
