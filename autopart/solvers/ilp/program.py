"""Integer program over all cuts of a layer graph that is no chain.

Symbols   l, u, w   layers        v   a value, made by p(v), read by its consumers
          s         a stage, 0 … k - 1        m   microbatches that a rank runs
          z[l, s]   1 where layer l is on stage s or an earlier one; z[l, -1] = 0, z[l, k-1] = 1
          x[l, s]   z[l, s] - z[l, s-1]: 1 where layer l is on stage s
          c[v, s]   1 where v crosses the cut behind stage s
          T         when the last stage finishes; minimised

    (1) z[l, s] <= z[l, s+1]                       a layer that is placed stays placed
    (2) z[u, s] >= z[w, s]        for edges u -> w: no edge goes back
    (3) sum over l of x[l, s] >= 1                 no stage is empty
    (4) c[v, s] >= z[p(v), s] - z[w, s]            for consumers w: v is sent on
    (5) only[v, s] >= c[v, s] + x[p(v), s] - 1     v kept for its sending alone
    (6) any[g, s] >= x[l, s]      for the layers l of a group g (a tied parameter, a model input)
    (7) work[s] >= workspace of l * x[l, s] - sum of the inner stash of j * x[j, s] over the layers j behind l
        + sum of the gradient bytes of tied t * again[t, j, s] over the same j; and the same with what the backward of l
        needs beside gradients of values, and those of (24); ways.py has more of it where stash comes back
    (8) memory of stage s <= memory of a GPU       the cost model's own formula, linear in the above
    (9) T >= sum over l of (f + b)_l z[l, s-1] + m * period[s]; T >= m * busy[s] for the bottleneck
   (10) x[l, s] = 1 for a pin of l to s; x[l, s] = x[u, s] for layers of one stage; the sum of x[l, s] over
        layers that must lie apart is at most 1
   (11) T <= the value of the best chain plan, where there is one
   (12) r * part[s] >= trained elements of stage s, part[s] whole      ZeRO-1 over r replicas
   (13)-(20) the ways of layers (ways.py), where they are not simply kept
   (21) away[s] <= N host[s];  away[s] <= part[s] - widest[s];  widest[s] >= trained elements of l * x[l, s] / r
   (22) lent[s] >= part[s] - N (1 - host[s])      host[s] is 1 where the optimizer's state of s is on the host;
                                                  away of N elements in all are off the device, lent on the host
   (23) again[t, j, s] >= x[j, s] + x[u, s] - 1    for layers u ahead of j that read t too: its gradient waits
   (24) waits[l, g, s] >= x[l, s] + x[w, s] - 1    for the readers w of a group g of values whose gradients may wait
        while l runs; less x[p, s] of a maker p that may have run before, plus x[u, s] - 1 of one of several layers u
        that must be there too (stage_load.may_wait)
   (25) relays[v, s] >= c[v, s-1] + c[v, s] - 1 - the sum of x[w, s] over the readers w of v

All of c, only, any, work and T are continuous: each is pushed down by (8) and (9), and at whole z the
smallest value that (4)-(7) and (13)-(25) allow is the exact one. The cumulative z make precedence (2) tight in the
relaxation. Solved by HiGHS through PuLP; on a time-out the best solution found so far is taken.
Derivation: docs/solvers.md.
"""

import itertools
import time
from collections.abc import Sequence
from typing import Any

import pulp

from autopart.cluster import slowest_speed
from autopart.cost import (
    best_ways,
    busy_time,
    cut_links,
    host_way,
    largest_part,
    limits_of,
    links_around,
    memory,
    on_ranks,
    total,
    traffic_times,
    treated_stages,
    update_share,
)
from autopart.frontier import treat_sums
from autopart.graph import edges, positions
from autopart.layouts import Layout, own_microbatches
from autopart.problem import Problem
from autopart.solvers.ilp.ways import Beside, Expression, StageProgram
from autopart.stage_load import (
    Partition,
    StageLoad,
    Traffic,
    Transient,
    counts_gradients,
    may_wait,
    own_results,
    stage_loads,
    whole_transients,
)
from autopart.training import state_bytes
from autopart.ways import Steps, can_treat, leaves_choice, places_of_state

