"""Raising the lower bound of layouts with own orders, by all stages of each rank together.

Their partitions are not simulated: no list of orders closes them. A value holds where
`LayoutBounds.refutes` (autopart/bounds/of_layout.py) leaves no partition below it on any layout. The
certificate asks the same question for the same value.
"""

import math
from collections.abc import Sequence

from autopart.bounds.of_layout import LayoutBounds
from autopart.search.every_assignment import bounds_of_root
from autopart.search.layout_search import LayoutSearch
from autopart.search.open_layout import OpenLayout
from autopart.stopping.time_limit import deadline_in, passed, time_left

HALVINGS = 7
"""Times that the interval around the highest value of a layout is cut in two."""

SHARE_OF_RAISING = 0.6
"""The share of the time in which values are raised. The rest is for looking at the last one again."""


def raised_together(found: LayoutSearch, places: Sequence[OpenLayout], most: float) -> float:
    """Seconds, at most `most`, below which no place has a plan; they hold for all places at once."""
    value, tested = most, dict[OpenLayout, float]()
    until = deadline_in(SHARE_OF_RAISING * time_left(found.deadline))
    # Step 1: raise the smallest bound as far as possible. The next ones need not go further.
    for place in sorted(places, key=lambda place: place.bound):
        if place.bound >= value:
            break
        if passed(until):
            value = place.bound
            break
        bounds = bounds_of_root(found, place.layout)
        tested[place] = place.bound if bounds is None else _highest(bounds, place.bound, value)
        value = min(value, tested[place])
    # Step 2: a value may be refuted where a smaller one is not, since beginnings are joined.
    open_ones = [place for place, at in tested.items() if at > value]
    while open_ones:
        place = open_ones.pop()
        if place.bound < value:
            bounds = bounds_of_root(found, place.layout)
            if bounds is None or not bounds.refutes(value):
                value = place.bound
                open_ones = [one for one in tested if one.bound < value]
    return value


def _highest(bounds: LayoutBounds, least: float, most: float) -> float:
    """The highest value found that a layout's bounds refute, from `least` to `most` seconds."""
    if most < math.inf and bounds.refutes(most):
        return most
    for _ in range(HALVINGS if most < math.inf else 0):
        middle = (least + most) / 2
        if bounds.refutes(middle):
            least = middle
        else:
            most = middle
    return least
