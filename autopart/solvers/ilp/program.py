"""Integer program over all cuts in a layer graph with branches.

Symbols   l, u, w   layers        v   a value, made by p(v), read by its consumers
          s         a stage, 0 … k - 1        m   microbatches that a rank runs
          z[l, s]   1 where layer l is on stage s or an earlier one; z[l, -1] = 0, z[l, k-1] = 1
          x[l, s]   z[l, s] - z[l, s-1]: 1 where layer l is on stage s
          c[v, s]   1 where v crosses the cut behind stage s
          T         seconds when the last stage finishes; minimised

     (1) z[l, s] <= z[l, s+1]                      a layer that is placed stays placed
     (2) z[u, s] >= z[w, s]                        for edges u -> w: no edge goes back
     (3) Σ x[l, s] >= 1  over l                    no stage is empty
     (4) c[v, s] >= z[p(v), s] - z[w, s]           for consumers w: v is sent on
     (5) kept[v, s] >= x[p(v), s] + x[w, s] - 1    for layers w whose backward needs v; where p(v) does: x[p(v), s]
         only[v, s] >= c[v, s] + x[p(v), s] - 1 - kept[v, s]                    v is freed once it is sent
     (6) any[g, s] >= x[l, s]                      for each layer l in group g: a tied parameter, a model input
     (7) work[s] >= workspace_l x[l, s] + Σ over j behind l: grad bytes_t again[t, j, s] - inner stash_j x[j, s];
         the same with l's backward transient and (24) in place of workspace_l.
         Where stash returns, (16) takes its place
     (8) memory on stage s <= memory per GPU       the cost model's own formula, linear in the above; once for each
                                                   number of gradients among the messages under way
     (9) T >= Σ over l: (f + b)_l z[l, s-1] + m period[s];     T >= m busy[s] for the bottleneck
    (10) x[l, s] = 1 where l is pinned to s;  x[l, s] = x[u, s] where l and u share a stage;
         Σ x[l, s] <= 1 over layers that must lie apart
    (11) T <= the best chain plan's value, where there is one
    (12) r part[s] >= trained elements on stage s, part[s] whole         ZeRO-1 over r replicas
    (13)-(20) activation policies other than "keep" (autopart/solvers/ilp/policies.py)
    (21) away[s] <= N host[s];  away[s] <= part[s] - widest[s];  widest[s] >= trained elements_l x[l, s] / r
    (22) lent[s] >= part[s] - N (1 - host[s])      host[s] is 1 where the stage's optimizer state lies on the host.
                                                   N: all trained elements. away: off the device. lent: on the host
    (23) again[t, j, s] >= x[j, s] + x[u, s] - 1   for layers u ahead of j that read tied t too: a gradient waits
    (24) waits[l, g, s] >= x[l, s] + x[w, s] - 1 - x[p, s] + (x[u, s] - 1)
                                                   for readers w in a group g whose gradients may wait while l runs;
                                                   p: a maker that may have run before; u: one among several
                                                   layers that must be there (`waiting_gradients`);
                                                   sums of tied gradients likewise (`tied_sums`)
    (25) relays[v, s] >= c[v, s-1] + c[v, s] - 1 - Σ x[w, s]  over readers w

z is whole. The variables c, kept, only, any, work, again, waits, relays and T are continuous. (8) and (9) push each down,
and at whole z the smallest value that (4)-(7) and (13)-(25) allow is the exact one. The cumulative z make
precedence (2) tight in the relaxation.

HiGHS solves the program through PuLP. On a time-out the best solution so far is taken. Derivation: docs/solvers.md.

(1)-(4) and (10) stand in placement.py, (5), (6) and (25) in sums.py, (7), (23) and (24) in transients.py, (13)-(19) in
policies.py, the others here.
"""

from typing import Any

import highspy
import pulp