SEND_SHARE = 0.5
"""How much of the sends around a stage counts to its period where they overlap compute: the cycle
through two neighbours carries both directions of the cut between them once (see solvers/chain.py)."""

SECONDS_PER_LAYOUT = 10.0


def solve(
    problem: Problem, layout: Layout, chain_plan: Partition | None, deadline: float
) -> Partition | None:
    """The best partition that the time allows; None where there is none better than `chain_plan`.

    `deadline` is a reading of `time.perf_counter()`.
    """
    seconds = min(SECONDS_PER_LAYOUT, deadline - time.perf_counter())
    if seconds <= 0:
        return None
    program = _Program(problem, layout)
    if chain_plan is not None:
        program.must_beat(finish_of(problem, layout, chain_plan))
    return program.solve(seconds)


def finish_of(problem: Problem, layout: Layout, partition: Partition) -> float:
    """The objective (9) of a given partition, whose layers go the ways that are best there."""
    plain = stage_loads(problem.graph, partition)
    loads = treated_stages(problem, layout, partition, best_ways(problem, layout, partition))
    ahead, finish = 0.0, 0.0
    for stage, (kept, load) in enumerate(zip(plain, loads, strict=True)):
        kept, load = (on_ranks(own, problem, layout, stage) for own in (kept, load))
        own = own_microbatches(layout, stage)
        finish = max(finish, ahead + own * _period(problem, layout, stage, load))
        if problem.objective == "step":
            ahead += kept.forward_time + kept.backward_time
    return finish


def _period(problem: Problem, layout: Layout, stage: int, load: StageLoad) -> Expression:
    before, after = links_around(cut_links(problem.cluster, layout.stage_ranks), stage)
    period = busy_time(load, problem.cluster, before, after)
    if not problem.cluster.sends_overlap or problem.objective == "bottleneck":
        return period
    sends = sum(traffic_times(load.sent, after)) + sum(traffic_times(load.received, before))
    return period + SEND_SHARE * sends


