"""WPipe: two groups of stages share the ranks, and only the first group computes with older weights.

With k stages on k / 2 ranks, rank r has stage r of the first group and stage r + k / 2 of the second.

    second group   a batch starts once the batch before has run backward: no delay, one version
    first group    forwards of the next batch fill the time in which the second group waits for
                   that: one update of delay, two versions

The rule is that of Yang et al. (Group-based Interleaved Pipeline Parallelism, ICLR 2022), as far as
the abstract says it. The order within it is ours: each rank runs its first ready action, in the
sequence of `_FIRST`. With equal stages ranks are idle for at most 5 % of a batch, on up to 8 ranks.
"""

from typing import NamedTuple

from autopart.schedules.actions import Action, Op, Schedule

_FIRST: tuple[tuple[int, Op], ...] = ((1, "B"), (1, "F"), (0, "B"), (0, "F"))
"""Group and action, in the sequence in which a rank takes them."""


def most_in_flight(num_stages: int, stage: int) -> int:
    """The microbatches that a stage may have in flight: 1F1B's, and k / 2 more in the first group."""
    half = num_stages // 2
    return num_stages - stage + (half if stage < half else 0)


def wpipe_orders(num_ranks: int, num_microbatches: int, num_updates: int) -> Schedule:
    """Each rank's actions for all updates of so many microbatches, without the updates."""
    played = _Play(num_ranks, num_microbatches, num_updates * num_microbatches)
    return tuple(map(tuple, played.run()))


class _Play(NamedTuple):
    """A run in which each action takes one slot, on ranks that take the first ready action."""

    num_ranks: int
    per_update: int
    num_total: int

    def run(self) -> list[list[Action]]:
        """The actions of each rank, in their sequence."""
        orders: list[list[Action]] = [[] for _ in range(self.num_ranks)]
        done = {op: [0] * (2 * self.num_ranks) for op in ("F", "B")}
        while done["B"][0] < self.num_total:
            # Results are there from the next slot on, so all ranks choose before any counts.
            chosen = [self._next(rank, done["F"], done["B"]) for rank in range(self.num_ranks)]
            for order, action in zip(orders, chosen, strict=True):
                if action is not None:
                    order.append(action)
                    done[action.op][action.stage] += 1
        return orders

    def _next(self, rank: int, forwards: list[int], backwards: list[int]) -> Action | None:
        for group, op in _FIRST:
            stage = rank + group * self.num_ranks
            is_ready = self._is_ready_forward if op == "F" else self._is_ready_backward
            if is_ready(stage, forwards, backwards):
                return Action(stage, op, (forwards if op == "F" else backwards)[stage])
        return None

    def _is_ready_forward(self, stage: int, forwards: list[int], backwards: list[int]) -> bool:
        own, back = forwards[stage], backwards[stage]
        delay = 1 if stage < self.num_ranks else 0
        return (
            own < self.num_total
            and (stage == 0 or forwards[stage - 1] > own)
            and back >= self.per_update * (own // self.per_update - delay)
            and own - back < most_in_flight(2 * self.num_ranks, stage)
        )

    def _is_ready_backward(self, stage: int, forwards: list[int], backwards: list[int]) -> bool:
        own = backwards[stage]
        later = forwards if stage == 2 * self.num_ranks - 1 else backwards
        from_stage = min(stage + 1, 2 * self.num_ranks - 1)
        return own < forwards[stage] and later[from_stage] > own
