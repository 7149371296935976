"""Orders in which a pipeline takes a few microbatches at a time, on any placement.

    together = 2     rank 0  0F0 0F1 0B0 0B1 0F2 0F3 0B2 0B3
                     rank 1  1F0 1F1 1B0 1B1 1F2 1F3 1B2 1B3

No rank has more than these in flight on a stage. With one at a time, no order keeps less stash.
"""

from autopart.schedules.actions import Action, Order, Schedule, StageRanks


def in_turns(stage_ranks: StageRanks, num_microbatches: int, together: int) -> Schedule:
    """The orders of one pipeline, whose stages have one rank each, with whole backwards."""
    orders: list[Order] = []
    for rank in range(1 + max(own[0] for own in stage_ranks)):
        stages = [stage for stage, own in enumerate(stage_ranks) if own[0] == rank]
        order: list[Action] = []
        for first in range(0, num_microbatches, together):
            turn = range(first, min(first + together, num_microbatches))
            order += [Action(stage, "F", m) for stage in stages for m in turn]
            order += [Action(stage, "B", m) for stage in reversed(stages) for m in turn]
        orders.append(tuple(order))
    return tuple(orders)
