"""Plans whose stages have tensor degrees of their own: their price, and the best of all of them.

Written from docs/cost-model.md and docs/tensor-parallel.md. A stage has the figures that the pricer of
its own degree gives. Sends between degrees, and the GPUs of groups, are counted one by one.
"""

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from autopart.records.problem import Problem
from tests.support.witness.clock import StageSeconds, SyncSeconds
from tests.support.witness.collectives import links_of
from tests.support.witness.graphs import Crossing, keeps_pins, members_of, partitions
from tests.support.witness.optimum import Found, found_at, grid
from tests.support.witness.placements import StageSlots, gpus_of, place_on
from tests.support.witness.pricing import (
    OnRanks,
    Price,
    Pricer,
    Setting,
    compiled,
    host_fits,
    stage_seconds,
)
from tests.support.witness.ties import ties_of


class DegreesPricer:
    """Prices for the problem of each degree together; `problems` has one GPU per rank at 1."""

    def __init__(self, problems: Mapping[int, Problem], *, split: bool) -> None:
        self.problems, self.split = problems, split
        self.whole = problems[1]
        self.pricers = {degree: Pricer(problem) for degree, problem in problems.items()}

    def price(
        self, setting: Setting, degrees: Sequence[int], first: StageSlots, cuts: Sequence[int]
    ) -> Price:
        """The price of a partition whose groups start at the GPUs in `first`."""
        ready, cluster = compiled(setting), self.whole.cluster
        stages: list[OnRanks] = []
        for s, degree in enumerate(degrees):
            place = self._place(degree, degrees, first)
            pricer = self.pricers[degree]
            own = pricer._on_ranks(setting, ready, place, s, cuts[s], cuts[s + 1])  # pyright: ignore[reportPrivateUsage]
            stages.append(own)
        fits = all(
            one.peak <= cluster.memory_bytes and host_fits(cluster, one.host) for one in stages
        )
        sends = [
            self._sends(degrees[s : s + 2], first[s : s + 2], stages[s : s + 2])
            for s in range(len(stages) - 1)
        ]
        seconds = self._seconds(stages, sends)
        step = ready.steps.makespan(
            seconds,
            self._syncs(setting, degrees, first, cuts),
            overlap=cluster.sends_overlap,
            rendezvous=cluster.sends == "rendezvous",
        )
        return Price(
            step, float("nan"), 0.0, tuple(one.peak for one in stages), fits, tuple(stages)
        )

    def _place(self, degree: int, degrees: Sequence[int], first: StageSlots):
        """The stages among groups of one degree. Others stand on the first groups, and do not count."""
        groups = [
            tuple(gpu // degree for gpu in own) if t == degree else tuple(range(len(own)))
            for own, t in zip(first, degrees, strict=True)
        ]
        return place_on(gpus_of(self.problems[degree].cluster), groups)

    def _seconds(
        self, stages: Sequence[OnRanks], sends: Sequence[tuple[float, float]]
    ) -> list[StageSeconds]:
        fixed = self.whole.cluster.action_overhead
        return [
            stage_seconds(
                one, sends[s][0] if s < len(sends) else 0.0, sends[s - 1][1] if s else 0.0, fixed
            )
            for s, one in enumerate(stages)
        ]

    def _sends(
        self, degrees: Sequence[int], first: StageSlots, stages: Sequence[OnRanks]
    ) -> tuple[float, float]:
        """Seconds for activations and for gradients over one cut."""
        ahead, behind = degrees
        # A rank of the receiving group needs a whole value, or its slice of one.
        pairs = [
            (a, b)
            for a in range(ahead)
            for b in range(behind)
            if a * behind < (b + 1) * ahead and b * ahead < (a + 1) * behind
        ]
        link = self._link(pairs, first, degrees)
        there: Crossing = stages[1].figures.received
        back: Crossing = stages[0].figures.sent
        copies = Counter(b * ahead // behind for b in range(behind)).most_common(1)[0][1]
        copies_back = Counter(a * behind // ahead for a in range(ahead)).most_common(1)[0][1]
        senders = Counter(a for a, _ in pairs).most_common(1)[0][1]
        receivers = Counter(b for _, b in pairs).most_common(1)[0][1]
        many = max(senders, receivers)
        messages = (many, many) if self.split else (copies, copies_back)
        return (
            there.tensors * messages[0] * link.latency + there.bytes * copies / link.bandwidth,
            back.gradient_tensors * messages[1] * link.latency
            + back.gradient_bytes * copies_back / link.bandwidth,
        )

    def _link(self, pairs: Sequence[tuple[int, int]], first: StageSlots, degrees: Sequence[int]):
        """The slowest link between the GPUs of the two stages."""
        gpus, kinds = gpus_of(self.whole.cluster), set[str]()
        for one, other in zip(*first, strict=True):
            for a, b in pairs:
                here, there = one + a, other + b
                if here // gpus.per_node == there // gpus.per_node:
                    kinds.add("intra")
                else:
                    kinds.add("inter" if gpus.rail(here) == gpus.rail(there) else "off rail")
        known = links_of(self.whole.cluster)
        return min(
            (known[kind] for kind in sorted(kinds)),
            key=lambda link: (link.bandwidth, -link.latency),
        )

    def _syncs(
        self, setting: Setting, degrees: Sequence[int], first: StageSlots, cuts: Sequence[int]
    ) -> list[SyncSeconds]:
        """Each stage's sync among groups of its degree, and each tied parameter's."""
        ready = compiled(setting)
        tied: list[tuple[int, SyncSeconds]] = []
        own: list[SyncSeconds] = []
        for degree in sorted(set(degrees)):
            pricer, place = self.pricers[degree], self._place(degree, degrees, first)
            stages = pricer._all_on_ranks(setting, ready, place, cuts)  # pyright: ignore[reportPrivateUsage]
            found = pricer._syncs(setting, ready, place, cuts, stages)  # pyright: ignore[reportPrivateUsage]
            here = {ready.seen[s] for s, t in enumerate(degrees) if t == degree}
            slots = {slot for ranks in here for slot in ranks}
            own += [sync for sync in found if sync.ranks in here]
            ties = ties_of(self.problems[degree], pricer.facts, setting.slots, place, cuts)
            names = [one.name for one in self.whole.graph.tied]
            lasting = [names.index(tie.parameter.name) for tie in ties if tie.seconds > 0.0]
            several = [sync for sync in found if sync.ranks not in set(ready.seen)]
            tied += [
                (at, sync)
                for at, sync in zip(lasting, several, strict=True)
                if slots.issuperset(sync.ranks)
            ]
        own.sort(key=lambda sync: sync.ranks)
        last = [sync for _, sync in sorted(tied, key=lambda pair: pair[0])]
        return last + own if self.whole.training.sync == "deepspeed" else own + last


def first_gpus(gpus: int, degrees: Sequence[int], replicas: int) -> list[StageSlots]:
    """The first GPUs of the groups: stages side by side, and pipelines, larger groups first."""
    order = sorted(range(len(degrees)), key=lambda s: (-degrees[s], s))
    by_stage = [(s, r) for s in order for r in range(replicas)]
    by_pipeline = [(s, r) for r in range(replicas) for s in order]
    found: list[StageSlots] = []
    at, starts = 0, dict[tuple[int, int], int]()
    for s, r in by_stage:
        while at % degrees[s]:
            at += 1
        starts[s, r] = at
        at += degrees[s]
    if at <= gpus:
        found.append(_by_stage(starts, degrees, replicas))
    free, starts = set(range(gpus)), dict[tuple[int, int], int]()
    for s, r in by_pipeline:
        groups = (set(range(g, g + degrees[s])) for g in range(0, gpus, degrees[s]))
        group = next((own for own in groups if own <= free), None)
        if group is None:
            return found
        free -= group
        starts[s, r] = min(group)
    other = _by_stage(starts, degrees, replicas)
    return found if other in found else [*found, other]


def _by_stage(
    starts: Mapping[tuple[int, int], int], degrees: Sequence[int], replicas: int
) -> StageSlots:
    return tuple(tuple(starts[s, r] for r in range(replicas)) for s in range(len(degrees)))


def settings_of_degrees(
    problem: Problem, degrees: Sequence[int]
) -> Iterator[tuple[Setting, tuple[int, ...]]]:
    """Every schedule with every number of stages and replicas and every list of degrees, at least two."""
    demands, count = problem.demands, problem.num_microbatches
    gpus = problem.cluster.num_nodes * problem.cluster.gpus_per_node
    for stages in range(2, len(problem.graph.layers) + 1):
        if demands.num_stages not in (None, stages):
            continue
        for own in itertools.product(degrees, repeat=stages):
            for replicas in range(1, gpus // sum(own) + 1):
                if len(set(own)) == 1 or count % replicas:
                    continue
                if demands.num_replicas in (None, replicas):
                    slots = grid(tuple(range(stages)), replicas)
                    yield from ((Setting(name, slots, count), own) for name in demands.schedules)


def optimum_of_degrees(problems: Mapping[int, Problem], *, split: bool) -> Found | None:
    """The best plan with several degrees; None where no plan fits. `problems` has one GPU per rank at 1."""
    pricer, whole = DegreesPricer(problems, split=split), problems[1]
    gpus = whole.cluster.num_nodes * whole.cluster.gpus_per_node
    best: Found | None = None
    for setting, degrees in settings_of_degrees(whole, sorted(problems)):
        for cuts in partitions(pricer.pricers[1].facts, len(degrees)):
            if not keeps_pins(pricer.pricers[1].facts, whole.demands, cuts):
                continue
            if not one_degree_for_copies(pricer.pricers[1], cuts, degrees):
                continue
            for first in first_gpus(gpus, degrees, len(setting.slots[0])):
                price = pricer.price(setting, degrees, first, cuts)
                if price.fits and (best is None or price.step < best.value):
                    best = found_at(whole, setting, first, cuts, price)
    return best


def one_degree_for_copies(pricer: Pricer, cuts: Sequence[int], degrees: Sequence[int]) -> bool:
    """Whether stages with a copy of one tied parameter have one degree."""
    return all(
        len(
            {
                degree
                for s, degree in enumerate(degrees)
                if set(holders).intersection(members_of(cuts[s], cuts[s + 1]))
            }
        )
        <= 1
        for holders in pricer.facts.tied
    )
