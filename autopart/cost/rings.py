"""Seconds of keys and values that go around a ring beneath attention.

Symbols   c    GPUs of the ring, each with a block of the keys and values
          a    seconds of attention to one block;  s  seconds in which a GPU sends a block to the next one

    forward    (c - 1) max(a, s) + a                              2 or more turns; the last one sends nothing
    backward   max(a, s) + (c - 2) max(a, 2 s) + max(a, s)        gradients travel one turn behind their block

Attention itself, c a, stands in the layer's seconds. What is above it is exposed, and the rest of the messages is hidden.
Where sends keep ranks busy, nothing is hidden.
"""

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from autopart.cost.links import send_time
from autopart.cost.stage_times import cut_links
from autopart.records.cluster import Cluster, slowest_speed
from autopart.records.group_variants import Collective


class RingTimes(NamedTuple):
    """Seconds of a ring's messages."""

    exposed: float
    hidden: float


def ring_times(one: Collective, cluster: Cluster, ranks: Sequence[int]) -> RingTimes:
    """Seconds of the messages of a collective of kind "ring" among the GPUs `ranks`, in this order.

    Where its attention's seconds are not known, all of them count as hidden.
    """
    turns = len(ranks)
    (link,) = cut_links(cluster, (tuple(ranks), (*ranks[1:], ranks[0])))
    assert link is not None
    block, has_gradients = one.bytes / turns, one.phase != "forward"
    once, twice = send_time(link, block, 1), send_time(link, 2 * block, 2)
    spent = (turns - 1) * (twice if has_gradients else once)
    if not cluster.sends_overlap:
        return RingTimes(spent, 0.0)
    if one.compute_time is msgspec.UNSET:
        return RingTimes(0.0, spent)
    # A GPU's speed is the same for all turns.
    attend = one.compute_time / slowest_speed(cluster, ranks) / turns

    def above(messages: float) -> float:
        return max(0.0, messages - attend)

    exposed = (turns - 1) * above(once)
    if has_gradients:
        exposed = 2 * above(once) + (turns - 2) * above(twice)
    return RingTimes(exposed, spent - exposed)
