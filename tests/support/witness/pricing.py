"""The price of one plan: seconds per step, bottleneck, and bytes on each rank."""

import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from autopart.records.cluster import Cluster, HostLink, Link
from autopart.records.problem import BIDIRECTIONAL, CLASSIC, LENDING, Demands, Problem
from tests.support.witness.bytes_on_rank import (
    Moment,
    Moving,
    classic_peak,
    lasting,
    moments_on_ranks,
    moving,
    moving_peak,
    shard,
    state_per_element,
    summed_gradients,
)
from tests.support.witness.clock import StageSeconds, Steps, SyncSeconds
from tests.support.witness.collectives import links_of
from tests.support.witness.graphs import Crossing, Facts
from tests.support.witness.hidden_syncs import Own, parts_of
from tests.support.witness.lending import moves_of, places_of
from tests.support.witness.orders import Orders, in_flight, orders_of
from tests.support.witness.placements import Place
from tests.support.witness.policies import PolicyFigures, Where, all_policies
from tests.support.witness.stages import StageFigures, stage_figures
from tests.support.witness.ties import StateBytes, state_beyond_first, ties_of

PLACES = {"never": (False,), "auto": (False, True), "always": (True,)}
"""Whether optimizer state may lie on the host, for each demand."""

SAME = 1e-9
"""Share by which two sums in different order may differ."""


class Setting(NamedTuple):
    """A schedule on slots: all decisions except the partition, the policies and the GPUs."""

    schedule: str
    slots: tuple[tuple[int, ...], ...]
    """For each stage its slots, one per replica."""
    num_microbatches: int
    own_orders: Orders | None = None
    """Orders for all slots where no name gives them."""


class Compiled(NamedTuple):
    """A setting, ready to be priced."""

    steps: Steps
    seen: tuple[tuple[int, ...], ...]
    """For each stage the slots that are simulated, renumbered: one where all replicas do the same."""
    in_flight: tuple[int, ...] | None
    """Under GPipe and 1F1B, each stage's most microbatches in flight."""
    moments: tuple[tuple[tuple[int, ...], tuple[Moment, ...]], ...]
    """Under other orders, for each rank its stages and its counts."""
    places: tuple[int, ...] = ()
    """Where ranks lend stash, for each stage the places that its stash takes on its partner's rank."""


class OnRanks(NamedTuple):
    """A stage on its ranks, with its policies chosen."""

    figures: StageFigures
    forward: float
    backward: float
    weight_grad: float
    split: float
    update: float
    peak: int
    """Device bytes without what moves under orders other than GPipe and 1F1B."""
    host: int
    """Bytes on the host; without stash under orders other than GPipe and 1F1B."""
    policies: tuple[str, ...]
    hosted: bool
    replicas: int
    moved: Moving
    """Bytes that move within a step."""
    stash_on_host: int = 0
    """Stash on the host for one microbatch, under orders other than GPipe and 1F1B."""


class Price(NamedTuple):
    """One plan's objective values and bytes."""

    step: float
    period: float
    """NaN unless it is the objective."""
    bottleneck: float
    peaks: tuple[int, ...]
    """For each stage under GPipe and 1F1B, else for each simulated rank."""
    fits: bool
    stages: tuple[OnRanks, ...]


