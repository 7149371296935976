"""The times that one step hands on to the next, where steps run back to back."""

from collections.abc import Callable, Sequence
from typing import Any, Generic, NamedTuple

from autopart.simulator.costs import T
from autopart.simulator.syncs import Effects


class Carried(NamedTuple, Generic[T]):
    """When a step's ranks and links are free, in seconds since some earlier moment.

    The entries are numbers, or arrays over partitions.
    """

    ranks: Sequence[T]
    """Each rank's update of the step before has ended."""
    links: Sequence[T]
    """Each link has carried its last message."""


def begin_of(
    carried: Carried[Any], effects: Effects, larger: Callable[[Any, Any], Any]
) -> list[Any]:
    """When each rank may start its first action.

    A rank that waits for gathered weights also waits for the updates of their other replicas.
    """
    begin = list(carried.ranks)
    for rank, wait in effects.begin.items():
        updated = begin[rank]
        for other in effects.gathers[rank]:
            updated = larger(updated, carried.ranks[other])
        begin[rank] = updated + wait
    return begin
