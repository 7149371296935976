"""Messages between ranks, as the executor sends them, and collectives over ranks.

Pairs of ranks that share no node are measured at once, other pairs in turn. The slowest pair
counts. The receiver has already waited for a while, as in a pipeline. A sleeping processor reacts
later than one that has just sent something (on a virtual machine 200 µs instead of 50).
"""

# pyright: reportPrivateImportUsage=false

import itertools
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import get_args

import torch
from torch import distributed

from autopart.records.probe import LinkReadings
from autopart.records.readings import CollectiveReadings, Measured, Reading
from autopart.runtime.engine.gloo_threads import let_compute_go_first
from autopart.runtime.engine.transfers import with_other_rank
from autopart.runtime.measuring.clock import clock_of
from autopart.runtime.measuring.fixed_work import TransformerMlp
from autopart.runtime.probing.collective_calls import call_of
from autopart.runtime.probing.ranks import Ranks
from autopart.runtime.probing.samples import LONGEST, repetitions, slowest, timed

SIZES = (4, 4 << 10, 64 << 10, 512 << 10, 2 << 20, 8 << 20, 32 << 20)
REDUCED = (64 << 10, 1 << 20, 8 << 20)
WAITED = 2e-3
"""Seconds before a message is sent, during which the receiver waits."""
_AWAKE = 3e-4
"""The last seconds of this pause, during which the sender is awake."""
OVERLAPS = 5
"""How often compute beside a message is measured."""
_BESIDE = 0.2
"""Largest time in seconds for the message in this measurement, if there is such a message."""

Pair = tuple[int, int]
Turns = Sequence[Sequence[Pair]]
"""Pairs that are measured at once, turn by turn."""


def pairs_inside(ranks: Ranks) -> Turns:
    """Return the first two ranks on each node; nothing where nodes have one rank."""
    if ranks.per_node < 2:
        return ()
    return (
        [(node * ranks.per_node, node * ranks.per_node + 1) for node in range(ranks.num_nodes)],
    )


def pairs_across(ranks: Ranks) -> Turns:
    """Return the first ranks of neighbouring nodes, every second pair at once."""
    firsts = [node * ranks.per_node for node in range(ranks.num_nodes)]
    pairs = list(itertools.pairwise(firsts))
    return [turn for turn in (pairs[::2], pairs[1::2]) if turn]