@functools.lru_cache(maxsize=2048)
def compiled(setting: Setting) -> Compiled:
    """A setting's orders, sorted and counted once."""
    schedule, slots, count, own = setting
    replicas = {len(ranks) for ranks in slots}
    seen = slots
    apart = len({slot for ranks in slots for slot in ranks[:1]}) * len(slots[0]) == len(
        {slot for ranks in slots for slot in ranks}
    )
    if own is None and len(replicas) == 1 and count % len(slots[0]) == 0 and apart:
        # All replicas do the same work: the first one stands for all.
        first = list(dict.fromkeys(ranks[0] for ranks in slots))
        seen, count = tuple((first.index(ranks[0]),) for ranks in slots), count // len(slots[0])
    orders = orders_of(schedule, seen, count) if own is None else own
    steps = Steps(orders, seen)
    if schedule in CLASSIC:
        flying = tuple(
            in_flight(schedule, slots, stage, setting.num_microbatches)
            for stage in range(len(slots))
        )
        return Compiled(steps, seen, flying, ())
    moments = tuple(
        (tuple(stage for stage, ranks in enumerate(seen) if rank in ranks), own_moments)
        for rank, own_moments in enumerate(moments_on_ranks(orders, seen))
        if own_moments
    )
    places: tuple[int, ...] = ()
    if schedule in LENDING:
        moves = moves_of(orders)
        places = tuple(places_of(moves, rank) for (rank,) in seen)
        assert not any(places) or all(len(ranks) == 1 for ranks in slots), "places need one replica"
    return Compiled(steps, seen, None, moments, places)


def stage_seconds(one: OnRanks, send: float, send_back: float, fixed: float) -> StageSeconds:
    """The seconds of a stage with its sends in both directions; `fixed` comes on top of each action."""
    return StageSeconds(
        ops={
            "F": one.forward + fixed,
            "B": one.backward + fixed,
            "I": one.backward - one.weight_grad + one.split + fixed,
            "W": one.weight_grad + fixed,
        },
        send=send,
        send_back=send_back,
        update=one.update,
        fixed=fixed,
    )


