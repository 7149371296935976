"""The witness's simulator: a step's makespan, one action after the other."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

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


class SyncSeconds(NamedTuple):
    """One gradient sync."""

    ranks: tuple[int, ...]
    seconds: float


class Steps:
    """Orders, sorted once so that each action stands behind all that it waits for."""

    def __init__(self, orders: Orders, stage_ranks: Sequence[Sequence[int]]) -> None:
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
        self.num_links = len(links)
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
        self, stages: Sequence[StageSeconds], syncs: Sequence[SyncSeconds], *, overlap: bool
    ) -> float:
        """Seconds from the first action's start to the end of the last update."""
        # Step 1: the actions.
        free = self._overlapped(stages) if overlap else self._in_turn(stages)
        # Step 2: the syncs in their order, each once all its ranks are ready.
        for sync in syncs:
            end = max(free[rank] for rank in sync.ranks) + sync.seconds
            for rank in sync.ranks:
                free[rank] = end
        # Step 3: the updates.
        for stage, ranks in enumerate(self.stage_ranks):
            for rank in ranks:
                free[rank] += stages[stage].update
        return max(free)

    def _overlapped(self, stages: Sequence[StageSeconds]) -> list[float]:
        free, queue = [0.0] * self.num_ranks, [0.0] * self.num_links
        arrives = [0.0] * len(self.rows)
        for number, (rank, stage, op, giver, link) in enumerate(self.rows):
            now = free[rank]
            if giver >= 0 and arrives[giver] > now:
                now = arrives[giver]
            own = stages[stage]
            now += own.ops[op]
            free[rank] = now
            if link >= 0:
                # The send leaves when its link is free.
                leaves = max(now, queue[link]) + (own.send if op == "F" else own.send_back)
                queue[link] = arrives[number] = leaves
        return free

    def _in_turn(self, stages: Sequence[StageSeconds]) -> list[float]:
        """Blocking sends: the sender is busy behind its action, the receiver ahead of the next one."""
        free = [0.0] * self.num_ranks
        made, takes = [0.0] * len(self.rows), [0.0] * len(self.rows)
        for number, (rank, stage, op, giver, link) in enumerate(self.rows):
            now = free[rank]
            if giver >= 0:
                now = max(now, made[giver]) + takes[giver]
            own = stages[stage]
            now += own.ops[op]
            if link >= 0:
                made[number], takes[number] = now, own.send if op == "F" else own.send_back
                now += takes[number]
            free[rank] = now
        return free
