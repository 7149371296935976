"""Measurements that ranks in a pool make for tests of the probe."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import distributed

from autopart.errors import AutopartError
from autopart.records.cluster import Link
from autopart.records.probe import LinkReadings
from autopart.records.readings import Reading
from autopart.runtime.probing import links, ranks
from autopart.runtime.probing.links import measure_links, pairs_across, pairs_inside
from autopart.runtime.probing.memory import measure_copies
from autopart.runtime.probing.overhead import measure_overhead
from autopart.runtime.probing.ranks import Ranks
from autopart.runtime.probing.slowdown import measure_slowdown


def as_ranks(rank: int, per_node: int) -> Ranks:
    """Return the pool's ranks on nodes with `per_node` ranks."""
    size = distributed.get_world_size()
    return Ranks(rank, size, per_node, torch.device("cpu"), "gloo")


class ToldTime:
    """A clock that moves only by known seconds: for each message, all-reduce, pause and block.

    The messages are real. Their seconds follow from the bytes that are sent, so that no load of the
    machine changes a reading.
    """

    LINK = Link(bandwidth=2e9, latency=3e-4)
    ALL_REDUCE, BLOCK = 5e-3, 2e-3
    """Seconds of any all-reduce, and of a block of compute."""

    def __init__(self) -> None:
        self.now = 0.0

    def timed(self, action: Callable[[], object], device: torch.device) -> float:
        begin = self.now
        action()
        return self.now - begin

    def message(self, of: Callable[..., Any], waits: float = 0.0) -> Callable[..., Any]:
        def moved(message: torch.Tensor, other_rank: int) -> None:
            of(message, other_rank)
            self.now += self.LINK.latency + message.nbytes / self.LINK.bandwidth + waits

        return moved

    def after(self, of: Callable[..., Any], seconds: float) -> Callable[..., Any]:
        def moved(*given: Any) -> Any:
            made = of(*given)
            self.now += seconds
            return made

        return moved


def link(rank: int, per_node: int) -> LinkReadings | None:
    """Measure messages inside the node or across nodes with one rank each, by a told time."""
    here, time = as_ranks(rank, per_node), ToldTime()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(links, "SIZES", (4, 1 << 20))
        patch.setattr(links, "REDUCED", (1 << 16,))
        patch.setattr(links, "OVERLAPS", 1)
        patch.setattr(links, "timed", time.timed)
        patch.setattr(links, "send_message", time.message(links.send_message))
        # The other rank pauses before it answers.
        patch.setattr(links, "receive_message", time.message(links.receive_message, links.WAITED))
        patch.setattr(links, "_reduce", time.after(links._reduce, time.ALL_REDUCE))
        patch.setattr(links, "_stream", time.after(links._stream, time.BLOCK))
        block = links.TransformerMlp
        patch.setattr(block, "run", time.after(block.run, time.BLOCK))
        turns = pairs_inside(here) if per_node > 1 else pairs_across(here)
        return measure_links(here, turns, [range(here.size)])


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
