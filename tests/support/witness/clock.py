"""The witness's simulator: a step's makespan, one action after the other."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from tests.support.witness.lending import moves_of
from tests.support.witness.orders import Orders, awaited_actions, round_of_actions


class StageSeconds(NamedTuple):
    """One stage's seconds on its ranks."""

    ops: Mapping[str, float]
    """Seconds for F, B, I and W with the action overhead."""
    send: float
    """Seconds to send activations to the next stage."""
    send_back: float
    """Seconds to send gradients to the previous stage."""
    update: float
    fixed: float = 0.0
    """The action overhead in each of the ops."""
    lend: float = 0.0
    """Seconds to lend one microbatch's stash, or to take it back."""


class Beside(NamedTuple):
    """Buckets of a sync that run beside a stage's last backward, and beside its first forward."""

    stage: int
    buckets: int
    sum: float = 0.0
    """Seconds of one bucket's sum; 0 where sums wait for all actions."""
    gather: float = 0.0
    """Seconds of one bucket's gather; 0 where gathers wait for all actions."""
    slowdown: float = 0.0


class SyncSeconds(NamedTuple):
    """One gradient sync."""

    ranks: tuple[int, ...]
    seconds: float | None
    """Seconds behind all actions; None where nothing is left."""
    beside: Beside | None = None


class Free(NamedTuple):
    """When ranks and links are free, in seconds."""

    ranks: list[float]
    links: list[float]


MOST_STEPS, TURNS = 96, 12
"""Steps that are played for a period, and the last ones whose growth counts."""


def _grown(played: Sequence[Sequence[float]], steps: int) -> list[float]:
    """Seconds by which each rank's time has grown over the last steps."""
    return [late - early for late, early in zip(played[-1], played[-1 - steps], strict=True)]


def _is_alike(grown: Sequence[float]) -> bool:
    """Whether all ranks have grown alike: then the next step is the same."""
    return max(grown) - min(grown) <= 1e-12 * max(grown)


