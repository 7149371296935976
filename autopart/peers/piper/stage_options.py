"""Piper's charges for every stage between two downsets, on every number of devices.

Symbols as in charges.py, and
          x      a downset: the nodes placed so far
          s      replicas in the stages behind a stage; in flight y = ceil((s + d) / d)

A stage between two downsets is priced for each width t and replica count d that its time allows,
and for each saving level. `behind` has the largest s for which the level is enough. Time need not
grow with the microbatches in flight, since Piper's choice is a heuristic. So a stage gets the least
time over all y that are at least its own. Stages that fit with more in flight fit with less. No
other rule in Piper is touched, and the result is never above its own.

Most files charge both choices of a node the same bytes for transfers. Then the order of changes
depends on t and y only. Its sums over a stage are differences between sums over downsets: O(log n)
per stage and y (`_common_order`). Otherwise the order is each stage's own (`_own_order`).
"""

from collections.abc import Iterator

import numpy as np

from autopart.peers.piper.charges import Flags, PiperLimits, PiperNet
from autopart.peers.piper.nested_pairs import Pairs, nested_pairs
from autopart.peers.piper.stage_pricer import StageOptions, StagePricer
from autopart.peers.piper.width_choices import (
    all_widths,
    least_work,
    replica_counts,
    width_choices,
)

PAIRS_AT_ONCE = 100_000
"""Pairs that are priced together, to bound memory."""


def stage_options(
    net: PiperNet, limits: PiperLimits, downsets: Flags, most_time: float
) -> StageOptions:
    """Every option for a stage within `most_time` seconds that leaves the rest enough devices.

    `downsets` [downset, node] has the placed nodes, smaller downsets first. Raises TooManyPairs.
    """
    pricer = StagePricer(net, limits, downsets, most_time)
    widths = [width for width in all_widths(net) if width <= limits.devices]
    nodes = [width_choices(net, width) for width in widths]
    counts = np.unique(np.outer(widths, replica_counts(limits)))
    pairs = nested_pairs(downsets, least_work(net), limits.devices, counts, most_time)
    parts = list(_parts(pairs))
    found = [pricer.options(part, of_width) for part in parts for of_width in nodes]
    if not found:
        none = np.zeros(0, dtype=np.int64)
        return StageOptions(none, none, none, none, none, np.zeros(0), none)
    return StageOptions(*(np.concatenate(column) for column in zip(*found, strict=True)))


def _parts(pairs: Pairs) -> Iterator[Pairs]:
    """The pairs in groups that are priced together."""
    for begin in range(0, len(pairs.low), PAIRS_AT_ONCE):
        yield Pairs(*(column[begin : begin + PAIRS_AT_ONCE] for column in pairs))
