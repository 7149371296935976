"""A schedule's actions in rounds: an action waits for earlier rounds only."""

import numpy as np

from autopart.schedules.encoding import Actions, IntArray, refuse_deadlock


def work_order(actions: Actions) -> list[int]:
    """The numbers of the actions, round after round; within a round, earlier ranks first."""
    return np.argsort(rounds(actions), kind="stable").tolist()


def rounds(actions: Actions) -> IntArray:
    """The round that each action runs in, counted from 1; raises ScheduleError on a deadlock.

    In each round every rank runs one action, or waits. An action runs once two others are done in
    earlier rounds: its predecessor on the rank, and the action that it awaits. An overlapped pair
    awaits two.
    """
    needs, pair = actions.need.tolist(), actions.begins_pair
    seconds = actions.second if len(actions.pairs) else []
    unknown = -1
    # The last two entries stand for `nothing`, which is there from the start, and `never`.
    done_in = [unknown] * actions.num_actions + [0, unknown]
    at, stops = list(actions.first[:-1]), actions.first[1:]
    waiting = [-1] * (actions.num_actions + 2)
    last = [0] * len(at)
    ranks = list(range(len(at)))
    while ranks:
        rank = ranks.pop()
        now = last[rank]
        for i in range(at[rank], stops[rank]):
            # Step 1: a rank that must wait notes itself at the action that it awaits.
            need = needs[i]
            there = done_in[need]
            if pair[i] and there != unknown:
                also = done_in[seconds[i]]
                if also == unknown or also > there:
                    need, there = seconds[i], also
            if there == unknown:
                waiting[need] = rank
                at[rank] = i
                break
            # Step 2: the action runs one round after the later of the two that it follows.
            now = done_in[i] = 1 + (now if now > there else there)
            # Step 3: the rank that waits for this action may go on.
            if waiting[i] >= 0:
                ranks.append(waiting[i])
        else:
            at[rank] = stops[rank]
        last[rank] = now
    refuse_deadlock(actions.schedule, [a - f for a, f in zip(at, actions.first, strict=False)])
    return np.array(done_in[: actions.num_actions], dtype=np.int64)
