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
     (9) T >= Σ over l: (f + b)_l z[l, s-1] + m Σ period[t] over the stages t of a rank, s the first of them;
         T >= m Σ busy[t] for the bottleneck
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

Under schedules other than GPipe and 1F1B, memory is that of each rank along its order, g a place in it:
    (26) in_i[s], in_w[s] >= (7) with l's transients in I and in W, beside gradients without sums of tied ones
    (27) kept_for_w[s] >= values[s] - M fewer[s];  kept_for_w[s] >= needed[s] - M (1 - fewer[s])
                                                   fewer[s] is 0 or 1: of two numbers the smaller one counts
    (28) in_i[s] with policies (autopart/solvers/ilp/policies.py)
    (29) size[i, s] >= bytes of kind i on stage s for one microbatch: stash, waiting, messages, results
    (30) lasting[r] + Σ counts[g, i, s] size[i, s] + the running action's workspace <= memory per GPU     for each g
    (31) repeated[t, s] <= Σ x[l, s];  repeated[t, s] <= Σ x[l, s'] over earlier stages s' on all ranks of s
                                                   for the layers l of tied t: a rank has its state once
         made[t, s] likewise with later stages for its gradient
    (32) away[s] <= stepped[s] - widest[s] + M few[s];  away[s] <= M (1 - few[s])

Where a stage under GPipe or 1F1B has all its microbatches in flight before its first backward:
    (33) first[s] >= (7) or (16) + Σ over j from l on: grad bytes_j x[j, s] + Σ over t: grad bytes_t done[t, l, s]
         done[t, l, s] >= x[j, s] - Σ x[u, s]      for the layers j of tied t from l on; u: those ahead of l

z is whole. The variables c, kept, only, any, work, again, waits, relays and T are continuous. (8), (9) and (30) push each
down, and at whole z the smallest value that (4)-(7) and (13)-(29) allow is the exact one. The cumulative z make
precedence (2) tight in the relaxation.

HiGHS solves the program through PuLP. On a time-out the best solution so far is taken. Derivation: docs/solvers.md.

(1)-(4) and (10) stand in placement.py, (5), (6) and (25) in sums.py, (7), (23), (24), (26), (27) and (33) in transients.py,
(13)-(19) and (28) in policies.py, (8), (12), (20)-(22) and (29)-(32) in memory.py, the others here.
"""

from typing import Any

import highspy
import pulp

from autopart.activations.best_policies import best_policies, totals_with_policies
from autopart.activations.changes import apply_linear_changes
from autopart.activations.chooser import counts_first, place_of
from autopart.activations.policies import has_policies, leaves_choice
from autopart.activations.stage_layers import stage_layers
from autopart.cost.cuts import stage_totals
from autopart.cost.on_ranks import on_ranks
from autopart.cost.stage_times import busy_time, cut_links, links_around, traffic_times
from autopart.cost.stage_totals import StageTotals, plain_totals
from autopart.cost.transients import input_grad_transients
from autopart.records.cluster import slowest_speed
from autopart.records.layouts import Layout, Partition, own_microbatches
from autopart.records.problem import CLASSIC, PAIRED, Problem, splits_backward
from autopart.solvers.ilp.memory import MemoryConstraints
from autopart.solvers.ilp.placement import Placement, sum_of
from autopart.solvers.ilp.policies import PolicyConstraints
from autopart.solvers.ilp.sums import ExpressionSums
from autopart.solvers.ilp.transients import (
    kept_first_backward,
    kept_workspace,
    kept_workspace_in_input_grad,
    stage_gradients,
    waiting_bytes,
    workspace_in_weight_grad,
)
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
    ahead, periods = [0.0], list[float]()
    for stage, (kept, totals) in enumerate(zip(plain, all_totals, strict=True)):
        kept, totals = (on_ranks(own, problem, layout, stage) for own in (kept, totals))
        periods.append(_period(problem, layout, stage, totals))
        # (9) counts the layers ahead without policies.
        counts = problem.objective != "bottleneck"
        ahead.append(ahead[-1] + counts * (kept.forward_time + kept.backward_time))
    return max(
        ahead[own[0]] + own_microbatches(layout, own[0]) * sum(periods[s] for s in own)
        for own in _stages_by_rank(layout)
    )


def _stages_by_rank(layout: Layout) -> list[list[int]]:
    """The stages of each rank in the first replica, in their order."""
    found: dict[int, list[int]] = {}
    for stage, ranks in enumerate(layout.stage_ranks):
        found.setdefault(min(ranks), []).append(stage)
    return list(found.values())


def _period(problem: Problem, layout: Layout, stage: int, totals: StageTotals[Q]) -> Q:
    """Seconds per microbatch on a stage: busy time less what a pair saves, and a share for sends beside it."""
    before, after = links_around(cut_links(problem.cluster, layout.stage_ranks), stage)
    period = busy_time(totals, problem.cluster, before, after)
    if layout.schedule in PAIRED:
        period = period - totals.pair_saving
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
        self._bound_stages()

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

    def _bound_stages(self) -> None:
        """Add the objective and the memory limits over all stages."""
        problem, layout = self.problem, self.layout
        limits = MemoryConstraints(self.program, problem, layout, self.placement)
        all_totals: list[StageTotals[Quantity]] = []
        for stage in range(len(layout.stage_ranks)):
            check_time()
            all_totals.append(on_ranks(self._with_best_policies(stage), problem, layout, stage))
            if layout.schedule in CLASSIC:
                limits.bound_stage(stage, all_totals[stage])
        if layout.schedule not in CLASSIC:
            limits.bound_ranks(all_totals)
        counted = self.work if problem.objective != "bottleneck" else []
        for stages in _stages_by_rank(layout):
            first = stages[0]
            ahead = sum_of(t * self.placement.by(l, first - 1) for l, t in enumerate(counted))
            period = sum_of(_period(problem, layout, s, all_totals[s]) for s in stages)
            finish = ahead + own_microbatches(layout, first) * period
            self.program += self.finish >= finish * (1 / self.second), f"finish_{first}"  # (9)

    def _with_best_policies(self, stage: int) -> StageTotals[Quantity]:
        """A stage's totals as expressions, under the policies that the program chooses."""
        problem, placement = self.problem, self.placement
        totals = plain_totals(problem.graph, ExpressionSums(placement, stage))
        gradients = stage_gradients(placement, stage, first=self._counts_first(stage))
        split = splits_backward(self.layout.schedule)
        if split:
            totals = totals._replace(
                waiting_bytes=waiting_bytes(placement, stage, totals),
                weight_grad_workspace_bytes=workspace_in_weight_grad(placement, stage, gradients),
            )
        if not leaves_choice(problem.demands) or not has_policies(self.layout.schedule):
            return totals._replace(
                workspace_bytes=kept_workspace(placement, stage, gradients),
                first_backward_bytes=kept_first_backward(placement, stage, gradients)
                if gradients.made
                else 0,
                input_grad_workspace_bytes=kept_workspace_in_input_grad(placement, stage, gradients)
                if split
                else 0,
            )
        speed = slowest_speed(problem.cluster, self.layout.stage_ranks[stage])
        layers = stage_layers(problem.graph, problem.demands, problem.cluster.host_link, speed)
        on = [placement.on(l, stage) for l in range(placement.num_layers)]
        in_input_grad = input_grad_transients(problem.graph) if split else ()
        changes = PolicyConstraints(
            self.program, stage, on, layers, gradients, in_input_grad
        ).changes()
        return apply_linear_changes(totals, changes)._replace(
            input_grad_workspace_bytes=changes.input_grad_workspace_bytes,
            first_backward_bytes=changes.first_backward_bytes,
        )

    def _counts_first(self, stage: int) -> bool:
        """Whether the first backward of a stage counts apart."""
        if self.layout.schedule not in CLASSIC:
            return False
        return counts_first(self.problem, place_of(self.problem, self.layout, stage))
