"""Memory limits in an integer program: one stage alone, or all stages of a rank along its order.

autopart/solvers/ilp/program.py has the symbols, and constraints (8), (12), (20) to (22) and (29) to (32).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import pulp

from autopart.activations.moments import moments_of
from autopart.activations.policies import optimizer_places
from autopart.cost.in_flight import ranks_in_flight
from autopart.cost.lending import borrowed_bytes
from autopart.cost.made_gradients import rows_of
from autopart.cost.memory import (
    Memory,
    largest_part,
    memory_with_state,
    microbatch_bytes,
    total,
)
from autopart.cost.memory_limits import limits_of
from autopart.cost.repeated_ties import (
    earlier_on_ranks,
    later_on_ranks,
    shares_values,
    without_handed_over,
    without_state,
)
from autopart.cost.stage_totals import StageTotals
from autopart.cost.syncs import update_share
from autopart.records.cluster import host_share, smallest_memory
from autopart.records.layouts import Layout, pipelines_together
from autopart.records.peak_bytes import by_kind, workspace_of
from autopart.records.prediction import LASTING
from autopart.records.problem import Problem
from autopart.schedules.classic_rows import classic_rows
from autopart.schedules.encoding import OPS, B
from autopart.schedules.in_flight import InFlight, row_at
from autopart.solvers.ilp.placement import Placement, sum_of
from autopart.stopping.time_limit import check_time
from autopart.units import Quantity


class _StageSizes(NamedTuple):
    """A stage's bytes that change within a step, as variables (29)."""

    kinds: Sequence[Quantity]
    """For each of the counted kinds the bytes of one microbatch."""
    works: Sequence[Quantity]
    """For each kind of action its transient bytes; last for a first backward."""