class _Program:
    """The integer program of one layout."""

    def __init__(self, problem: Problem, layout: Layout) -> None:
        self.problem, self.layout = problem, layout
        self.graph, self.place = problem.graph, positions(problem.graph)
        self.k = len(layout.stage_ranks)
        layers = self.graph.layers
        self.work = [la.forward_time + la.input_grad_time + la.weight_grad_time for la in layers]
        self.second = sum(self.work) * layout.num_microbatches or 1.0
        """Times stand in the program as shares of this, so that coefficients are near 1."""
        self.program: Any = pulp.LpProblem("stages", pulp.LpMinimize)
        self.finish: Any = self.program.add_variable("T", 0)
        self.program += self.finish
        self._place_layers()
        self._keep_demands()
        self._cross_cuts()
        for stage in range(self.k):
            self._bound_stage(stage)

    def must_beat(self, finish: float) -> None:
        self.program += self.finish <= finish / self.second, "chain"  # (11)

    def solve(self, seconds: float) -> Partition | None:
        solver = pulp.HiGHS(msg=False, timeLimit=seconds, threads=1, gapRel=1e-6)
        self.program.solve(solver)
        if self.program.sol_status not in (
            pulp.LpSolutionOptimal,
            pulp.LpSolutionIntegerFeasible,
        ):
            return None
        stages: list[list[int]] = [[] for _ in range(self.k)]
        for layer, row in enumerate(self.placed):
            stages[sum(variable.value() < 0.5 for variable in row)].append(layer)
        return tuple(map(tuple, stages))

    def _place_layers(self) -> None:
        cuts = range(self.k - 1)
        self.placed: list[list[Any]] = [
            [self.program.add_variable(f"z_{l}_{s}", cat=pulp.LpBinary) for s in cuts]
            for l in range(len(self.work))
        ]
        for row in self.placed:
            for earlier, later in itertools.pairwise(row):
                self.program += earlier <= later  # (1)
        for u, w in edges(self.graph):
            for s in cuts:
                self.program += self.placed[u][s] >= self.placed[w][s]  # (2)
        for s in range(self.k):
            on_it = [self._on(l, s) for l in range(len(self.work))]
            self.program += pulp.lpSum(on_it) >= 1  # (3)

    def _keep_demands(self) -> None:
        demands, place = self.problem.demands, self.place  # (10)
        for stage in range(self.k):
            for pin in demands.pins:
                self.program += self._on(place[pin.layer], stage) == int(pin.stage == stage)
            for first, *others in demands.same_stage:
                for other in others:
                    here = self._on(place[first], stage)
                    self.program += self._on(place[other], stage) == here
            for group in demands.different_stage:
                self.program += pulp.lpSum(self._on(place[l], stage) for l in group) <= 1

    def _by(self, layer: int, stage: int) -> Expression:
        """z[layer, stage]."""
        if stage < 0:
            return 0
        return self.placed[layer][stage] if stage < self.k - 1 else 1

    def _on(self, layer: int, stage: int) -> Expression:
        """x[layer, stage]."""
        return self._by(layer, stage) - self._by(layer, stage - 1)

    def _cross_cuts(self) -> None:
        self.crosses: list[list[Any]] = []
        for number, value in enumerate(self.graph.values):
            row = [self.program.add_variable(f"c_{number}_{s}", 0, 1) for s in range(self.k - 1)]
            for s, variable in enumerate(row):
                made = self._by(self.place[value.producer], s)
                for name in value.consumers:
                    self.program += variable >= made - self._by(self.place[name], s)  # (4)
            self.crosses.append(row)

    def _bound_stage(self, stage: int) -> None:
        problem, layout = self.problem, self.layout
        load = on_ranks(self._treated(stage), problem, layout, stage)
        own = own_microbatches(layout, stage)
        self._bound_memory(stage, load)
        counted = self.work if problem.objective == "step" else []
        ahead = pulp.lpSum(t * self._by(l, stage - 1) for l, t in enumerate(counted))
        finish = ahead + own * _period(problem, layout, stage, load)
        self.program += self.finish >= finish * (1 / self.second), f"finish_{stage}"  # (9)

    def _treated(self, stage: int) -> StageLoad:
        """The stage's load as expressions, with the layers treated."""
        problem, load = self.problem, self._load(stage)
        if not leaves_choice(problem.demands) or not can_treat(self.layout.schedule):
            work = self._transient(stage, whole_transients(self.graph))
            return load._replace(workspace_bytes=work)
        speed = slowest_speed(problem.cluster, self.layout.stage_ranks[stage])
        steps = Steps(self.graph, problem.demands, host_way(problem.cluster.host_link, speed))
        on = [self._on(l, stage) for l in range(len(self.work))]
        sent = {v.name: self._sent(number, stage) for number, v in enumerate(self.graph.values)}
        beside = Beside(
            self._tied_again(stage),
            self._pending(stage),
            [[(v.bytes, sent[v.name]) for v in own] for own in own_results(self.graph)],
        )
        return treat_sums(load, StageProgram(self.program, stage, on, steps, beside).choice())

    def _bound_memory(self, stage: int, load: StageLoad) -> None:
        problem, replicas = self.problem, len(self.layout.stage_ranks[stage])
        limits = limits_of(problem, self.layout, stage)
        sharing = update_share(problem.training, replicas)
        stepped = self._largest_part(load.num_trainable, sharing)
        use = memory(load, problem, replicas, limits.held, lambda count, parts: stepped)
        away, lent = self._away(stage, stepped, sharing)
        each = state_bytes(problem.training)
        needed = total(use) - each * away
        self.program += needed * (1 / limits.device_bytes) <= 1.0, f"memory_{stage}"  # (8)
        share = limits.host_bytes
        if share is not None:
            hosted = (use.host + each * lent) * (1 / max(share, 1))
            self.program += hosted <= min(share, 1), f"on_host_{stage}"  # (20)

    def _away(self, stage: int, stepped: Expression, sharing: int) -> tuple[Expression, Expression]:
        """Trained elements whose state is off the device, and on the host."""
        places = places_of_state(self.problem.demands) if can_treat(self.layout.schedule) else ()
        sizes = [largest_part(la.num_trainable, sharing) for la in self.graph.layers]
        if True not in places or not sum(sizes):
            return 0, 0
        most = sum(la.num_trainable for la in self.graph.layers)
        variable = self.program.add_variable
        host: Any = variable(f"host_{stage}", int(False not in places), 1, cat=pulp.LpInteger)
        away, lent, widest = (
            most * variable(f"{name}_{stage}", 0, 1) for name in ("away", "lent", "widest")
        )
        for layer, size in enumerate(sizes):
            self.program += widest >= size * self._on(layer, stage)
        self.program += away <= most * host
        self.program += away <= stepped - widest  # (21)
        self.program += lent >= stepped - most * (1 - host)  # (22)
        return away, lent

    def _load(self, stage: int) -> StageLoad:
        """The stage's load as expressions, but for its workspace."""
        layers = self.graph.layers
        tied = self.graph.tied
        copies = [
            self._any([self.place[n] for n in t.layers], f"t_{i}_{stage}", stage)
            for i, t in enumerate(tied)
        ]
        read = [
            (i, self._any([self.place[n] for n in i.consumers], f"i_{number}_{stage}", stage))
            for number, i in enumerate(self.graph.inputs)
        ]
        inner = self._sum(stage, [la.stash_bytes for la in layers]) + pulp.lpSum(
            v.bytes * self._on(self.place[v.producer], stage)
            for v in self.graph.values
            if v.kept_by
        )
        received, sent = self._traffic(stage - 1), self._traffic(stage)

        def once(per_layer: Sequence[int], per_tied: Sequence[int]) -> Expression:
            alone = list(per_layer)
            for t, size in zip(tied, per_tied, strict=True):
                for name in t.layers:
                    alone[self.place[name]] -= size
            return self._sum(stage, alone) + pulp.lpSum(
                size * copy for size, copy in zip(per_tied, copies, strict=True)
            )

        return StageLoad(
            forward_time=self._sum(stage, [la.forward_time for la in layers]),
            backward_time=self._sum(
                stage, [la.input_grad_time + la.weight_grad_time for la in layers]
            ),
            weight_grad_time=self._sum(stage, [la.weight_grad_time for la in layers]),
            split_time=self._sum(stage, [la.split_time for la in layers]),
            update_time=self._sum(stage, [la.update_time for la in layers]),
            weight_bytes=once(
                [la.param_bytes + la.buffer_bytes for la in layers], [t.param_bytes for t in tied]
            ),
            grad_bytes=once([la.grad_bytes for la in layers], [t.grad_bytes for t in tied]),
            num_trainable=once(
                [la.num_trainable for la in layers], [t.num_trainable for t in tied]
            ),
            stash_bytes=inner + received.bytes + self._sent_only(stage),
            inner_stash_bytes=inner,
            workspace_bytes=0,
            input_bytes=pulp.lpSum(i.bytes * taken for i, taken in read),
            received=received,
            sent=sent,
            relayed_grad_bytes=self._relayed(stage),
        )

    def _sum(self, stage: int, per_layer: Sequence[float]) -> Expression:
        return pulp.lpSum(size * self._on(l, stage) for l, size in enumerate(per_layer) if size)

    def _any(self, members: Sequence[int], name: str, stage: int) -> Expression:
        variable: Any = self.program.add_variable(f"any_{name}", 0, 1)
        for layer in members:
            self.program += variable >= self._on(layer, stage)  # (6)
        return variable

    def _largest_part(self, count: Expression, parts: int) -> Expression:
        """The largest of `parts` even parts of a whole number."""
        if parts == 1 or isinstance(count, int):
            return largest_part(count, parts)
        name = f"part_{len(self.program.variables())}"
        variable: Any = self.program.add_variable(name, 0, cat=pulp.LpInteger)
        self.program += parts * variable >= count  # (12)
        return variable

    def _transient(self, stage: int, layers: Sequence[Transient]) -> Expression:
        variable: Any = self.program.add_variable(f"work_{stage}", 0)
        scale = max(max(layer.most_bytes, layer.backward_bytes or 0) for layer in layers) or 1
        tied, pending = self._tied_again(stage), self._pending(stage)
        for at, layer in enumerate(layers):
            behind = pulp.lpSum(
                other.less_bytes / scale * self._on(place, stage)
                for place, other in enumerate(layers)
                if place > at and other.less_bytes
            )
            waits = pulp.lpSum(size / scale * on for place, size, on in tied if place > at)
            if layer.most_bytes:
                here = layer.most_bytes / scale * self._on(at, stage)
                self.program += variable >= here + waits - behind  # (7)
            if layer.backward_bytes is not None:
                here = layer.backward_bytes / scale * self._on(at, stage) + pending[at] * (
                    1 / scale
                )
                self.program += variable >= here + waits - behind
        return scale * variable

    def _pending(self, stage: int) -> list[Expression]:
        """By layer, the bytes of gradients that are there while its backward runs, if it is on the stage."""
        found: list[Expression] = []
        for at, values in enumerate(may_wait(self.graph)):
            here, own = self._on(at, stage), list[Expression]()
            for number, value in enumerate(values):
                if not value.readers:
                    own.append(value.bytes * here)
                    continue
                variable: Any = self.program.add_variable(f"waits_{at}_{number}_{stage}", 0, 1)
                gone = 0 if value.producer is None else self._on(value.producer, stage)
                others = [self._on(other, stage) - 1 for other in value.others if other != at]
                for reader in value.readers:
                    both = here + self._on(reader, stage) - 1 - gone
                    for other in [0] if at in value.others else others or [0]:
                        self.program += variable >= both + other  # (24)
                own.append(value.bytes * variable)
            found.append(pulp.lpSum(own))
        return found

    def _relayed(self, stage: int) -> Expression:
        """Bytes of the gradients that the stage hands on as they are."""
        found: list[Expression] = []
        if counts_gradients(self.graph) and 0 < stage < self.k - 1:
            for number, (value, row) in enumerate(
                zip(self.graph.values, self.crosses, strict=True)
            ):
                if value.has_gradient:
                    variable: Any = self.program.add_variable(f"relays_{number}_{stage}", 0, 1)
                    readers = (self._on(self.place[name], stage) for name in value.consumers)
                    through = row[stage - 1] + row[stage] - 1
                    self.program += variable >= through - pulp.lpSum(readers)  # (25)
                    found.append(value.bytes * variable)
        return pulp.lpSum(found)

    def _sent(self, number: int, stage: int) -> Expression:
        """c of a value at the cut behind the stage."""
        return self.crosses[number][stage] if stage < self.k - 1 else 0

    def _tied_again(self, stage: int) -> list[tuple[int, int, Expression]]:
        """The layers that read a tied parameter, the bytes of its gradient, and whether the layer is on the stage
        with another one before it."""
        found: list[tuple[int, int, Expression]] = []
        for number, tied in enumerate(self.graph.tied):
            holders = sorted({self.place[name] for name in tied.layers})
            for count, at in enumerate(holders[1:], 1):
                variable: Any = self.program.add_variable(f"again_{number}_{at}_{stage}", 0, 1)
                for other in holders[:count]:
                    both = self._on(at, stage) + self._on(other, stage)
                    self.program += variable >= both - 1  # (23)
                found.append((at, tied.grad_bytes, variable))
        return found

    def _sent_only(self, stage: int) -> Expression:
        kept: list[Expression] = []
        for number, value in enumerate(self.graph.values):
            if value.kept_by or stage == self.k - 1:
                continue
            variable: Any = self.program.add_variable(f"only_{number}_{stage}", 0, 1)
            here = self._on(self.place[value.producer], stage)
            self.program += variable >= self.crosses[number][stage] + here - 1  # (5)
            kept.append(value.bytes * variable)
        return pulp.lpSum(kept)

    def _traffic(self, cut: int) -> Traffic:
        """What crosses the cut behind stage `cut`."""
        inside = 0 <= cut < self.k - 1
        over = [
            (v, row[cut]) for v, row in zip(self.graph.values, self.crosses, strict=True) if inside
        ]
        back = [(v, crossing) for v, crossing in over if v.has_gradient]
        return Traffic(
            bytes=pulp.lpSum(v.bytes * crossing for v, crossing in over),
            tensors=pulp.lpSum(crossing for _, crossing in over),
            grad_bytes=pulp.lpSum(v.bytes * crossing for v, crossing in back),
            grad_tensors=pulp.lpSum(crossing for _, crossing in back),
        )
