"""Measurements that ranks in a pool make for tests of the probe."""

import torch
from torch import distributed

from autopart.errors import AutopartError
from autopart.records.probe import LinkReadings, Reading
from autopart.runtime.probing import links, ranks, samples
from autopart.runtime.probing.links import measure_links, pairs_across, pairs_inside
from autopart.runtime.probing.memory import measure_copies
from autopart.runtime.probing.overhead import measure_overhead
from autopart.runtime.probing.ranks import Ranks
from autopart.runtime.probing.slowdown import measure_slowdown


def as_ranks(rank: int, per_node: int) -> Ranks:
    """Return the pool's ranks on nodes with `per_node` ranks."""
    size = distributed.get_world_size()
    return Ranks(rank, size, per_node, torch.device("cpu"), "gloo")


def link(rank: int, per_node: int) -> LinkReadings | None:
    """Measure small messages a few times, inside the node or across nodes with one rank each."""
    here = as_ranks(rank, per_node)
    kept = links.SIZES, links.REDUCED, links.OVERLAPS, samples.ENOUGH_SECONDS
    links.SIZES, links.REDUCED, links.OVERLAPS = (4, 1 << 20), (1 << 16,), 1
    samples.ENOUGH_SECONDS = 0.02
    try:
        turns = pairs_inside(here) if per_node > 1 else pairs_across(here)
        return measure_links(here, turns, [range(here.size)])
    finally:
        links.SIZES, links.REDUCED, links.OVERLAPS, samples.ENOUGH_SECONDS = kept


def machine(rank: int) -> tuple[tuple[float, float], tuple[Reading, ...], float | None]:
    """Measure slowdown, copies and overhead as a whole probe does."""
    here = as_ranks(rank, 2)
    return measure_slowdown(here), measure_copies(here), measure_overhead(here)


def disagreement(rank: int) -> str:
    """Return the error where ranks assume different numbers of ranks on their nodes."""
    try:
        ranks.check_alike(as_ranks(rank, per_node=1 + rank))
    except AutopartError as error:
        return str(error)
    return "nothing"
