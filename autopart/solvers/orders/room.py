"""The room for stash on one rank, by the banker's rule in list_scheduling.py.

It counts the most that a microbatch keeps on a stage, from F to the end of its backward.
"""

from autopart.solvers.orders.order_times import OrderTimes


class Room:
    """The stash of one rank: its orders stay free of deadlock, with actions by number."""

    def __init__(self, times: OrderTimes, rank: int, room: int) -> None:
        task, self.count = times.task, times.task.num_microbatches
        self.room, self.total = room, 0
        self.most = [task.most_kept(s) for s in range(len(task.stages))]
        self.single = sum(rank in own for own in task.stage_ranks) == 1
        self.kept: dict[int, int] = {}
        self.claim: dict[int, int] = {}
        """Bytes that each unfinished microbatch will add."""
        for stage in range(len(task.stages)):
            for m in range(self.count):
                if times.rank[3 * (stage * self.count + m)] == rank:
                    self.claim[m] = self.claim.get(m, 0) + self.most[stage]

    def admits(self, forward: int) -> bool:
        """Whether all microbatches can still finish behind a forward."""
        stage, microbatch = divmod(forward // 3, self.count)
        stash = self.most[stage]
        newer = self.total + stash
        if newer > self.room:
            return False
        if self.single:
            return True
        for m in sorted(self.claim):
            if m > microbatch:
                break
            if self.claim[m] - (stash if m == microbatch else 0) + newer > self.room:
                return False
            newer -= self.kept.get(m, 0)
        return True

    def take(self, x: int, *, ends: bool) -> None:
        """Count an action; `ends` says whether it frees the stash."""
        stage, m = divmod(x // 3, self.count)
        stash = self.most[stage]
        if x % 3 == 0:
            self.total += stash
            self.kept[m] = self.kept.get(m, 0) + stash
            self.claim[m] -= stash
        elif ends:
            self.total -= stash
            self.kept[m] = self.kept.get(m, 0) - stash
            if not self.claim.get(m) and not self.kept[m]:
                self.claim.pop(m, None)
                del self.kept[m]
