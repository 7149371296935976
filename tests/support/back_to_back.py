"""Steps back to back, played for a long time: a witness for the period that shares no code with it."""

from autopart.schedules.actions import Action, PairedForward, rank_of
from tests.support.steps import Step, needs

TURNS = 12
"""Steps over which the growth is taken. Whole cycles of one to four steps go into it."""

STEPS = 60
"""Steps that are played."""


class _Play:
    """Ranks run `STEPS` copies of their orders, each behind the update of the copy before."""

    def __init__(self, step: Step) -> None:
        self.step = step
        every = [action for order in step.schedule for action in order]
        self.begins = {(a.stage, a.microbatch): (a.op,) for a in every if a.op in "BI"}
        self.every = set(every)
        self.home = {a: rank for rank, order in enumerate(step.schedule) for a in order}
        self.there: dict[tuple[int, Action], float] = {}
        self.wire: dict[tuple[int, int], float] = {}
        self.free = [0.0] * len(step.schedule)

    def one_step(self, number: int) -> None:
        """Run all actions of a step, then its syncs and updates."""
        step, at = self.step, [0] * len(self.step.schedule)
        left = len(self.every)
        while left:
            for rank, order in enumerate(step.schedule):
                while at[rank] < len(order):
                    # An overlapped pair runs as one.
                    both = isinstance(order[at[rank]], PairedForward)
                    ready = order[at[rank] : at[rank] + 1 + both]
                    if not self._runs(number, rank, ready):
                        break
                    at[rank] += len(ready)
                    left -= len(ready)
        for sync in step.syncs:
            end = max(self.free[rank] for rank in sync.ranks) + sync.time
            for rank in sync.ranks:
                self.free[rank] = end
        for stage, own in zip(step.stages, step.ranks, strict=True):
            for rank in own:
                self.free[rank] += stage.update_time

    def _runs(self, number: int, rank: int, together: tuple[Action, ...]) -> bool:
        """Run an action, or two together, if their remote results are there."""
        step = self.step
        remote = [
            need
            for action in together
            for need in needs(action, len(step.ranks), self.begins)  # pyright: ignore
            if self.home[need] != rank
        ]
        if any((number, need) not in self.there for need in remote):
            return False
        start = max([self.free[rank], *(self.there[number, need] for need in remote)])
        received = 0.0 if step.overlap else sum(map(self._send, remote))
        end = start + received + sum(map(self._compute, together))
        if len(together) > 1:
            saved = [step.stages[action.stage].pair_saving for action in together]
            end -= min(saved)  # pyright: ignore
        self.free[rank] = end
        for action in together:
            taker = self._taker(action)
            if taker is None or taker == rank:
                continue
            if step.overlap:
                leave = max(end, self.wire.get((rank, taker), 0.0))
                self.there[number, action] = self.wire[rank, taker] = leave + self._send(action)
            else:
                self.there[number, action] = self.free[rank]
                self.free[rank] += self._send(action)
        return True

    def _send(self, action: Action) -> float:
        stage = self.step.stages[action.stage]
        return stage.send_time if action.op == "F" else stage.send_back_time

    def _compute(self, action: Action) -> float:
        own = self.step.stages[action.stage]
        weights = own.weight_grad_time
        seconds = {
            "F": own.forward_time,
            "B": own.backward_time,
            "I": own.backward_time - weights + own.split_time,
            "W": weights,
        }
        return seconds[action.op] + self.step.overhead

    def _taker(self, action: Action) -> int | None:
        ahead = action.stage + {"F": 1, "B": -1, "I": -1}.get(action.op, len(self.step.ranks))
        if not 0 <= ahead < len(self.step.ranks):
            return None
        return rank_of(self.step.ranks[ahead], action.microbatch)


def played_period(step: Step, steps: int = STEPS) -> float:
    """Seconds by which the slowest rank's times grow from step to step, in the last ones of many."""
    play, ends = _Play(step), list[list[float]]()
    for number in range(steps):
        play.one_step(number)
        ends.append(list(play.free))
    grown = [late - early for late, early in zip(ends[-1], ends[-1 - TURNS], strict=True)]
    return max(grown) / TURNS
