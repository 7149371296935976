"""Partitions simulated on their groups of ranks apart, where no assignment of ranks is faster.

By (18) in autopart/bounds/rank_assignments.py a step on the groups' nodes bounds the step on every
assignment. So a node in the tree of assignments has nothing below a value where each partition that
bounds leave open takes as long at least on the groups' nodes.
"""

import itertools

from autopart.bounds.of_layout import LayoutBounds
from autopart.bounds.rank_assignments import Assigned
from autopart.certificate.fastest_choices import least_steps
from autopart.cost.cuts import Cuts
from autopart.pricing import compile_layout

MOST_APART = 300
"""The most partitions that are simulated for one node in the tree."""


def may_be_faster_apart(assigned: Assigned, bounds: LayoutBounds, cuts: Cuts, value: float) -> bool:
    """Whether some partition may take less than `value` seconds on the groups' nodes.

    `bounds` are those of the layout there. True where more than `MOST_APART` partitions are open.
    """
    paths = list(itertools.islice(bounds.paths_below(value), MOST_APART + 1))
    if not paths or len(paths) > MOST_APART:
        return bool(paths)
    problem, layout = assigned
    steps = least_steps(problem, layout, compile_layout(layout), cuts, paths, value)
    return bool(steps.min() < value)