class Pricer:
    """Prices for one problem. Figures of stages are kept."""

    def __init__(self, problem: Problem) -> None:
        self.problem, self.facts = problem, Facts(problem.graph)
        self._figures: dict[tuple[int, int], StageFigures] = {}
        self._policies: dict[tuple[int, int, float], list[PolicyFigures]] = {}
        self._stages: dict[tuple[object, ...], OnRanks] = {}
        self._choices: dict[tuple[object, ...], list[OnRanks]] = {}

    def figures(self, before: int, after: int) -> StageFigures:
        """The stage between two cuts on the profile's device."""
        key = before, after
        if key not in self._figures:
            self._figures[key] = stage_figures(self.facts, before, after)
        return self._figures[key]

    def price(
        self, setting: Setting, place: Place, cuts: Sequence[int], beat: float = float("inf")
    ) -> Price | None:
        """The price of a partition; None where the step's work alone shows that it cannot beat a value.

        Where only orders say what is in flight, every choice of policies is tried, and the fastest that fits counts.
        """
        ready = compiled(setting)
        if ready.in_flight or not self.opens_policies(setting):
            stages = self._all_on_ranks(setting, ready, place, cuts)
            return self._price(setting, place, cuts, stages, beat)
        best: Price | None = None
        for stages in itertools.product(*self.every_choice(setting, ready, place, cuts)):
            price = self._price(setting, place, cuts, stages, beat)
            if price is not None and (
                best is None
                or (not price.fits, self._value(price)) < (not best.fits, self._value(best))
            ):
                best, beat = price, min(beat, self._value(price)) if price.fits else beat
        return best

    def _value(self, price: Price) -> float:
        return price.period if self.problem.objective == "period" else price.step

    def price_of(
        self,
        setting: Setting,
        place: Place,
        cuts: Sequence[int],
        policies: Sequence[tuple[Sequence[str], bool]],
    ) -> Price:
        """The price under given policies and places of state, where only orders say what is in flight."""
        every = self.every_choice(setting, compiled(setting), place, cuts, all_of_them=True)
        stages = [
            next(one for one in able if (one.policies, one.hosted) == (tuple(own), hosted))
            for able, (own, hosted) in zip(every, policies, strict=True)
        ]
        price = self._price(setting, place, cuts, stages, float("inf"))
        assert price is not None
        return price

    def opens_policies(self, setting: Setting) -> bool:
        """Whether layers may have other policies than keep: not where two pipelines share their ranks."""
        demands = self.problem.demands
        named = demands.recompute_layers or demands.selective_layers or demands.offload_layers
        asked = demands.recompute, demands.offload, demands.offload_optimizer
        closed = (*BIDIRECTIONAL, *LENDING)
        return setting.schedule not in closed and (asked != ("never",) * 3 or bool(named))

    def every_choice(
        self,
        setting: Setting,
        ready: Compiled,
        place: Place,
        cuts: Sequence[int],
        *,
        all_of_them: bool = False,
    ) -> list[list[OnRanks]]:
        """For each stage the choices of policies and places that demands leave.

        A choice that another one equals or beats in all seconds and bytes is left out, unless `all_of_them`.
        """
        demands, host = self.problem.demands, self.problem.cluster.host_link
        if all_of_them:
            demands = Demands(recompute="auto", offload="auto", offload_optimizer="auto")
        places = PLACES[demands.offload_optimizer if host else "never"]
        split = any(moment.op == "I" for _, own in ready.moments for moment in own)
        found: list[list[OnRanks]] = []
        for stage, (before, after) in enumerate(itertools.pairwise(cuts)):
            replicas, groups = len(setting.slots[stage]), place.groups[stage]
            own = -(-setting.num_microbatches // replicas)
            spot = Spot(self.problem, replicas, own, 0, groups)
            key = before, after, replicas, own, groups, split, all_of_them
            if key not in self._choices:
                figures = self.figures(before, after)
                every = all_policies(self.facts, figures, demands, Where(host, spot.speed, split))
                made = [spot.moved(figures, one, hosted) for one in every for hosted in places]
                self._choices[key] = made if all_of_them else _best_ones(made)
            found.append(self._choices[key])
        return found

    def _price(
        self,
        setting: Setting,
        place: Place,
        cuts: Sequence[int],
        stages: Sequence[OnRanks],
        beat: float,
    ) -> Price | None:
        ready = compiled(setting)
        peaks = self._peaks(ready, stages)
        fits = self._fit(ready, place, stages, peaks)
        if beat < float("inf") and not fits:
            return None
        links = [_slowest(self.problem.cluster, kinds) for kinds in place.cuts]
        seconds = self._seconds(stages, links)
        if ready.places:
            seconds = self._with_lending(ready, place, stages, seconds)
        value = ready.steps.own_work(seconds) if self.problem.objective != "bottleneck" else 0.0
        if value >= beat:
            return None
        syncs = self._syncs(setting, ready, place, cuts, stages)
        overlap = self.problem.cluster.sends_overlap
        waits = self.problem.cluster.sends == "rendezvous"
        step = ready.steps.makespan(seconds, syncs, overlap=overlap, rendezvous=waits)
        bottleneck = self._bottleneck(setting, stages, seconds, links)
        period = float("nan")
        if self.problem.objective == "period":
            period = ready.steps.period(seconds, syncs, overlap=overlap, rendezvous=waits)
        return Price(step, period, bottleneck, tuple(peaks), fits, tuple(stages))

    def peaks(self, setting: Setting, place: Place, cuts: Sequence[int]) -> list[int]:
        """Peak bytes for each stage under GPipe and 1F1B, else for each simulated rank."""
        ready = compiled(setting)
        if ready.in_flight or not self.opens_policies(setting):
            return self._peaks(ready, self._all_on_ranks(setting, ready, place, cuts))
        # Each rank's own stages say its peak: the fewest bytes of each rank apart.
        every = self.every_choice(setting, ready, place, cuts)
        return [
            min(
                self._peak_of_rank(own, moments, dict(zip(own, stages, strict=True)), ready.seen)
                for stages in itertools.product(*(every[s] for s in own))
            )
            for own, moments in ready.moments
        ]

    def _all_on_ranks(
        self, setting: Setting, ready: Compiled, place: Place, cuts: Sequence[int]
    ) -> list[OnRanks]:
        return [
            self._on_ranks(setting, ready, place, stage, cuts[stage], cuts[stage + 1])
            for stage in range(len(setting.slots))
        ]

    def _on_ranks(
        self, setting: Setting, ready: Compiled, place: Place, stage: int, before: int, after: int
    ) -> OnRanks:
        replicas, groups = len(setting.slots[stage]), place.groups[stage]
        own = -(-setting.num_microbatches // replicas)
        flying = ready.in_flight[stage] if ready.in_flight else 0
        key = before, after, replicas, own, flying, groups
        if key not in self._stages:
            figures = self.figures(before, after)
            spot = Spot(self.problem, replicas, own, flying, groups)
            self._stages[key] = self._chosen(figures, spot, before, after)
        return self._stages[key]

    def _chosen(self, figures: StageFigures, spot: "Spot", before: int, after: int) -> OnRanks:
        """The stage with the policies that the rule of docs/cost-model.md takes."""
        demands, host = self.problem.demands, self.problem.cluster.host_link
        if not spot.in_flight:
            return spot.kept(figures)
        key = before, after, spot.speed
        if key not in self._policies:
            every = all_policies(self.facts, figures, demands, Where(host, spot.speed))
            self._policies[key] = list(every)
        best: OnRanks | None = None
        for hosted in PLACES[demands.offload_optimizer]:
            own = [spot.changed(figures, one, hosted) for one in self._policies[key]]
            fitting = [one for one in own if spot.fits(one)]
            # Fewest busy seconds, then fewest bytes on the host, then fewest changes; else fewest bytes.
            taken = (
                min(fitting, key=lambda one: (one.forward + one.backward, *_effort(one)))
                if fitting
                else min(own, key=lambda one: one.peak)
            )
            if best is None or spot.better(taken, best):
                best = taken
        assert best is not None
        return best

    def _peaks(self, ready: Compiled, stages: Sequence[OnRanks]) -> list[int]:
        """Peak bytes for each stage, or for each rank where ranks have orders of other kinds."""
        if ready.in_flight:
            return [stage.peak for stage in stages]
        peaks = [
            self._peak_of_rank(own, moments, dict(enumerate(stages)), ready.seen)
            for own, moments in ready.moments
        ]
        for stage, count in enumerate(ready.places):
            # Stage s has one rank, and so has its partner.
            peaks[-1 - stage] += count * stages[stage].moved.stash
        return peaks

    def _with_lending(
        self,
        ready: Compiled,
        place: Place,
        stages: Sequence[OnRanks],
        seconds: Sequence[StageSeconds],
    ) -> list[StageSeconds]:
        """The seconds of stages, with those of one move where a stage lends."""
        known = links_of(self.problem.cluster)
        found = list(seconds)
        for stage, count in enumerate(ready.places):
            if count:
                pair = stage, len(stages) - 1 - stage
                link = known["inter" if pair in place.twins else "intra"]
                moving_time = link.latency + stages[stage].moved.stash / link.bandwidth
                found[stage] = found[stage]._replace(lend=moving_time)
        return found

    def _peak_of_rank(
        self,
        own: Sequence[int],
        moments: Sequence[Moment],
        stages: Mapping[int, OnRanks],
        slots: Sequence[tuple[int, ...]],
    ) -> int:
        reserve = self.problem.cluster.reserve_bytes
        moved: list[Moving] = []
        for s in own:
            one = stages[s].moved
            if s and slots[s - 1] == slots[s] and not self._may_free():
                # Values that the stage ahead keeps are there already, and longer.
                before = stages[s - 1].figures
                one = one._replace(stash=one.stash - (before.sent.bytes - before.outputs))
            moved.append(one)
        moving_bytes = moving_peak(moments, moved, own, self._made([stages[s] for s in own]))
        lasts = sum(stages[s].peak - reserve for s in own) + reserve
        return moving_bytes + lasts - self._counted_twice([stages[s] for s in own]).device

    def _may_free(self) -> bool:
        """Whether any layer may run again or lie on the host."""
        asked = self.problem.demands
        words = (asked.recompute, asked.offload)
        lists = (asked.recompute_layers, asked.selective_layers, asked.offload_layers)
        return any(word != "never" for word in words) or any(lists)

    def _made(self, on_rank: Sequence[OnRanks]) -> list[int]:
        """The gradients of a rank's stages; a tied parameter's with the last one, whose backward comes first."""
        found = [one.moved.made for one in on_rank]
        for number, layers in enumerate(self.facts.tied):
            holders = [
                at
                for at, one in enumerate(on_rank)
                if set(layers).intersection(one.figures.members)
            ]
            for at in holders[:-1]:
                tied = self.problem.graph.tied[number]
                whole = tied.grad_bytes + (tied.unscattered_grad_bytes or 0)
                found[at] -= whole * (found[at] > 0)
        return found

    def _counted_twice(self, on_rank: Sequence[OnRanks]) -> StateBytes:
        """State of tied parameters that more than one of a rank's stages counts, beyond the first."""
        device = host = 0
        seen: set[int] = set()
        for one in on_rank:
            holds = {
                number
                for number, layers in enumerate(self.facts.tied)
                if set(layers).intersection(one.figures.members)
            }
            again = [self.problem.graph.tied[number] for number in sorted(holds & seen)]
            seen |= holds
            more = state_beyond_first(
                one.figures, again, self.problem.training, one.replicas, one.hosted
            )
            device, host = device + more.device, host + more.host
        return StateBytes(device, host)

    def _fit(
        self, ready: Compiled, place: Place, stages: Sequence[OnRanks], peaks: Sequence[int]
    ) -> bool:
        cluster = self.problem.cluster
        if place.kinds:
            slots = zip(ready.seen, place.kinds, strict=True)
            kind = {s: k for own, kinds in slots for s, k in zip(own, kinds, strict=True)}
            return all(
                peak <= memory_of(cluster, frozenset([kind[slot]]))
                for slot, peak in enumerate(peaks)
            )
        homes = (
            [(s,) for s in range(len(stages))] if ready.in_flight else [o for o, _ in ready.moments]
        )
        room = all(
            peak <= memory_of(cluster, place.groups[s])
            for peak, own in zip(peaks, homes, strict=True)
            for s in own
        )
        return room and all(host_fits(cluster, size) for size in self._on_hosts(ready, stages))

    def _on_hosts(self, ready: Compiled, stages: Sequence[OnRanks]) -> list[int]:
        """Bytes on the host for each stage under GPipe and 1F1B, else for each simulated rank at its fullest moment."""
        if ready.in_flight:
            return [stage.host for stage in stages]
        return [
            sum(stages[s].host for s in own)
            - self._counted_twice([stages[s] for s in own]).host
            + max(
                sum(
                    counts[0] * stages[s].stash_on_host
                    for s, counts in zip(own, moment.counts, strict=True)
                )
                for moment in moments
            )
            for own, moments in ready.moments
        ]

    def _seconds(
        self, stages: Sequence[OnRanks], links: Sequence[Link | None]
    ) -> list[StageSeconds]:
        fixed = self.problem.cluster.action_overhead
        return [
            stage_seconds(
                one,
                _there(one.figures.sent, links[s] if s < len(links) else None),
                _back(one.figures.received, links[s - 1] if s else None),
                fixed,
            )
            for s, one in enumerate(stages)
        ]

    def _syncs(
        self,
        setting: Setting,
        ready: Compiled,
        place: Place,
        cuts: Sequence[int],
        stages: Sequence[OnRanks],
    ) -> list[SyncSeconds]:
        training = self.problem.training
        ties = ties_of(self.problem, self.facts, setting.slots, place, cuts)
        syncs: list[SyncSeconds] = []
        for s, slots in enumerate(setting.slots):
            if len(slots) == 1:
                continue
            own = stages[s].figures
            gone = [tie.parameter for tie in ties if s in tie.leaves]
            weights = own.gradients - sum(one.grad_bytes for one in gone)
            trained = own.trained - sum(one.num_trainable for one in gone)
            summed = summed_gradients(training, weights, trained)
            link = self._link(place.spread[s])
            figures = Own(s, len(slots), summed, weights, link, place.nodes[s : s + 1])
            time, beside = parts_of(self.problem, figures)
            syncs.append(SyncSeconds(ready.seen[s], time, beside))
        tied = [
            SyncSeconds(
                tuple(sorted({rank for s in tie.homes for rank in ready.seen[s]})), tie.seconds
            )
            for tie in ties
            if tie.seconds > 0.0
        ]
        return tied + syncs if training.sync == "deepspeed" else syncs + tied

    def _link(self, apart: bool) -> Link:
        return self.problem.cluster.inter_node if apart else self.problem.cluster.intra_node

    def _bottleneck(
        self,
        setting: Setting,
        stages: Sequence[OnRanks],
        seconds: Sequence[StageSeconds],
        links: Sequence[Link | None],
    ) -> float:
        """Seconds per step that the busiest rank is busy with microbatches."""
        busy: dict[int, float] = {}
        for s, slots in enumerate(setting.slots):
            once = seconds[s].ops["F"] + seconds[s].ops["B"]
            if not self.problem.cluster.sends_overlap:
                before = links[s - 1] if s else None
                behind = links[s] if s < len(links) else None
                once += _there(stages[s].figures.received, before) + seconds[s].send_back
                once += _back(stages[s].figures.sent, behind) + seconds[s].send
            for turn, slot in enumerate(slots):
                own = len(range(turn, setting.num_microbatches, len(slots)))
                busy[slot] = busy.get(slot, 0.0) + own * once
        return max(busy.values())


class Spot(NamedTuple):
    """The ranks of one stage, as far as its figures depend on them."""

    problem: Problem
    replicas: int
    own_microbatches: int
    in_flight: int
    """0 where only orders say it; then all stash is kept and only lasting bytes are counted."""
    groups: frozenset[int]

    @property
    def speed(self) -> float:
        """The slowest rank's speed while all ranks compute."""
        cluster = self.problem.cluster
        speeds = [cluster.gpus[group].speed for group in self.groups] if cluster.gpus else [1.0]
        return min(speeds) / cluster.compute_slowdown

    def kept(self, figures: StageFigures) -> OnRanks:
        """The stage where each layer keeps its stash, without bytes that move."""
        once = figures.forward / self.speed, figures.backward / self.speed
        return self._placed(figures, once, 0, 0, ("keep",) * len(figures.members), hosted=False)

    def changed(self, figures: StageFigures, own: PolicyFigures, hosted: bool) -> OnRanks:
        """The stage under one combination of policies."""
        kept = moving(figures, self.problem.training)
        first = own.first_backward if kept.made else own.workspace
        transient = dict.fromkeys("FB", own.workspace + figures.relayed)
        first += figures.relayed
        moved = kept._replace(stash=own.stash, transient=transient, first=first)
        device = classic_peak(moved, self.in_flight, self.own_microbatches)
        host = self.in_flight * own.host
        once = own.forward, own.backward
        return self._placed(figures, once, device, host, own.policies, hosted=hosted)

    def moved(self, figures: StageFigures, own: PolicyFigures, hosted: bool) -> OnRanks:
        """The stage under one combination of policies, without bytes that move."""
        kept = moving(figures, self.problem.training)
        passing = figures.relayed
        whole = dict.fromkeys("FB", own.workspace + passing)
        whole["I"] = own.input_grad_workspace + passing
        moved = kept._replace(stash=own.stash, transient={**kept.transient, **whole})
        once = own.forward, own.backward
        placed = self._placed(figures, once, 0, 0, own.policies, hosted=hosted)
        return placed._replace(moved=moved, stash_on_host=own.host)

    def _placed(
        self,
        figures: StageFigures,
        once: tuple[float, float],
        device: int,
        host: int,
        policies: tuple[str, ...],
        *,
        hosted: bool,
    ) -> OnRanks:
        training, cluster, speed = self.problem.training, self.problem.cluster, self.speed
        stepped = shard(figures.trained, training, self.replicas)
        state = stepped * state_per_element(training)
        shared = (figures.update - figures.unshared) / (self.replicas if training.zero1 else 1)
        update = (shared + figures.unshared) / speed
        if hosted:
            update += 2 * state / _host(cluster).bandwidth
        lasts = lasting(figures, training, self.replicas, self.own_microbatches, hosted)
        return OnRanks(
            figures=figures,
            forward=once[0],
            backward=once[1],
            weight_grad=figures.weight_grad / speed,
            split=figures.split / speed,
            update=update,
            peak=lasts + device + cluster.reserve_bytes,
            host=host + (state if hosted else 0),
            policies=policies,
            hosted=hosted,
            replicas=self.replicas,
            moved=moving(figures, training),
        )

    def fits(self, one: OnRanks) -> bool:
        """Whether the stage has room on its smallest GPU and on the host."""
        cluster = self.problem.cluster
        return one.peak <= memory_of(cluster, self.groups) and host_fits(cluster, one.host)

    def better(self, one: OnRanks, other: OnRanks) -> bool:
        """Whether state on the host (`one`) is taken before state on the device."""
        if self.fits(one) and self.fits(other):
            return self._busy(one) < self._busy(other) * (1 - SAME)
        if self.fits(one) or self.fits(other):
            return self.fits(one)
        return one.peak < other.peak

    def _busy(self, one: OnRanks) -> float:
        return self.own_microbatches * (one.forward + one.backward) + one.update


def _effort(one: OnRanks) -> tuple[int, int]:
    return one.host, sum(policy != "keep" for policy in one.policies)


def _best_ones(choices: Sequence[OnRanks]) -> list[OnRanks]:
    """The choices of one stage that no other one equals or beats in all seconds and bytes."""

    def figures(one: OnRanks) -> tuple[float, ...]:
        sizes = one.peak, one.host, one.stash_on_host, one.moved.stash
        work = [one.moved.transient[op] for op in "FBIW"]
        return (one.forward, one.backward, one.update, *sizes, *work)

    rows = [figures(one) for one in choices]
    return [
        one
        for at, (one, own) in enumerate(zip(choices, rows, strict=True))
        if not any(
            all(a <= b for a, b in zip(other, own, strict=True)) and (other != own or place < at)
            for place, other in enumerate(rows)
        )
    ]


def memory_of(cluster: Cluster, groups: frozenset[int]) -> int:
    """Bytes on the smallest GPU among some kinds."""
    if not cluster.gpus:
        return cluster.memory_bytes
    return min(cluster.gpus[group].memory_bytes for group in groups)


def host_fits(cluster: Cluster, on_host: int) -> bool:
    """Whether a rank's share of host memory has room."""
    whole = cluster.host_memory_bytes
    return whole is None or on_host <= whole // cluster.gpus_per_node


def _host(cluster: Cluster) -> HostLink:
    assert cluster.host_link is not None
    return cluster.host_link


def _slowest(cluster: Cluster, kinds: frozenset[str]) -> Link | None:
    """The link with the least bandwidth, then with the highest latency."""
    known = links_of(cluster)
    links = [known[kind] for kind in sorted(kinds)]
    return min(links, key=lambda link: (link.bandwidth, -link.latency), default=None)


def _there(crossing: Crossing, link: Link | None) -> float:
    if link is None:
        return 0.0
    return crossing.tensors * link.latency + crossing.bytes / link.bandwidth


def _back(crossing: Crossing, link: Link | None) -> float:
    if link is None:
        return 0.0
    return crossing.gradient_tensors * link.latency + crossing.gradient_bytes / link.bandwidth