from autopart.activations.best_policies import best_policies, totals_with_policies
from autopart.activations.changes import apply_linear_changes
from autopart.activations.policies import (
    has_policies,
    leaves_choice,
    optimizer_places,
)
from autopart.activations.stage_layers import stage_layers
from autopart.cost.cuts import stage_totals
from autopart.cost.memory import largest_part, memory_with_state, total
from autopart.cost.memory_limits import limits_of
from autopart.cost.on_ranks import on_ranks
from autopart.cost.stage_times import busy_time, cut_links, links_around, traffic_times
from autopart.cost.stage_totals import StageTotals, plain_totals
from autopart.cost.syncs import update_share
from autopart.records.cluster import slowest_speed
from autopart.records.layouts import Layout, Partition, own_microbatches
from autopart.records.problem import Problem
from autopart.schedules.in_flight import classic_rows, row_at
from autopart.solvers.ilp.placement import Placement, sum_of
from autopart.solvers.ilp.policies import PolicyConstraints
from autopart.solvers.ilp.sums import ExpressionSums
from autopart.solvers.ilp.transients import kept_workspace, stage_gradients
from autopart.stopping.time_limit import check_time, deadline_in, passed, time_left
from autopart.units import Q, Quantity

SEND_SHARE = 0.5
"""Share by which a stage's sends count in its period where they overlap compute.

The cycle through two neighbours carries both directions over their cut once (autopart/solvers/cuts_dp.py).
"""

SECONDS_PER_LAYOUT = 10.0
"""Time limit for one program."""


def solve(
    problem: Problem, layout: Layout, chain_plan: Partition | None, deadline: float
) -> Partition | None:
    """The best partition that the time allows; None where none beats `chain_plan`.

    `deadline` is a time on the clock `time.perf_counter()`, in seconds.
    """
    if passed(deadline):
        return None
    program = _Program(problem, layout)
    if chain_plan is not None:
        program.must_beat(finish_of(problem, layout, chain_plan))
    return program.solve(min(deadline, deadline_in(SECONDS_PER_LAYOUT)))


def finish_of(problem: Problem, layout: Layout, partition: Partition) -> float:
    """The objective (9) in seconds for a given partition, under its best policies."""
    plain = stage_totals(problem.graph, partition)
    all_totals = totals_with_policies(
        problem, layout, partition, best_policies(problem, layout, partition)
    )
    ahead, finish = 0.0, 0.0
    for stage, (kept, totals) in enumerate(zip(plain, all_totals, strict=True)):
        kept, totals = (on_ranks(own, problem, layout, stage) for own in (kept, totals))
        own = own_microbatches(layout, stage)
        finish = max(finish, ahead + own * _period(problem, layout, stage, totals))
        # (9) counts the layers ahead without policies.
        if problem.objective != "bottleneck":
            ahead += kept.forward_time + kept.backward_time
    return finish


def _period(problem: Problem, layout: Layout, stage: int, totals: StageTotals[Q]) -> Q:
    """Seconds per microbatch on a stage: busy time, and a share for sends beside it."""
    before, after = links_around(cut_links(problem.cluster, layout.stage_ranks), stage)
    period = busy_time(totals, problem.cluster, before, after)
    if not problem.cluster.sends_overlap or problem.objective == "bottleneck":
        return period
    sends = sum(traffic_times(totals.sent, after)) + sum(traffic_times(totals.received, before))
    return period + SEND_SHARE * sends


