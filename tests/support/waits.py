"""An action's needs, written again: the oracle for `autopart.schedules.encoding`."""

from collections.abc import Iterable

from autopart.schedules.actions import Action, Op, Order


def predecessors(
    action: Action,
    num_stages: int,
    backwards: Iterable[Op] = ("B",),
) -> list[Action]:
    """The actions that `action` needs results from.

    `backwards` says how a backward begins: whole (B), split (I), or either.
    """
    stage, op, m = action
    if op == "F":
        return [] if stage == 0 else [Action(stage - 1, "F", m)]
    if op == "W":
        return [Action(stage, "I", m)]
    last = stage + 1 == num_stages
    after = [] if last else [Action(stage + 1, begins, m) for begins in backwards]
    return [Action(stage, "F", m), *after]


def most_in_flight(order: Order) -> int:
    """The most microbatches past F and before B or W, over all stages on the rank."""
    in_flight = most = 0
    for action in order:
        in_flight += {"F": 1, "B": -1, "W": -1}.get(action.op, 0)
        most = max(most, in_flight)
    return most
