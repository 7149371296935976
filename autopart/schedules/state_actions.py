"""Orders with their state actions written in: gathers of weights, releases, and sums of gradients.

With sharded state a rank has whole weights only for a while. Three kinds of action say when, each for
all layers of one stage, in torch's words:

    0UNSHARD        gather the weights of stage 0
    0RESHARD        release them
    0REDUCE_GRAD    sum the gradients of stage 0, and scatter them

Weights shared (zero3): each action that needs whole weights gathers and releases them for itself.

    0UNSHARD 0F0 0RESHARD  0UNSHARD 0F1 0RESHARD  0UNSHARD 0B0 0RESHARD 0REDUCE_GRAD  …

Weights whole (zero2): a stage is gathered once per step, before the rank's first action, and stays. Torch looks
ahead to the next few stages of the rank: it gathers these, and releases all others; at the end all are released.

    0UNSHARD 0F0 0F1 0B0 0REDUCE_GRAD 0B1 0REDUCE_GRAD          a sum for each microbatch
    0UNSHARD 0F0 0F1 0B0 0B1 0REDUCE_GRAD                       one sum per step

State actions follow from the order alone, as messages do (`messages`). No file has them.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

from autopart.schedules.actions import Action, joined_pairs, paired_forwards

StateOp = Literal["UNSHARD", "RESHARD", "REDUCE_GRAD"]

TORCHS_ACTIVE_STAGES = 3
"""The stages of a rank that torch 2.13's schedules keep gathered at once."""

NEEDS_WEIGHTS = "FBI"
"""The letters of actions that need whole weights."""
MAKES_GRADIENTS = "BW"
"""The letters of actions that end a microbatch's weight gradients on a stage."""


class StateAction(NamedTuple):
    """One gather, release or sum, over all layers of a stage."""

    stage: int
    op: StateOp

    def __str__(self) -> str:
        return f"{self.stage}{self.op}"


class StateRules(NamedTuple):
    """When a rank gathers weights and sums gradients."""

    shares_weights: bool
    """Whether each action gathers weights for itself: zero3."""
    sums_each_microbatch: bool
    """Whether gradients are summed behind each backward; else once per step."""
    active_stages: int | None = None
    """The most stages of a rank that are gathered at once, where actions do not gather for themselves.

    None for all of them: then none is ever released."""


Step = tuple[Action, ...]
"""An action, or both actions of an overlapped pair."""


def with_state_actions(
    order: Sequence[Action], rules: StateRules
) -> tuple[Action | StateAction, ...]:
    """An order with its state actions."""
    found: list[Action | StateAction] = []
    steps = steps_of(order)
    gathers = _gathers_of_actions if rules.shares_weights else _gathers_of_stages
    left = Counter(action.stage for action in order if action.op in MAKES_GRADIENTS)
    for before, step, behind in gathers(steps, rules.active_stages):
        found += [*before, *step, *behind]
        for action in step:
            if action.op in MAKES_GRADIENTS:
                left[action.stage] -= 1
                if rules.sums_each_microbatch or not left[action.stage]:
                    found.append(StateAction(action.stage, "REDUCE_GRAD"))
    return tuple(found)


def state_words(order: Sequence[Action], rules: StateRules) -> str:
    """An order with its state actions as text, in torch's words."""
    events = with_state_actions(order, rules)
    places = [at for at, event in enumerate(events) if isinstance(event, Action)]
    return " ".join(
        joined_pairs(
            [str(event) for event in events], [places[at] for at in paired_forwards(order)]
        )
    )


def steps_of(order: Sequence[Action]) -> list[Step]:
    """The order's actions, with both actions of each overlapped pair together."""
    begins = frozenset(paired_forwards(order))
    return [
        tuple(order[at : at + 1 + (at in begins)])
        for at in range(len(order))
        if at - 1 not in begins
    ]


Around = tuple[list[StateAction], Step, list[StateAction]]
"""State actions before a step, the step, and those right behind it."""


def _gathers_of_actions(steps: Sequence[Step], _: int | None) -> Iterator[Around]:
    for step in steps:
        stages = list(dict.fromkeys(a.stage for a in step if a.op in NEEDS_WEIGHTS))
        yield (
            [StateAction(stage, "UNSHARD") for stage in stages],
            step,
            [StateAction(stage, "RESHARD") for stage in stages],
        )


def _gathers_of_stages(steps: Sequence[Step], most: int | None) -> Iterator[Around]:
    if most is None:
        first = _stages_ahead(steps, most)[0] if steps else []
        before = [StateAction(stage, "UNSHARD") for stage in first]
        yield from ((before * (at == 0), step, []) for at, step in enumerate(steps))
        return
    active: list[int] = []
    for step, ahead in zip(steps, _stages_ahead(steps, most), strict=True):
        gone = sorted(stage for stage in active if stage not in ahead)
        new = [stage for stage in ahead if stage not in active]
        active = [stage for stage in active if stage in ahead] + new
        before = [StateAction(stage, "RESHARD") for stage in gone]
        yield before + [StateAction(stage, "UNSHARD") for stage in new], step, []
    yield [StateAction(stage, "RESHARD") for stage in sorted(active)], (), []


def _stages_ahead(steps: Sequence[Step], most: int | None) -> list[list[int]]:
    """For each step the next stages that act, itself included: at most `most`, and one more where a pair adds two.

    Walks backwards, and keeps the stages by their next step.
    """
    next_step: dict[int, int] = {}
    found: list[list[int]] = []
    for at in range(len(steps) - 1, -1, -1):
        own = dict.fromkeys((a.stage for a in steps[at] if a.op not in "LT"), at)
        next_step = own | {s: when for s, when in next_step.items() if s not in own}
        stages = list(next_step)
        if most is not None and len(stages) > most:
            whole = next_step[stages[most - 1]] == next_step[stages[most]]
            stages = stages[: most + whole]
        found.append(stages)
    return found[::-1]
