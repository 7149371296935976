"""Orders of F and I on a V, from one block that each microbatch repeats
(Qi et al., Pipeline Parallelism with Controllable Memory, NeurIPS 2024).

Rank r has the stages r and 2 k - 1 - r. Time counts in slots. Each microbatch starts 6 slots after
the one before. In that time each rank runs F, I and W of two stages. In the block the next rank
starts later by

    down    slots on the way down; `steep` on the first hops, then `flat`
    up      1 slot

in forward and backward alike. A microbatch waits at the three turns so that no rank has two actions
in one slot, modulo 6. A rank keeps the stash of stay / 6
microbatches. So the blocks go from a third of 1F1B's stash (all hops 1: V-Min) over a half (2:
V-Half) to all of it.
"""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

from autopart.bounds.any_order_partition import OrderProblem

PERIOD = 6
TWO_WEIGHTS = 2
"""Slots that W takes behind each I, at least."""


class Block(NamedTuple):
    """For each rank the slots of microbatch 0: F down, F up, I on the stage up, I on that down."""

    slots: tuple[tuple[int, int, int, int], ...]

    @property
    def stay(self) -> int:
        """Slots that a microbatch keeps stash on the fullest rank, over both stages."""
        return max(i0 - f0 + i1 - f1 for f0, f1, i1, i0 in self.slots) + 2 * TWO_WEIGHTS


def is_wave(task: OrderProblem) -> bool:
    """Whether each rank runs one stage on the way down and one on the way up."""
    ranks = [own[0] for own in task.stage_ranks if len(own) == 1]
    half = len(task.stage_ranks) // 2
    return len(ranks) == 2 * half and ranks == [*range(half), *reversed(range(half))]


def blocks(num_ranks: int) -> Iterator[Block]:
    """All blocks, each once."""
    seen: set[Block] = set()
    for steep, flat in itertools.combinations_with_replacement(range(1, PERIOD), 2):
        for hops in range(num_ranks) if steep != flat else (0,):
            down = [flat] * hops + [steep] * (num_ranks - 1 - hops)
            for turns in itertools.product(range(PERIOD), repeat=3):
                block = _block(down, turns)
                if block is not None and block not in seen:
                    seen.add(block)
                    yield block


def _block(down: list[int], turns: tuple[int, ...]) -> Block | None:
    offsets = [0, *itertools.accumulate(down)]
    hops = len(down)
    bottom, top, back = turns
    turn = offsets[-1] + 1 + bottom
    grad = turn + hops + 1 + top
    last = grad + offsets[-1] + 1 + back
    slots = tuple(
        (offset, turn + hops - r, grad + offset, last + hops - r)
        for r, offset in enumerate(offsets)
    )
    if any(len({slot % PERIOD for slot in own}) < 4 for own in slots):
        return None
    return Block(slots)


def order_of_block(block: Block, num_microbatches: int) -> list[list[int]]:
    """F and I on each rank by their slots, as numbers (order_times.py)."""
    last = 2 * len(block.slots) - 1
    orders: list[list[int]] = []
    for rank, (f0, f1, i1, i0) in enumerate(block.slots):
        firsts = ((f0, rank, 0), (f1, last - rank, 0), (i1, last - rank, 1), (i0, rank, 1))
        slots = sorted(
            (slot + PERIOD * m, 3 * (stage * num_microbatches + m) + op)
            for m in range(num_microbatches)
            for slot, stage, op in firsts
        )
        orders.append([x for _, x in slots])
    return orders
