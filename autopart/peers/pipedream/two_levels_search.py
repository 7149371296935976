"""Whether stages on two levels can keep within a bottleneck, without looking at all pairs.

Symbols   W as in two_levels_matrices.py;  T  a bottleneck;  n  machines per node
          M   nodes behind a downset;  q  nodes that run a stage

S_M, the downsets behind which everything runs on M nodes, grows from S_0 = {N - 1}. On one node (q
= 1) an outer stage keeps T if each inner stage does. So all outer stages into S_{M-1} come from one
search: the fewest machines from any downset to any in S_{M-1}, at most n. On more nodes the outer
time joins W with the whole stage's parameters. There a share of the compute replaces W, W(i, j) >=
work(i, j) / n, which makes a busy time that adds up over layers. So

    no plan is found   =>  there is none within T, and T is a bound;
    the plan found has q = 1 throughout, or its stages with q > 1 prove to keep T  =>  it is one.

Only a plan that fails leaves the question open; then the matrices W decide. The memory limit on an
outer stage would tie its two ends together, and is left out. O(N² n) time per node.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from autopart.peers.pipedream.downset_costs import DownsetCosts
from autopart.peers.pipedream.pair_seconds import PairSeconds
from autopart.solvers.fewest_ranks import DownsetStage, Flags, Ints, Labels, settle, stages_into

ANY_ROOM = 1 << 30
"""Machines ahead of a node's pipeline: they belong to other nodes, and are not counted here."""


class OuterStage(NamedTuple):
    """A stage on the outer level, and its pipeline within the node if it has one node."""

    start: int
    """Index of the downset ahead of the stage."""
    end: int
    """Index of the downset after the stage."""
    nodes: int
    """Nodes that run the stage."""
    inner: tuple[DownsetStage, ...]
    """The pipeline within its node; empty on several nodes."""


class _OuterChoice(NamedTuple):
    """A stage on the outer level from some downset, its pipeline kept as labels."""

    first: DownsetStage
    """The pipeline's first stage, or the whole outer stage."""
    nodes: int
    """Nodes that run the stage."""
    rest: Labels | None
    """Labels for the pipeline's other stages."""

    def spelled_out(self) -> OuterStage:
        """The outer stage with its pipeline."""
        if self.rest is None:
            return OuterStage(self.first.start, self.first.end, self.nodes, ())
        inner = (self.first, *self.rest.path(self.first.end))
        return OuterStage(self.first.start, inner[-1].end, 1, inner)


class TwoLevelSearch:
    """Stages on both levels within a bottleneck; call it with seconds."""

    def __init__(
        self, inner: DownsetCosts, outer: DownsetCosts, nested: Flags, machines: Sequence[int]
    ) -> None:
        """`machines` are the machines per node, and the nodes; `nested` holds flags at [end,
        start].

        `inner` has the costs within a node. `outer` has the costs on 1, 2, … nodes, with the least
        possible busy time.
        """
        assert inner.memory is None, "memory ties the two ends of a stage together"
        self.machines, self.nodes = machines
        self.later = PairSeconds(inner, nested, "later")
        self.first = PairSeconds(inner, nested, "first")
        free = np.zeros(inner.num_downsets)
        alone = [choice._replace(first_send=free) for choice in inner.choices]
        self.alone = PairSeconds(DownsetCosts(alone, inner.work), nested, "first")
        self.outer = PairSeconds(outer, nested)

    def __call__(self, limit: float) -> tuple[OuterStage, ...] | None:
        """Stages that may keep within `limit` seconds; None where there are none."""
        needed = np.full(self.outer.num_downsets, self.nodes + 1)
        needed[-1] = 0
        chosen: dict[int, _OuterChoice] = {}
        ahead = self.outer.ranks_ahead(limit)
        # Downsets are settled in ascending order of the nodes behind them.
        for later in range(self.nodes):
            # Step 1: the downsets with exactly `later` nodes behind, and enough nodes left for the
            # layers ahead.
            ends = np.flatnonzero((needed == later) & (ahead + later <= self.nodes))
            if not len(ends) or needed[0] <= later:
                continue
            # Step 2: put a stage ahead of them, on one node or on more.
            self._on_one_node(limit, ends, later, needed, chosen)
            self._on_more(limit, ends, later, needed, chosen)
        if needed[0] > self.nodes:
            return None
        # Step 3: read the plan from the front.
        stages = [chosen[0].spelled_out()]
        while needed[stages[-1].end]:
            stages.append(chosen[stages[-1].end].spelled_out())
        return tuple(stages)

    def _on_one_node(
        self, limit: float, ends: Ints, later: int, needed: Ints, chosen: dict[int, _OuterChoice]
    ) -> None:
        """Settle downsets with a stage on one more node."""
        option = self.outer.costs.choices[0]
        wanted = (needed > later + 1) & (option.receive <= limit)
        wanted[0] = False
        self._pipelines(limit, ends[option.send[ends] <= limit], later, wanted, needed, chosen)
        # The first stage may end at more downsets: it may be free to send.
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
        chosen: dict[int, _OuterChoice],
    ) -> None:
        """Settle the wanted downsets with a pipeline on one node up to one of the targets."""
        if not (len(targets) and wanted.any()):
            return
        # Step 1: the fewest machines from each downset to a target, for the pipeline's later
        # stages.
        labels = settle(self.later, limit, self.machines - 1, targets, ANY_ROOM)
        taken = np.array(self.later.ranks)
        # Step 2: put the pipeline's first stage ahead of them.
        for behind in range(self.machines):
            ends = np.flatnonzero(labels.needed == behind)
            choices = np.flatnonzero(behind + taken <= self.machines)
            if not len(ends):
                continue
            seconds = self.first if behind else self.alone
            room = np.full(len(choices), ANY_ROOM)
            for starts, best, by in stages_into(seconds, choices, limit, behind, ends, room):
                new = wanted[starts]
                needed[starts[new]] = later + 1
                wanted[starts[new]] = False
                columns = (starts[new].tolist(), best[new].tolist(), by[new].tolist())
                for stage in map(DownsetStage, *columns):
                    chosen[stage.start] = _OuterChoice(stage, 1, labels)

    def _on_more(
        self, limit: float, ends: Ints, later: int, needed: Ints, chosen: dict[int, _OuterChoice]
    ) -> None:
        """Settle downsets with a stage on several nodes, its pipeline as good as it could be."""
        taken = np.array(self.outer.ranks)
        choices = np.flatnonzero((taken > 1) & (later + taken <= self.nodes))
        if not len(choices):
            return
        room = self.nodes - later - taken[choices]
        for starts, best, by in stages_into(self.outer, choices, limit, later, ends, room):
            total = later + taken[by]
            new = total < needed[starts]
            needed[starts[new]] = total[new]
            columns = (starts[new].tolist(), best[new].tolist(), by[new].tolist())
            for stage in map(DownsetStage, *columns):
                chosen[stage.start] = _OuterChoice(stage, int(taken[stage.choice]), None)
