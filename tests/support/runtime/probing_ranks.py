"""Measurements that ranks in a pool make for tests of the probe."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import msgspec
import pytest
import torch
from torch import distributed

from autopart.errors import AutopartError
from autopart.records.cluster import Link
from autopart.records.probe import LinkReadings
from autopart.records.profile import Profile
from autopart.records.readings import Measured, Reading
from autopart.runtime.engine import rank_executor
from autopart.runtime.engine.program_loop import ProgramLoop
from autopart.runtime.measuring.fixed_work import TransformerMlp
from autopart.runtime.probing import links, memory, overhead, ranks, slowdown
from autopart.runtime.probing.links import measure_links, pairs_across, pairs_inside
from autopart.runtime.probing.ranks import Ranks

T = TypeVar("T")


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
    BLOCK = 2e-3
    """Seconds of a block of compute."""
    COLLECTIVES: Mapping[Measured, float] = {
        "all_reduce": 5e-3,
        "all_gather": 4e-3,
        "reduce_scatter": 9e-3,
        "all_to_all": 1e-3,
    }
    """Seconds of a collective of any size."""

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

    def collective(self, of: Callable[..., Callable[[], object]]) -> Callable[..., Any]:
        def made(kind: Measured, *given: Any) -> Callable[[], object]:
            return self.after(of(kind, *given), self.COLLECTIVES[kind])

        return made

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
        patch.setattr(links, "call_of", time.collective(links.call_of))
        patch.setattr(links, "_stream", time.after(links._stream, time.BLOCK))
        block = links.TransformerMlp
        patch.setattr(block, "run", time.after(block.run, time.BLOCK))
        turns = pairs_inside(here) if per_node > 1 else pairs_across(here)
        return measure_links(here, turns, [range(here.size)])


class ToldMachine(Ranks):
    """A rank whose compute, copies and actions take known seconds. Rank 1 is slower than rank 0.

    All work is real. Only its seconds are told, so that no load of the machine changes a reading.
    """

    ALONE = 2e-3
    """Seconds of any compute alone."""
    BLOCK_SLOWDOWN, TRAFFIC_SLOWDOWN = 1.25, 2.0
    """Slowdowns on rank 0 while all ranks compute. On rank 1 they are larger by 1."""
    OUT, BACK = 4e7, 2e7
    """Bytes per second of copies to host memory and back on rank 0. Rank 1 has half of them."""
    ACTION, LAYERS = 5e-3, 2e-3
    """Seconds of an action on rank 0, twice as long on rank 1; and of its layers in the profile."""

    def wait(self, waiting_for: str) -> None:
        super().wait(waiting_for)
        _TOLD.is_together = waiting_for == "the start of computing together"

    def measure(self, action: Callable[[], T]) -> tuple[T, Callable[[], float]]:
        """A stopwatch's measurement of one action."""
        is_block = isinstance(getattr(action, "__self__", None), TransformerMlp)
        slowdown = (self.BLOCK_SLOWDOWN if is_block else self.TRAFFIC_SLOWDOWN) + self.rank
        seconds = self.ALONE * (slowdown if _TOLD.is_together else 1.0)
        return action(), lambda: seconds

    def settle(self) -> None:
        """A stopwatch's wait: told seconds are known at once."""

    def copy(self, of: Callable[..., torch.Tensor], bandwidth: float) -> Callable[..., Any]:
        """Return a copy that moves the told time by the bytes that it moves."""

        def copied(source: torch.Tensor, *given: Any) -> torch.Tensor:
            _TOLD.now += source.nbytes * (1 + self.rank) / bandwidth
            return of(source, *given)

        return copied

    def profile(self, of: Callable[[str], Profile]) -> Callable[[str], Profile]:
        """Return a profiler whose layers take known seconds, summed over forward and backward."""

        def profiled(model: str) -> Profile:
            found = of(model)
            each = 2 * self.LAYERS / len(found.graph.layers)
            layers = tuple(
                msgspec.structs.replace(
                    la, forward_time=each / 2, input_grad_time=each / 4, weight_grad_time=each / 4
                )
                for la in found.graph.layers
            )
            graph = msgspec.structs.replace(found.graph, layers=layers)
            return msgspec.structs.replace(found, graph=graph)

        return profiled


class _Told(ToldTime):
    """The told time of one rank. As a clock of an executor, it marks the seconds so far."""

    is_together = False
    """Whether all ranks compute now."""

    def mark(self) -> float:
        return self.now

    def seconds(self, start: float, end: float) -> float:
        return end - start

    def wait(self) -> None:
        pass


_TOLD = _Told()


def machine(rank: int) -> tuple[tuple[float, float], tuple[Reading, ...], float | None]:
    """Measure slowdown, copies and overhead as a whole probe does, by told seconds."""
    size = distributed.get_world_size()
    here = ToldMachine(rank, size, size, torch.device("cpu"), "gloo")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slowdown, "_SECONDS", 0.0)
        patch.setattr(slowdown, "_stopwatch", lambda ranks: ranks)
        patch.setattr(memory, "timed", _TOLD.timed)
        patch.setattr(memory, "_copied_out", here.copy(memory._copied_out, here.OUT))
        patch.setattr(memory, "_copied_back", here.copy(memory._copied_back, here.BACK))
        patch.setattr(overhead, "profile_model", here.profile(overhead.profile_model))
        patch.setattr(rank_executor, "clock_of", lambda device: _TOLD)
        act, seconds = ProgramLoop._act, here.ACTION * (1 + rank)
        patch.setattr(ProgramLoop, "_act", _TOLD.after(act, seconds))
        return (
            slowdown.measure_slowdown(here),
            memory.measure_copies(here),
            overhead.measure_overhead(here),
        )


def disagreement(rank: int) -> str:
    """Return the error where ranks assume different numbers of ranks on their nodes."""
    try:
        ranks.check_alike(as_ranks(rank, per_node=1 + rank))
    except AutopartError as error:
        return str(error)
    return "nothing"