class Steps:
    """Orders, sorted once so that each action stands behind all that it waits for."""

    def __init__(self, orders: Orders, stage_ranks: Sequence[Sequence[int]]) -> None:
        orders, beside = moves_of(orders)
        needs = awaited_actions(orders, stage_ranks)
        rounds = round_of_actions(orders, needs)
        turn = sorted(rounds, key=lambda action: (rounds[action], action))
        number = {action: at for at, action in enumerate(turn)}
        takers = {giver: taker for taker, giver in needs.items()}
        links: dict[tuple[int, int], int] = {}
        self.stage_ranks = stage_ranks
        self.num_ranks = len(orders)
        self.rows: list[tuple[int, int, str, int, int]] = []
        """Rank, stage, op, number of the awaited action or -1, link to the taker or -1."""
        for rank, at in turn:
            stage, op, _ = orders[rank][at]
            giver, taker = needs.get((rank, at)), takers.get((rank, at))
            link = -1 if taker is None else links.setdefault((rank, taker[0]), len(links))
            self.rows.append((rank, stage, op, number[giver] if giver else -1, link))
        self.moving = frozenset(number[action] for action in beside)
        """Rows with a move of stash beside them."""
        self.num_links = len(links)
        self.asked: dict[int, list[int]] = {}
        """Rows of the messages for which a rank asks right before a row, under rendezvous sends."""
        asking: dict[int, tuple[int, int]] = {}
        # Backwards over each link: a message is asked for no later than any that follows it.
        for giver, taker in sorted(takers.items(), reverse=True):
            link = self.rows[number[giver]][4]
            asking[link] = min(asking.get(link, taker), taker)
            self.asked.setdefault(number[asking[link]], []).insert(0, number[giver])
        self.work: dict[int, dict[tuple[int, str], int]] = {}
        """For each rank, how often it runs each stage's op."""
        for rank, order in enumerate(orders):
            counts = self.work.setdefault(rank, {})
            for stage, op, _ in order:
                counts[stage, op] = counts.get((stage, op), 0) + 1

    def own_work(self, stages: Sequence[StageSeconds]) -> float:
        """Seconds that the busiest rank computes and updates. No step is shorter."""
        updates = [0.0] * self.num_ranks
        for stage, ranks in enumerate(self.stage_ranks):
            for rank in ranks:
                updates[rank] += stages[stage].update
        return max(
            updates[rank] + sum(n * stages[stage].ops[op] for (stage, op), n in counts.items())
            for rank, counts in self.work.items()
        )

    def makespan(
        self,
        stages: Sequence[StageSeconds],
        syncs: Sequence[SyncSeconds],
        *,
        overlap: bool,
        rendezvous: bool = False,
    ) -> float:
        """Seconds from the first action's start to the end of the last update.

        Rendezvous sends must overlap.
        """
        start = Free([0.0] * self.num_ranks, [0.0] * self.num_links)
        return max(self._after(start, stages, syncs, overlap=overlap, rendezvous=rendezvous).ranks)

    def period(
        self,
        stages: Sequence[StageSeconds],
        syncs: Sequence[SyncSeconds],
        *,
        overlap: bool,
        rendezvous: bool = False,
    ) -> float:
        """Seconds from step to step, where each rank starts its next step behind its own update.

        Steps are played until the last `TURNS` steps grew as the ones before them.
        """
        now = Free([0.0] * self.num_ranks, [0.0] * self.num_links)
        played = [now.ranks]
        for _ in range(MOST_STEPS):
            now = self._after(now, stages, syncs, overlap=overlap, rendezvous=rendezvous)
            played.append(now.ranks)
            if len(played) > 2 and _is_alike(_grown(played, 1)):
                return max(_grown(played, 1))
        return max(_grown(played, TURNS)) / TURNS

    def _after(
        self,
        before: "Free",
        stages: Sequence[StageSeconds],
        syncs: Sequence[SyncSeconds],
        *,
        overlap: bool,
        rendezvous: bool,
    ) -> "Free":
        """When a step leaves ranks and links free that started where another one left them."""
        assert overlap or not rendezvous
        # Step 1: the actions.
        longer, waits, last = self._beside(stages, syncs)
        begin = self._begin(before, waits, syncs)
        sending = self._overlapped if overlap else self._in_turn
        queue = list(before.links)
        free, ends = (self._asked_for if rendezvous else sending)(stages, longer, begin, queue)
        # Step 2: the buckets beside backwards, later stages first, and then one after the other.
        busy = list(before.ranks)
        for sync in sorted(syncs, key=lambda one: -one.beside.stage if one.beside else 0):
            if sync.beside is not None and sync.beside.sum > 0.0:
                ended = self._buckets(sync, sync.beside, stages, last, ends, busy)
                for rank in sync.ranks:
                    busy[rank] = ended
        free = [max(pair) for pair in zip(free, busy, strict=True)]
        # Step 3: the other syncs in their order, each once all its ranks are ready.
        for sync in syncs:
            if sync.seconds is None:
                continue
            end = max(free[rank] for rank in sync.ranks) + sync.seconds
            for rank in sync.ranks:
                free[rank] = end
        # Step 4: the updates.
        for stage, ranks in enumerate(self.stage_ranks):
            for rank in ranks:
                free[rank] += stages[stage].update
        return Free(free, queue)

    def _begin(
        self, before: "Free", waits: Sequence[float], syncs: Sequence[SyncSeconds]
    ) -> list[float]:
        """When each rank begins: where it gathers weights, behind the updates of all their replicas."""
        begin = list(before.ranks)
        for sync in syncs:
            for rank in sync.ranks:
                beside = sync.beside if waits[rank] else None
                if beside is None or not beside.gather:
                    continue
                if self.rows[self._first(rank)][1] == beside.stage:
                    begin[rank] = max(before.ranks[other] for other in sync.ranks)
        return [start + wait for start, wait in zip(begin, waits, strict=True)]

    def _first(self, rank: int) -> int:
        return next(at for at, row in enumerate(self.rows) if row[0] == rank)

    def _beside(
        self, stages: Sequence[StageSeconds], syncs: Sequence[SyncSeconds]
    ) -> tuple[dict[int, float], list[float], dict[tuple[int, int], int]]:
        """Seconds by which rows take longer, when each rank begins, and the last row of a stage on
        a rank that makes gradients."""
        last = {
            (stage, rank): at for at, (rank, stage, op, _, _) in enumerate(self.rows) if op in "BW"
        }
        first: dict[int, int] = {}
        for at, (rank, *_) in enumerate(self.rows):
            first.setdefault(rank, at)
        longer: dict[int, float] = {}
        begin = [0.0] * self.num_ranks
        for sync in syncs:
            for rank in sync.ranks if sync.beside else ():
                assert sync.beside is not None
                stage, buckets, tau, gather, slowdown = sync.beside
                at = last.get((stage, rank))
                if at is None:
                    continue
                compute = self._compute(stages, at)
                longer[at] = slowdown * min(compute, (buckets - 1) * tau)
                if self.rows[first[rank]][1] == stage:
                    # Each part of the forward needs its bucket of weights.
                    now = 0.0
                    forward = stages[stage].ops["F"] - stages[stage].fixed
                    for bucket in range(1, buckets + 1):
                        now = max(now, bucket * gather) + forward / buckets
                    begin[rank] = now - forward
        return longer, begin, last

    def _compute(self, stages: Sequence[StageSeconds], at: int) -> float:
        """Seconds that a row computes, without its action overhead."""
        _, stage, op, _, _ = self.rows[at]
        return stages[stage].ops[op] - stages[stage].fixed

    def _buckets(
        self,
        sync: SyncSeconds,
        beside: Beside,
        stages: Sequence[StageSeconds],
        last: Mapping[tuple[int, int], int],
        ends: Sequence[float],
        busy: Sequence[float],
    ) -> float:
        """The end of a stage's last bucket: each goes out when all ranks have made its gradients."""
        rows = [last[beside.stage, r] for r in sync.ranks if (beside.stage, r) in last]
        now = max(busy[rank] for rank in sync.ranks)
        for left in reversed(range(beside.buckets)):
            for at in rows:
                compute = self._compute(stages, at)
                compute += beside.slowdown * min(compute, (beside.buckets - 1) * beside.sum)
                now = max(now, ends[at] - compute * left / beside.buckets)
            now += beside.sum
        return now

    def _overlapped(
        self,
        stages: Sequence[StageSeconds],
        longer: Mapping[int, float],
        begin: Sequence[float],
        queue: list[float],
    ) -> tuple[list[float], list[float]]:
        free = list(begin)
        ends = [0.0] * len(self.rows)
        arrives = [0.0] * len(self.rows)
        moved = [0.0] * self.num_ranks
        for number, (rank, stage, op, giver, link) in enumerate(self.rows):
            # A move beside the action before is over first. One beside this action starts now.
            now = max(free[rank], moved[rank])
            if number in self.moving:
                moved[rank] = now + stages[stage].lend
            if giver >= 0 and arrives[giver] > now:
                now = arrives[giver]
            own = stages[stage]
            now += own.ops[op] + longer.get(number, 0.0)
            free[rank] = ends[number] = now
            if link >= 0:
                # The send leaves when its link is free.
                leaves = max(now, queue[link]) + (own.send if op == "F" else own.send_back)
                queue[link] = arrives[number] = leaves
        return free, ends

    def _asked_for(
        self,
        stages: Sequence[StageSeconds],
        longer: Mapping[int, float],
        begin: Sequence[float],
        queue: list[float],
    ) -> tuple[list[float], list[float]]:
        """Rendezvous sends: one starts when it is made, its link is free and its rank's peer asks."""
        free = list(begin)
        ends, arrives = [0.0] * len(self.rows), [0.0] * len(self.rows)
        for number, (rank, stage, op, giver, _) in enumerate(self.rows):
            asks = free[rank]
            for message in self.asked.get(number, ()):
                _, from_stage, from_op, _, link = self.rows[message]
                own = stages[from_stage]
                seconds = own.send if from_op == "F" else own.send_back
                queue[link] = max(ends[message], queue[link], asks) + seconds
                arrives[message] = queue[link]
            begins = max(asks, arrives[giver]) if giver >= 0 else asks
            free[rank] = ends[number] = begins + stages[stage].ops[op] + longer.get(number, 0.0)
        return free, ends

    def _in_turn(
        self,
        stages: Sequence[StageSeconds],
        longer: Mapping[int, float],
        begin: Sequence[float],
        queue: list[float],
    ) -> tuple[list[float], list[float]]:
        """Blocking sends: the sender is busy behind its action, the receiver ahead of the next one."""
        free = list(begin)
        made, takes = [0.0] * len(self.rows), [0.0] * len(self.rows)
        ends = [0.0] * len(self.rows)
        for number, (rank, stage, op, giver, link) in enumerate(self.rows):
            now = free[rank]
            if giver >= 0:
                now = max(now, made[giver]) + takes[giver]
            own = stages[stage]
            now += own.ops[op] + longer.get(number, 0.0)
            if link >= 0:
                made[number], takes[number] = now, own.send if op == "F" else own.send_back
                now += takes[number]
            free[rank] = ends[number] = now
        return free, ends
