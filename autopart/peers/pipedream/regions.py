"""Regions around the cuts of a plan, for graphs with too many downsets to look at all.

Symbols   D_1 ⊂ … ⊂ D_s   the cuts in a plan;  stage i lies between D_{i-1} and D_i
          head, tail      the layers in a stage next to its first cut, and next to its last cut
          middle          all other layers in the stage, as one piece

Layers in heads and tails stay single. Each middle is one piece: it comes behind everything ahead of
it, and before everything behind it. So few downsets are left, and the plan's cuts are among them.
An exact search over these gives a plan at least as good, and new regions. Heads and tails follow an
order of the layers, so that other orders give other regions. They are as long as the limit on
downsets between two middles allows.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from autopart.downsets import bits
from autopart.peers.pipedream.downsets import Downsets, list_downsets

Rule = Callable[["Graph", Sequence[int], int], int]
"""Picks the next layer among the ready ones, given a bit mask of the placed layers."""

LONGEST = 48
"""Most layers in a head or a tail."""


class Graph(NamedTuple):
    """Layers by the layers that they read, their readers, and a size for the rules."""

    before: Sequence[int]
    after: Sequence[int]
    sizes: Sequence[float]


def reverse(graph: Graph) -> Graph:
    """The graph with all edges turned round."""
    return Graph(graph.after, graph.before, graph.sizes)


def fewest_bytes(graph: Graph, ready: Sequence[int], placed: int) -> int:
    """The layer that adds least to the bytes that later layers still read; on a tie the last one."""

    def added(v: int) -> float:
        with_it = placed | 1 << v
        ended = sum(graph.sizes[u] for u in bits(graph.before[v]) if not graph.after[u] & ~with_it)
        return graph.sizes[v] - ended

    return min(reversed(ready), key=added)


def depth_first(graph: Graph, ready: Sequence[int], placed: int) -> int:
    """The layer that became ready last."""
    return ready[-1]


def breadth_first(graph: Graph, ready: Sequence[int], placed: int) -> int:
    """The layer that became ready first."""
    return ready[0]


RULES: tuple[Rule, ...] = (fewest_bytes, depth_first, breadth_first)


def ordered(graph: Graph, ahead: int, members: int, rule: Rule) -> list[int]:
    """The layers in `members` in the order that a rule gives, with everything in `ahead` placed."""
    placed = ahead
    ready = [v for v in bits(members) if not graph.before[v] & members]
    order: list[int] = []
    while ready:
        v = rule(graph, ready, placed)
        ready.remove(v)
        order.append(v)
        placed |= 1 << v
        for w in bits(graph.after[v] & members & ~placed):
            if not graph.before[w] & members & ~placed:
                ready.append(w)
    return order


def split_evenly(
    graph: Graph, work: Sequence[float], start: int, end: int, parts: int, rule: Rule
) -> list[int]:
    """Downsets between two downsets that split the work between them into about equal parts."""
    order = ordered(graph, start, end & ~start, rule)
    whole = sum(work[v] for v in order)
    found: list[int] = []
    done = 0.0
    for v in order[:-1]:
        start |= 1 << v
        done += work[v]
        if done * parts >= whole * (len(found) + 1) and len(found) < parts - 1:
            found.append(start)
    return found


def around_cuts(
    graph: Graph, cuts: Sequence[int], rule: Rule, limit: int
) -> tuple[Downsets, list[list[int]]]:
    """The downsets around the cuts of a plan, at most `limit` per cut, and the pieces that they
    grow by.

    The last cut holds every layer. Each cut has at least a few downsets.
    """
    back = reverse(graph)
    heads: list[list[int]] = []
    tails: list[list[int]] = []
    # Step 1: a head and a tail for each stage.
    for start, end in zip([0, *cuts], cuts, strict=False):
        members = end & ~start
        reach = min(LONGEST, (members.bit_count() - 1) // 2)
        heads.append(ordered(graph, start, members, rule)[:reach])
        # Two orders may differ so much that a layer is early in one and late in the other.
        others = members & ~sum(1 << v for v in heads[-1])
        tails.append(ordered(back, cuts[-1] & ~end, others, rule)[:reach])
    # Step 2: shorten them until the downsets around each cut stay within the limit.
    regions = [
        _within_limit(graph, tail, head, limit)
        for tail, head in zip(tails, heads[1:], strict=False)
    ]
    # Step 3: list the downsets over middles and single layers, in series.
    pieces, needs = _in_series(graph, cuts, regions)
    after = [0] * len(needs)
    for piece, mask in enumerate(needs):
        for earlier in bits(mask):
            after[earlier] |= 1 << piece
    found = list_downsets(needs, after, len(cuts) * (limit + 4))
    assert found is not None, "every region is within the limit"
    return _of_layers(graph, found, pieces), pieces


def _within_limit(graph: Graph, tail: list[int], head: list[int], limit: int) -> list[int]:
    """As many layers as the limit on downsets allows, in a topological order."""
    longest = max(len(tail), len(head))
    while longest > 1:
        region = [*reversed(tail[:longest]), *head[:longest]]
        if _has_at_most(graph, region, limit):
            return region
        longest = longest * 3 // 4
    return [*tail[:1], *head[:1]]


def _has_at_most(graph: Graph, layers: Sequence[int], limit: int) -> bool:
    """Whether layers, in a topological order, have at most `limit` downsets among themselves."""
    place = {v: at for at, v in enumerate(layers)}

    def among(mask: int) -> int:
        return sum(1 << place[v] for v in bits(mask) if v in place)

    before = [among(graph.before[v]) for v in layers]
    after = [among(graph.after[v]) for v in layers]
    return list_downsets(before, after, limit) is not None


def _in_series(
    graph: Graph, cuts: Sequence[int], regions: Sequence[Sequence[int]]
) -> tuple[list[list[int]], list[int]]:
    """The pieces (middle, region, middle, …), and for each a bit mask: the pieces that it comes
    after."""
    single = sum(1 << v for region in regions for v in region)
    pieces: list[list[int]] = []
    needs: list[int] = []
    ahead = 0
    for start, end, region in zip([0, *cuts], cuts, [*regions, ()], strict=False):
        pieces.append(list(bits(end & ~start & ~single)))
        needs.append(ahead)
        middle = 1 << len(needs) - 1
        place = {v: len(pieces) + at for at, v in enumerate(region)}
        for v in region:
            pieces.append([v])
            needs.append(middle | sum(1 << place[u] for u in bits(graph.before[v]) if u in place))
        ahead = middle | sum(1 << at for at in place.values())
    return pieces, needs


def _of_layers(graph: Graph, found: Downsets, pieces: Sequence[Sequence[int]]) -> Downsets:
    """Downsets over pieces as downsets over layers."""
    members = [sum(1 << v for v in piece) for piece in pieces]
    reads = [0] * len(pieces)
    for at, piece in enumerate(pieces):
        for v in piece:
            reads[at] |= graph.before[v]
    masks, tops = [0], [0]
    assert found.grown is not None, "all downsets of the pieces were listed"
    for parent, at in found.grown:
        masks.append(masks[parent] | members[at])
        tops.append((tops[parent] | members[at]) & ~reads[at])
    return Downsets(masks, tops, found.grown, found.covers)