class MemoryConstraints:
    """The limits of each rank in one layout."""

    def __init__(
        self, program: Any, problem: Problem, layout: Layout, placement: Placement
    ) -> None:
        """`program` is a PuLP problem, and `placement` has its x[l, s]."""
        self.program, self.problem, self.layout = program, problem, layout
        self.placement = placement

    def bound_stage(self, stage: int, totals: StageTotals[Quantity]) -> None:
        """Limit a stage under GPipe or 1F1B, alone on its ranks."""
        limits = limits_of(self.problem, self.layout, stage)
        state = self._state_of(stage, totals)
        replicas = len(self.layout.stage_ranks[stage])
        rows = rows_of(self.problem, replicas, limits.in_flight)
        uses = [
            self._memory(stage, totals, state, row_at(rows, row), limits.in_flight)
            for row in range(len(rows.counts))
        ]
        for row, use in enumerate(uses):
            needed: Any = total(use) * (1 / limits.device_bytes)
            self.program += needed <= 1.0, f"memory_{row}_{stage}"  # (8)
        share = limits.host_bytes
        if share is not None:
            hosted: Any = uses[0].host * (1 / max(share, 1))
            self.program += hosted <= min(share, 1), f"on_host_{stage}"  # (20)

    def bound_ranks(self, all_totals: Sequence[StageTotals[Quantity]]) -> None:
        """Limit each rank with all its stages, at each place of its order where it may keep the most."""
        empty = row_at(classic_rows(0), 0)
        ranks_of = self.layout.stage_ranks
        all_totals = [
            without_handed_over(all_totals[s - 1], totals)
            if shares_values(self.problem, ranks_of, s)
            else totals
            for s, totals in enumerate(all_totals)
        ]
        all_totals = [self._without_repeats(s, totals) for s, totals in enumerate(all_totals)]
        uses = [
            self._memory(stage, totals, self._state_of(stage, totals), empty, 0)
            for stage, totals in enumerate(all_totals)
        ]
        sizes = [self._sizes_of(stage, totals) for stage, totals in enumerate(all_totals)]
        lent = borrowed_bytes(self.layout, [own.stash_bytes for own in all_totals])
        cluster, together = self.problem.cluster, pipelines_together(self.layout.schedule)
        for rank, in_flight in ranks_in_flight(self.layout).items():
            check_time()
            own = in_flight.stages
            ranks = self.layout.stage_ranks[own[0]]
            limit = smallest_memory(cluster, ranks[ranks.index(rank) :: together])
            lasting = sum_of(getattr(uses[s], kind) for s in own for kind in LASTING)
            beside = lasting + sum_of(lent[s] for s in own) + cluster.reserve_bytes
            self._bound_places(rank, in_flight, beside, [sizes[s] for s in own], max(limit, 1))
            self._bound_host(rank, in_flight, uses, all_totals)

    def _without_repeats(self, stage: int, totals: StageTotals[Quantity]) -> StageTotals[Quantity]:
        """A stage's totals without state of tied parameters that an earlier stage on its ranks has.

        Gradients that a later stage has are left out too.
        """
        ranks = self.layout.stage_ranks
        earlier, later = earlier_on_ranks(ranks, stage), later_on_ranks(ranks, stage)
        if not (earlier or later) or not self.problem.graph.tied:
            return totals
        again = self._repeated("repeated", stage, earlier)
        return without_state(self.problem, totals, again, self._repeated("made", stage, later))

    def _repeated(self, name: str, stage: int, others: Sequence[int]) -> list[Any]:
        """For each tied parameter at most 1 where a stage and one of the others have it, else 0."""
        found: list[Any] = []
        for number, tied in enumerate(self.problem.graph.tied):
            again: Any = self.program.add_variable(f"{name}_{number}_{stage}", 0, 1)
            for stages in ([stage], others):
                places = (self.placement.position[layer] for layer in tied.layers)
                self.program += again <= sum_of(
                    self.placement.on(at, s) for at in places for s in stages
                )  # (31)
            found.append(again)
        return found

    def _bound_places(
        self,
        rank: int,
        in_flight: InFlight,
        beside: Quantity,
        sizes: Sequence[_StageSizes],
        limit: int,
    ) -> None:
        """Limit a rank at each place, with `beside` bytes all the time."""
        fixed: Any = self.program.add_variable(f"lasting_{rank}")
        self.program += fixed >= beside * (1 / limit)  # (30)
        columns = zip(*(each.tolist() for each in in_flight[1:]), strict=True)
        for place, (column, op, pair, counts) in enumerate(columns):
            moving = [
                count * (1 / limit) * own.kinds[kind]
                for kind, row in enumerate(counts)
                for count, own in zip(row, sizes, strict=True)
                if count
            ]
            work: Any = sizes[column].works[op] * (1 / limit)
            if pair >= 0:
                work = work + sizes[pair].works[B] * (1 / limit)
            needed: Any = fixed + sum_of(moving) + work
            self.program += needed <= 1.0, f"memory_{place}_of_{rank}"  # (30)

    def _bound_host(
        self,
        rank: int,
        in_flight: InFlight,
        uses: Sequence[Memory[Quantity]],
        all_totals: Sequence[StageTotals[Quantity]],
    ) -> None:
        share = host_share(self.problem.cluster)
        if share is None:
            return
        own = in_flight.stages
        state = sum_of(uses[s].host for s in own)
        for place, counts in enumerate(moments_of(in_flight).fullest.tolist()):
            stash = [count * all_totals[s].host_bytes for s, count in zip(own, counts, strict=True)]
            hosted: Any = (state + sum_of(stash)) * (1 / max(share, 1))
            self.program += hosted <= min(share, 1), f"on_host_{place}_of_{rank}"  # (20)

    def _sizes_of(self, stage: int, totals: StageTotals[Quantity]) -> _StageSizes:
        moving = microbatch_bytes(totals, self.problem.training)
        kinds = [self._as_variable(f"{at}_{stage}", own) for at, own in enumerate(by_kind(moving))]
        works = [workspace_of(moving, op) for op in range(len(OPS) + 1)]
        return _StageSizes(kinds, works)

    def _as_variable(self, name: str, own: Quantity) -> Quantity:
        """A variable that is at least an expression, so that the places of an order stay short (29)."""
        scale = self.problem.cluster.memory_bytes or 1
        variable: Any = self.program.add_variable(f"size_{name}", 0)
        self.program += variable >= own * (1 / scale)  # (29)
        return scale * variable

    def _memory(
        self,
        stage: int,
        totals: StageTotals[Quantity],
        state: tuple[Quantity, Quantity],
        at: InFlight,
        in_flight: int,
    ) -> Memory[Quantity]:
        on_device, on_host = state
        replicas = len(self.layout.stage_ranks[stage])
        return memory_with_state(totals, self.problem, replicas, in_flight, on_device, on_host, at)

    def _state_of(self, stage: int, totals: StageTotals[Quantity]) -> tuple[Quantity, Quantity]:
        """Trained elements whose optimizer state is on the device, and on the host."""
        sharing = update_share(self.problem.training, len(self.layout.stage_ranks[stage]))
        stepped = self._largest_part(totals.num_trainable, sharing)
        away, lent = self._away(stage, stepped, sharing)
        return stepped - away, lent

    def _away(self, stage: int, stepped: Quantity, sharing: int) -> tuple[Quantity, Quantity]:
        """Trained elements whose optimizer state is off the device, and on the host."""
        layers = self.problem.graph.layers
        places = optimizer_places(self.problem.demands)
        sizes = [largest_part(la.num_trainable, sharing) for la in layers]
        if True not in places or not sum(sizes):
            return 0, 0
        most = sum(la.num_trainable for la in layers)
        variable = self.program.add_variable
        host: Any = variable(f"host_{stage}", int(False not in places), 1, cat=pulp.LpInteger)
        away, lent, widest = (
            most * variable(f"{name}_{stage}", 0, 1) for name in ("away", "lent", "widest")
        )
        for layer, size in enumerate(sizes):
            self.program += widest >= size * self.placement.on(layer, stage)  # (21)
        self.program += away <= most * host  # (21)
        # Without tied parameters of earlier stages, fewer elements may be left than the widest layer has.
        few: Any = variable(f"few_{stage}", 0, 1, cat=pulp.LpInteger)
        self.program += away <= stepped - widest + most * few  # (32)
        self.program += away <= most * (1 - few)  # (32)
        self.program += lent >= stepped - most * (1 - host)  # (22)
        return away, lent

    def _largest_part(self, count: Quantity, parts: int) -> Quantity:
        """The largest among `parts` even shares of a whole number."""
        if parts == 1 or isinstance(count, int):
            return largest_part(count, parts)
        name = f"part_{len(self.program.variables())}"
        variable: Any = self.program.add_variable(name, 0, cat=pulp.LpInteger)
        self.program += parts * variable >= count  # (12)
        return variable
