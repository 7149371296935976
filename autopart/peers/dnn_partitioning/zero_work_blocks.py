"""Blocks without latency leave the search: they follow a neighbour, or stand where they are allowed
to.

Symbols   x      a block without latency on either kind of device;  p  another block
          <=     the partial order of the blocks
          w(e)   the cost of link e;  w(x, p)  the cost of the link between x and p alone

x follows p wherever p goes, if

    (1) every block before x is before p or is p, and every block behind x is behind p or is p
    (2) the w(e) of the links e that hold x and not p add up to at most w(x, p)

No optimum is lost. Take any division and move x to p's device. By (1) the order still holds. On x's
old device, w(x, p) is no longer paid, and (2) covers every link that may newly be split. The same
holds on p's device. On every other device, and for every link with both x and p, nothing is split
that was whole before. A CPU pays for no transfer, and x adds no latency. By induction the same
holds for many such x at once.

x needs no place in the search if no link holds it. After the search it goes to the last device that
holds a block before it. Without such a block it goes to the first device with a block behind it.

x's size moves with it. So this is exact only where x has no size, or an accelerator holds all
blocks at once. Otherwise two other problems bound the optimum, with far fewer downsets:

    "relaxed"  x follows without its size: no optimum for this is larger than the true one;
    "packed"   x follows with its size: the result is a true division, perhaps not the best.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from autopart.peers.dnn_partitioning.blocks import Blocks, joined_links

Mode = Literal["exact", "relaxed", "packed"]
"""How sizes count."""


class Freed(NamedTuple):
    """A block that stands anywhere between its neighbours; all are numbers of whole blocks."""

    block: int
    before: frozenset[int]
    after: frozenset[int]


class Absorbed(NamedTuple):
    """Fewer blocks that stand for all."""

    blocks: Blocks
    left: tuple[int, ...]
    """The whole block for each entry in `blocks`."""
    chief: tuple[int, ...]
    """The block that each whole block follows; itself where it follows none."""
    freed: tuple[Freed, ...]
    """In the order in which they went."""

    def stages_of_all(self, stages: Sequence[int]) -> list[int]:
        """The stage for every whole block, from the stages for `blocks`, counted in pipeline order."""
        found = dict(zip(self.left, stages, strict=True))
        # The last freed block first: its neighbours have a stage by then.
        for block, before, after in reversed(self.freed):
            behind = min((found[self._chief(q)] for q in after), default=0)
            found[block] = max((found[self._chief(q)] for q in before), default=behind)
        return [found[self._chief(block)] for block in range(len(self.chief))]

    def _chief(self, block: int) -> int:
        """The block that a block follows in the end."""
        while self.chief[block] != block:
            block = self.chief[block]
        return block


def absorb(whole: Blocks, size_limit: float, mode: Mode) -> Absorbed:
    """The blocks without those that the search does not need."""
    work = _Absorption(whole, size_limit, mode)
    idle = [x for x, w in enumerate(whole.work) if not w and not whole.cpu_work[x]]
    # A block that went may let others go.
    while sum(work.take_out(x) for x in idle if x in work.left):
        pass
    return work.result()


class _Absorption:
    """The blocks that are left, and the fate of the others."""

    def __init__(self, whole: Blocks, size_limit: float, mode: Mode) -> None:
        self.whole, self.mode = whole, mode
        self.sizes = list(whole.sizes)
        self.fits = math.fsum(whole.sizes) <= size_limit
        size = len(whole.work)
        self.left = set(range(size))
        self.before = [set(row) for row in whole.before]
        self.after: list[set[int]] = [set() for _ in range(size)]
        for block, row in enumerate(self.before):
            for earlier in row:
                self.after[earlier].add(block)
        self.below = _closure(self.before, range(size))
        self.above = _closure(self.after, reversed(range(size)))
        self.cost = {frozenset(link.blocks): link.cost for link in whole.links}
        self.links_of: list[set[frozenset[int]]] = [set() for _ in range(size)]
        for link in self.cost:
            for block in link:
                self.links_of[block].add(link)
        self.chief = list(range(size))
        self.freed: list[Freed] = []

    def take_out(self, x: int) -> bool:
        """Take x out of the search, if possible."""
        sized = self.sizes[x] > 0 and not self.fits
        if self.links_of[x]:
            return (not sized or self.mode != "exact") and self._follow(x)
        return (not sized or self.mode == "relaxed") and self._free(x)

    def _free(self, x: int) -> bool:
        """Take x out; its neighbours keep their order."""
        if not self.whole.on_accelerator[x]:
            return False
        before, after = self._unlink(x)
        for p in before:
            self.after[p] |= after
        for q in after:
            self.before[q] |= before
        self.freed.append(Freed(x, frozenset(before), frozenset(after)))
        return True

    def _follow(self, x: int) -> bool:
        """Let x follow the first block that it may follow."""
        for p in sorted(set().union(*self.links_of[x]) - {x}):
            if self._may_follow(x, p):
                before, after = self._unlink(x)
                self._order(before - {p}, p, after - {p})
                self._move_links(x, p)
                self.sizes[p] += self.sizes[x] if self.mode != "relaxed" else 0.0
                self.chief[x] = p
                return True
        return False

    def _may_follow(self, x: int, p: int) -> bool:
        """Whether conditions (1) and (2) hold, and p's devices can run x."""
        if self.whole.on_accelerator[p] and not self.whole.on_accelerator[x]:
            return False
        if not all(q == p or self.below[p] >> q & 1 for q in self.before[x]):
            return False
        if not all(q == p or self.above[p] >> q & 1 for q in self.after[x]):
            return False
        split = sum(self.cost[link] for link in self.links_of[x] if p not in link)
        return split <= self.cost.get(frozenset((x, p)), 0.0)

    def _unlink(self, x: int) -> tuple[set[int], set[int]]:
        """Take x out of the order; returns its neighbours."""
        before, after = self.before[x], self.after[x]
        for q in before:
            self.after[q].discard(x)
        for q in after:
            self.before[q].discard(x)
        self.left.discard(x)
        return before, after

    def _order(self, before: set[int], p: int, after: set[int]) -> None:
        """Put x's neighbours around p."""
        for q in before:
            self.after[q].add(p)
        for q in after:
            self.before[q].add(p)
        self.before[p] |= before
        self.after[p] |= after

    def _move_links(self, x: int, p: int) -> None:
        """x's links become p's."""
        for link in list(self.links_of[x]):
            cost = self.cost.pop(link)
            for block in link:
                self.links_of[block].discard(link)
            moved = (link - {x}) | {p}
            if len(moved) > 1:
                self.cost[moved] = self.cost.get(moved, 0.0) + cost
                for block in moved:
                    self.links_of[block].add(moved)

    def result(self) -> Absorbed:
        """The blocks that are left."""
        whole, order = self.whole, sorted(self.left)
        place = {block: index for index, block in enumerate(order)}
        links = (([place[b] for b in link], cost) for link, cost in self.cost.items())
        blocks = Blocks(
            members=tuple(whole.members[block] for block in order),
            work=tuple(whole.work[block] for block in order),
            cpu_work=tuple(whole.cpu_work[block] for block in order),
            sizes=tuple(self.sizes[block] for block in order),
            on_accelerator=tuple(whole.on_accelerator[block] for block in order),
            before=tuple(tuple(sorted(place[q] for q in self.before[b])) for b in order),
            links=joined_links(links),
        )
        return Absorbed(blocks, tuple(order), tuple(self.chief), tuple(self.freed))


def _closure(near: list[set[int]], order: Iterable[int]) -> list[int]:
    """For each block a bit mask: all blocks reached through `near`."""
    reached = [0] * len(near)
    for block in order:
        for other in near[block]:
            reached[block] |= reached[other] | 1 << other
    return reached
