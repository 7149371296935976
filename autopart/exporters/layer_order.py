"""Layers that stand backwards within their stages, as far as a plan shows it without its profile.

`verify` compares the order with the profile. An export has no profile, only the layers' names:

    h.3 h.2 h.1 h.0 | h.7 h.6 h.5 h.4    numbers fall within every stage and rise from stage to stage
    h.1@1 h.1                            a module's second call stands before its first one

A model may run its blocks from the last to the first one, as the second half of a U-Net does. Then
numbers fall from stage to stage too, and nothing is refused. Names in which several numbers change
say nothing either: the last one may count branches that run side by side.
"""

import itertools
import re
from collections.abc import Sequence

from autopart.errors import PlanError
from autopart.records.plan import Plan

_NUMBER = re.compile(r"[0-9]+")

Numbers = tuple[int, ...]
"""The numbers in a layer's name, from left to right."""


def check_layer_order(plan: Plan) -> None:
    """Raise PlanError where the names show that stages list their layers backwards."""
    stages = [stage.layers for stage in plan.stages]
    _check_calls(stages)
    patterns = dict.fromkeys(_pattern(name) for names in stages for name in names)
    for pattern in patterns:
        alike = [[name for name in names if _pattern(name) == pattern] for names in stages]
        if _stands_backwards([list(map(_numbers, names)) for names in alike]):
            at = next(index for index, names in enumerate(alike) if len(names) > 1)
            first, second = alike[at][:2]
            raise PlanError(
                f"stage {at} lists layer '{first}' before '{second}', and so backwards do all stages; "
                "list layers in the model's order, and compare with 'autopart verify'"
            )


def _check_calls(stages: Sequence[Sequence[str]]) -> None:
    """Raise PlanError where a module's later call stands before an earlier one."""
    called: dict[str, int] = {}
    for index, names in enumerate(stages):
        for name in names:
            module, _, call = name.partition("@")
            number = int(call) if call.isdecimal() else 0
            if number < called.setdefault(module, number):
                raise PlanError(
                    f"stage {index} lists layer '{name}' behind call {called[module]} of the same "
                    "module; list layers in the model's order"
                )
            called[module] = number


def _pattern(name: str) -> str:
    """The name without its numbers."""
    return _NUMBER.sub("#", name)


def _numbers(name: str) -> Numbers:
    return tuple(int(number[:18]) for number in _NUMBER.findall(name))


def _stands_backwards(stages: Sequence[Sequence[Numbers]]) -> bool:
    """Whether one number falls within every stage, in two stages at least, and rises between them."""
    filled = [numbers for numbers in stages if numbers]
    columns = zip(*itertools.chain(*filled), strict=True)
    if sum(len(set(column)) > 1 for column in columns) != 1:
        return False
    falls = all(a > b for numbers in filled for a, b in itertools.pairwise(numbers))
    rises = all(max(one) < min(other) for one, other in itertools.pairwise(filled))
    return falls and rises and sum(len(numbers) > 1 for numbers in filled) > 1