class _Program:
    """The integer program for one layout."""

    def __init__(self, problem: Problem, layout: Layout) -> None:
        self.problem, self.layout = problem, layout
        layers = problem.graph.layers
        self.work = [la.forward_time + la.input_grad_time + la.weight_grad_time for la in layers]
        self.second = sum(self.work) * layout.num_microbatches or 1.0
        """Seconds that count as 1 in the program, so that coefficients are near 1."""
        self.program: Any = pulp.LpProblem("stages", pulp.LpMinimize)
        self.finish: Any = self.program.add_variable("T", 0)
        self.program += self.finish
        self.placement = Placement(self.program, problem.graph, len(layout.stage_ranks))
        self.placement.keep(problem.demands)
        self.placement.cross_cuts()
        for stage in range(len(layout.stage_ranks)):
            check_time()
            self._bound_stage(stage)

    def must_beat(self, finish: float) -> None:
        """Ask for a solution at most as long as `finish` seconds."""
        self.program += self.finish <= finish / self.second, "chain"  # (11)

    def solve(self, deadline: float) -> Partition | None:
        """The best partition that HiGHS finds until a deadline; None where it finds none."""

        def stop(_kind: object, _message: str, _out: object, asked: Any, _data: object) -> None:
            # HiGHS asks between its steps, so that Ctrl-C ends it too.
            asked.user_interrupt = passed(deadline)

        solver = pulp.HiGHS(
            msg=False,
            timeLimit=time_left(deadline),
            threads=1,
            gapRel=1e-6,
            callbackTuple=(stop, None),
            callbacksToActivate=[
                highspy.cb.HighsCallbackType.kCallbackMipInterrupt,
                highspy.cb.HighsCallbackType.kCallbackSimplexInterrupt,
            ],
        )
        self.program.solve(solver)
        solved = (pulp.LpSolutionOptimal, pulp.LpSolutionIntegerFeasible)
        return self.placement.partition() if self.program.sol_status in solved else None

    def _bound_stage(self, stage: int) -> None:
        problem, layout = self.problem, self.layout
        totals = on_ranks(self._with_best_policies(stage), problem, layout, stage)
        own = own_microbatches(layout, stage)
        self._bound_memory(stage, totals)
        counted = self.work if problem.objective != "bottleneck" else []
        ahead = sum_of(t * self.placement.by(l, stage - 1) for l, t in enumerate(counted))
        finish = ahead + own * _period(problem, layout, stage, totals)
        self.program += self.finish >= finish * (1 / self.second), f"finish_{stage}"  # (9)

    def _with_best_policies(self, stage: int) -> StageTotals[Quantity]:
        """A stage's totals as expressions, under the policies that the program chooses."""
        problem, placement = self.problem, self.placement
        totals = plain_totals(problem.graph, ExpressionSums(placement, stage))
        gradients = stage_gradients(placement, stage)
        if not leaves_choice(problem.demands) or not has_policies(self.layout.schedule):
            work = kept_workspace(placement, stage, gradients)
            return totals._replace(workspace_bytes=work)
        speed = slowest_speed(problem.cluster, self.layout.stage_ranks[stage])
        layers = stage_layers(problem.graph, problem.demands, problem.cluster.host_link, speed)
        on = [placement.on(l, stage) for l in range(placement.num_layers)]
        return apply_linear_changes(
            totals, PolicyConstraints(self.program, stage, on, layers, gradients).changes()
        )

    def _bound_memory(self, stage: int, totals: StageTotals[Quantity]) -> None:
        problem, replicas = self.problem, len(self.layout.stage_ranks[stage])
        limits = limits_of(problem, self.layout, stage)
        sharing = update_share(problem.training, replicas)
        stepped = self._largest_part(totals.num_trainable, sharing)
        away, lent = self._away(stage, stepped, sharing)
        count = limits.in_flight
        rows = classic_rows(count)
        uses = [
            memory_with_state(
                totals, problem, replicas, count, stepped - away, lent, row_at(rows, row)
            )
            for row in range(len(rows.counts))
        ]
        for row, use in enumerate(uses):
            needed: Any = total(use) * (1 / limits.device_bytes)
            self.program += needed <= 1.0, f"memory_{row}_{stage}"  # (8)
        share = limits.host_bytes
        if share is not None:
            hosted: Any = uses[0].host * (1 / max(share, 1))
            self.program += hosted <= min(share, 1), f"on_host_{stage}"  # (20)

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
        self.program += away <= stepped - widest  # (21)
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