def measure_links(
    ranks: Ranks, turns: Turns, reduced_over: Sequence[Sequence[int]]
) -> LinkReadings | None:
    """Measure messages between the pairs, and collectives over this rank's group.

    None where there are no pairs. Every rank must call this.
    """
    if not turns:
        return None
    mine: dict[int, list[float]] = {}
    for turn in turns:
        for pair in turn:
            if ranks.rank in pair:
                mine |= _messages(ranks, pair)
        ranks.wait("messages between other ranks")
    readings = slowest(ranks.gather(mine, "the times of messages"))
    times, size = _collectives(ranks, reduced_over), len(reduced_over[0])
    nodes = len({rank // ranks.per_node for rank in reduced_over[0]})
    return LinkReadings(
        readings=readings,
        num_pairs=sum(map(len, turns)),
        all_reduce=times.pop("all_reduce"),
        all_reduce_ranks=size,
        collectives=tuple(
            CollectiveReadings(collective=kind, ranks=size, nodes=nodes, at_once=1, readings=own)
            for kind, own in times.items()
        ),
        hidden=_hidden(ranks, turns[0][0], readings),
    )


def _messages(ranks: Ranks, pair: Pair) -> dict[int, list[float]]:
    """Measure the seconds from rank to rank, by size. Only the pair's first rank returns them."""
    found: dict[int, list[float]] = {}
    for size in SIZES:
        one_way = partial(_one_way, ranks, pair, _message(ranks, size))
        one_way()
        count = _agreed_count(ranks, pair, repetitions(one_way()))
        samples = [one_way() for _ in range(count)]
        if ranks.rank == pair[0]:
            found[size] = samples
        if count == 1:
            break
    return found


def _one_way(ranks: Ranks, pair: Pair, message: torch.Tensor) -> float:
    """Send the message there and back. Returns half the seconds, on the pair's first rank."""
    _pause(WAITED)
    # The pause of one side falls into the other side's time, so it is subtracted.
    there_and_back = timed(partial(_exchange, ranks, pair, message), ranks.device)
    return (there_and_back - WAITED) / 2


def _exchange(ranks: Ranks, pair: Pair, message: torch.Tensor) -> None:
    """Send the message there and back. The second rank is busy in between."""
    first, second = pair
    if ranks.rank == first:
        send_message(message, second)
        receive_message(message, second)
    else:
        receive_message(message, first)
        clock_of(ranks.device).wait()
        _pause(WAITED)
        send_message(message, first)


def _pause(seconds: float) -> None:
    """Pause, mostly asleep.

    A rank that computes until it sends would keep gloo's threads from its core, sometimes for a
    millisecond. The median would then mix two cases.
    """
    until = time.perf_counter() + seconds
    time.sleep(seconds - _AWAKE)
    while time.perf_counter() < until:
        pass


def _agreed_count(ranks: Ranks, pair: Pair, count: int) -> int:
    """Return the count that the pair's first rank decided."""
    said = torch.tensor([count], dtype=torch.int64, device=ranks.device)
    first, second = pair
    if ranks.rank == first:
        send_message(said, second)
    else:
        receive_message(said, first)
    return int(said.item())


def _collectives(
    ranks: Ranks, groups: Sequence[Sequence[int]]
) -> dict[Measured, tuple[Reading, ...]]:
    """Measure collectives over this rank's group and return the slowest rank's times, by size."""
    own, members = own_group(ranks, groups), len(groups[0])
    kinds = get_args(Measured)
    return {kind: _times_of(ranks, kind, own, members) for kind in kinds}


def _times_of(
    ranks: Ranks, kind: Measured, own: distributed.ProcessGroup, members: int
) -> tuple[Reading, ...]:
    mine: dict[int, list[float]] = {}
    name = kind.replace("_", "-")
    for size in REDUCED:
        call = call_of(kind, size, members, ranks.device, own)
        run = partial(with_other_rank, call, None, name)
        run()
        ranks.wait(f"another rank's {name}")
        trial = max(ranks.gather(timed(run, ranks.device), f"the times of {name}"))
        mine[size] = []
        for _ in range(repetitions(trial)):
            ranks.wait(f"another rank's {name}")
            mine[size].append(timed(run, ranks.device))
        if trial > LONGEST:
            break
    return slowest(ranks.gather(mine, f"the times of {name}"))


def own_group(ranks: Ranks, groups: Sequence[Sequence[int]]) -> distributed.ProcessGroup:
    """Return the group that contains this rank. Every rank must create all groups.

    Raises LostRank where one is gone.
    """
    made = [
        with_other_rank(partial(distributed.new_group, list(group)), None, "a group of ranks")
        for group in groups
    ]
    let_compute_go_first()
    own = next(group for group, on in zip(made, groups, strict=True) if ranks.rank in on)
    assert isinstance(own, distributed.ProcessGroup)
    return own


def _hidden(ranks: Ranks, pair: Pair, readings: Sequence[Reading]) -> float:
    """Return the share by which compute of about the same length hides a send. Both ranks compute."""
    block = TransformerMlp(ranks.device)
    block.run()
    of_block = max(ranks.gather(timed(block.run, ranks.device), "compute"))
    one = max((r for r in readings if r.time <= _BESIDE), default=readings[0], key=lambda r: r.time)
    # Step 1: choose numbers of messages and blocks that take about the same time.
    messages = max(1, round(of_block / one.time))
    blocks = max(1, round(one.time / of_block))
    send = partial(_stream, ranks, pair, _message(ranks, one.num_bytes), messages)
    compute = partial(_repeat, block.run, blocks)
    if ranks.rank not in pair:
        send = compute = _nothing
    # Step 2: time compute, messages, and both together. The median over all shares counts.
    shares: list[float] = []
    for _ in range(OVERLAPS):
        alone = _together(ranks, compute)
        sent = _together(ranks, lambda: [wait() for wait in send()])
        both = _together(ranks, partial(_beside, send, compute))
        shares.append((alone + sent - both) / min(alone, sent))
    return min(1.0, max(0.0, sorted(shares)[OVERLAPS // 2]))


def _together(ranks: Ranks, action: Callable[[], object]) -> float:
    """Return the seconds until the last rank is done, after all have begun."""
    ranks.wait("the start of a measurement")
    return max(ranks.gather(timed(action, ranks.device), "the end of a measurement"))


def _beside(send: Callable[[], list[Callable[[], object]]], compute: Callable[[], object]) -> None:
    waits = send()
    compute()
    for wait in waits:
        wait()


def _stream(
    ranks: Ranks, pair: Pair, message: torch.Tensor, count: int
) -> list[Callable[[], object]]:
    """Start `count` messages from the pair's first rank to its second. Returns their waits."""
    first, second = pair
    begin, other_rank = (
        (distributed.isend, second) if ranks.rank == first else (distributed.irecv, first)
    )
    works = [
        with_other_rank(partial(begin, message, other_rank), other_rank, "a message")
        for _ in range(count)
    ]
    return [
        partial(with_other_rank, work.wait, other_rank, "a message")
        for work in works
        if work is not None
    ]


def send_message(message: torch.Tensor, other_rank: int) -> None:
    """Send the message as the executor does. Raises LostRank where the other rank is gone."""
    work = with_other_rank(partial(distributed.isend, message, other_rank), other_rank, "a message")
    if work is not None:
        with_other_rank(work.wait, other_rank, "a message")


def receive_message(message: torch.Tensor, other_rank: int) -> None:
    """Receive the message as the executor does. Raises LostRank where the other rank is gone."""
    work = with_other_rank(partial(distributed.irecv, message, other_rank), other_rank, "a message")
    if work is not None:
        with_other_rank(work.wait, other_rank, "a message")


def _message(ranks: Ranks, size: int) -> torch.Tensor:
    return torch.zeros(size, dtype=torch.uint8, device=ranks.device)


def _repeat(action: Callable[[], object], count: int) -> None:
    for _ in range(count):
        action()


def _nothing() -> list[Callable[[], object]]:
    return []
