"""The first gather of each action, beneath the action before it in a rank's order.

    0F0   a, b, c          while c runs, gather the first layer of the next action
    0F1   a, b, c          a is here, or on its way
    0B0   c, b, a          c is still here: 0F1 does not free it

Only an action that follows at once counts: a W needs no weights, and would have them beside its own bytes. It stays out around
overlapped pairs, which run two actions. A gather ahead takes no more bytes than the cost model counts beneath the last
layer anyhow (`cost/sharded_state.py`): those of the model's nearest layer with parameters, which may be on another stage.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from autopart.schedules.actions import Action
from autopart.schedules.state_actions import NEEDS_WEIGHTS, steps_of


class Ahead(NamedTuple):
    """A layer on a stage of the same rank."""

    stage: int
    layer: str


def gathers_ahead(
    order: Sequence[Action], layers: Mapping[int, Sequence[str]], sizes: Mapping[str, int]
) -> dict[Action, Ahead]:
    """For actions in a rank's order the layer that they leave gathered for the next one; others are left out.

    `layers` has each stage's layers with parameters, and `sizes` the parameter bytes of all such layers of the model, in
    its order.
    """
    found: dict[Action, Ahead] = {}
    names = list(sizes)
    for step, following in pairwise(steps_of(order)):
        now, then = step[0], following[0]
        if len(step) + len(following) > 2 or not {now.op, then.op} <= set(NEEDS_WEIGHTS):
            continue
        if not layers[now.stage] or not layers[then.stage]:
            continue
        # A forward runs its layers up, a backward down.
        last = layers[now.stage][-1 if now.op == "F" else 0]
        first = layers[then.stage][0 if then.op == "F" else -1]
        place = names.index(last) + (1 if now.op == "F" else -1)
        room = sizes[names[place]] if 0 <= place < len(names) else 0
        if first == last or sizes[first] <= room:
            found[now] = Ahead(then.stage, first)
    return found
