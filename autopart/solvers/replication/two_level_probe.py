"""Whether stages of a network with two levels can keep within a bottleneck, without all pairs.

Symbols   as in solvers/replication/two_levels.py;  T  a bottleneck;  M  nodes behind a state;  q  nodes of a stage

S_M, the states behind which everything runs on M nodes, grows from S_0 = {N - 1}. On one node (q = 1)
an outer stage keeps T if each of its inner stages does, so all outer stages into S_{M-1} come out of
one search: the fewest machines from any state to any of S_{M-1}, at most n. On more nodes the outer
load joins W with the parameters of the whole stage; there W is replaced by a share of the compute,
W(i, j) >= work(i, j) / n, which makes a busy time that adds up over layers. So

    no plan is found   =>  there is none within T, and T is a bound;
    the plan found has q = 1 throughout, or its stages with q > 1 prove to keep T  =>  it is one.

Only a plan that fails leaves the question open; then the matrices W decide. Memory of an outer stage
would tie its two ends together, and is not looked at. O(N² n) time for each node.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from autopart.solvers.replication.downsets import Costs, PairLoads
from autopart.solvers.replication.dual import Flags, Ints, Labels, Stage, settle, stages_into

ANY_ROOM = 1 << 30
"""Machines ahead of a node's pipeline: those of other nodes, not looked at here."""


class OuterStage(NamedTuple):
    """A stage of the outer level, and its pipeline within the node where it has one node."""

    start: int
    end: int
    nodes: int
    inner: tuple[Stage, ...]


class _Choice(NamedTuple):
    """A stage of the outer level from some state, its pipeline not yet spelled out."""

    first: Stage
    """The pipeline's first stage, or the whole outer stage."""
    nodes: int
    rest: Labels | None
    """Of the pipeline's other stages."""

    def spelled_out(self) -> OuterStage:
        if self.rest is None:
            return OuterStage(self.first.start, self.first.end, self.nodes, ())
        inner = (self.first, *self.rest.path(self.first.end))
        return OuterStage(self.first.start, inner[-1].end, 1, inner)


class NodeProbe:
    """Stages of both levels within a bottleneck: call it with seconds."""

    def __init__(self, inner: Costs, outer: Costs, nested: Flags, machines: Sequence[int]) -> None:
        """`inner`: costs within a node. `outer`: those of 1, 2, … nodes, with the least busy time
        there can be. `nested` at [end, start]. `machines` of a node, and nodes."""
        assert inner.memory is None, "memory ties the two ends of a stage together"
        self.machines, self.nodes = machines
        self.later = PairLoads(inner, nested, "later")
        self.first = PairLoads(inner, nested, "first")
        free = np.zeros(inner.num_states)
        alone = [choice._replace(first_send=free) for choice in inner.choices]
        self.alone = PairLoads(Costs(alone, inner.work), nested, "first")
        self.outer = PairLoads(outer, nested)

    def __call__(self, limit: float) -> tuple[OuterStage, ...] | None:
        """Stages that may keep within `limit` seconds; None where there are none."""
        needed = np.full(self.outer.num_states, self.nodes + 1)
        needed[-1] = 0
        chosen: dict[int, _Choice] = {}
        ahead = self.outer.machines_ahead(limit)
        for later in range(self.nodes):
            ends = np.flatnonzero((needed == later) & (ahead + later <= self.nodes))
            if not len(ends) or needed[0] <= later:
                continue
            self._on_one_node(limit, ends, later, needed, chosen)
            self._on_more(limit, ends, later, needed, chosen)
        if needed[0] > self.nodes:
            return None
        stages = [chosen[0].spelled_out()]
        while needed[stages[-1].end]:
            stages.append(chosen[stages[-1].end].spelled_out())
        return tuple(stages)

    def _on_one_node(
        self, limit: float, ends: Ints, later: int, needed: Ints, chosen: dict[int, _Choice]
    ) -> None:
        option = self.outer.costs.choices[0]
        wanted = (needed > later + 1) & (option.receive <= limit)
        wanted[0] = False
        self._pipelines(limit, ends[option.send[ends] <= limit], later, wanted, needed, chosen)
        # The first stage may end where no other can: it may be free to send.
        wanted = np.zeros(len(needed), dtype=bool)
        wanted[0] = needed[0] > later + 1
        first = ends[option.first_send[ends] <= limit]
        self._pipelines(limit, first, later, wanted, needed, chosen)

    def _pipelines(
        self,
        limit: float,
        targets: Ints,
        later: int,
        wanted: Flags,
        needed: Ints,
        chosen: dict[int, _Choice],
    ) -> None:
        """Settle the wanted states with a pipeline on one node up to one of the targets."""
        if not (len(targets) and wanted.any()):
            return
        labels = settle(self.later, limit, self.machines - 1, targets, ANY_ROOM)
        taken = np.array(self.later.machines)
        for behind in range(self.machines):
            ends = np.flatnonzero(labels.needed == behind)
            choices = np.flatnonzero(behind + taken <= self.machines)
            if not len(ends):
                continue
            loads = self.first if behind else self.alone
            room = np.full(len(choices), ANY_ROOM)
            for starts, best, by in stages_into(loads, choices, limit, behind, ends, room):
                new = wanted[starts]
                needed[starts[new]] = later + 1
                wanted[starts[new]] = False
                columns = (starts[new].tolist(), best[new].tolist(), by[new].tolist())
                for stage in map(Stage, *columns):
                    chosen[stage.start] = _Choice(stage, 1, labels)

    def _on_more(
        self, limit: float, ends: Ints, later: int, needed: Ints, chosen: dict[int, _Choice]
    ) -> None:
        taken = np.array(self.outer.machines)
        choices = np.flatnonzero((taken > 1) & (later + taken <= self.nodes))
        if not len(choices):
            return
        room = self.nodes - later - taken[choices]
        for starts, best, by in stages_into(self.outer, choices, limit, later, ends, room):
            total = later + taken[by]
            new = total < needed[starts]
            needed[starts[new]] = total[new]
            columns = (starts[new].tolist(), best[new].tolist(), by[new].tolist())
            for stage in map(Stage, *columns):
                chosen[stage.start] = _Choice(stage, int(taken[stage.choice]), None)
