"""Every assignment of ranks to nodes, by the links that may lie within a node.

A layout's cost depends on its ranks through three kinds of links:

    a cut       between two stages; within a node where each replica's two ranks share one; so are
                the moves of stash between two partner stages
    a sync      over a stage's replicas; within a node where all of them share one
    a tied sync over the stages with a copy of one parameter; likewise

An `Inside` names the links that may lie within a node. All others cross nodes. Ranks that these
links join form groups. Give each group a node of its own, as large as the group needs. For every
assignment A whose links within a node are all in an `Inside`:

    step(A) >= step(the groups, each on a node of its own)                                      (18)

(18) holds where no link within a node is slower than one between nodes. Orders stay the same, and
no action or send takes longer. Where some is slower, links within the groups' nodes are as fast as
the better of both.

With a network record, a sync's price depends on the number of ranks on each node, and more compact
ones are not always faster. So on the groups' nodes each sync has the least price that as many ranks
have anywhere on the real nodes. Where its ranks do not share a node, that is anywhere on two nodes
or more. (18) holds for these prices.

The tree of all assignments starts with every link. Where its groups find room on the real nodes,
they are an assignment themselves. By (18) no other one is faster, where each link and sync of it takes
at most its seconds on the groups' nodes. Where they find no room, no assignment
has all these links within nodes. It lacks one that helps to join the first group that is too large.
Where groups only lack room together, it lacks any link. Each choice is a smaller `Inside`. So every
assignment lies under some leaf, and no assignment is faster than its leaf.

Stages that a cut within a node joins have all their syncs within a node, or none. Assignments that
lack one sync and no cut of a group therefore lack all its syncs.
"""

import functools
import itertools
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import msgspec
from networkx.utils import UnionFind

from autopart.bounds.gpu_matching import Matching, best_cap, lower_caps, match_gpus, places_in_want
from autopart.bounds.node_packing import Packing, pack_nodes
from autopart.bounds.of_layout import LayoutBounds
from autopart.bounds.pseudo_clusters import (
    is_no_slower,
    links_are_ordered,
    with_gpus,
    with_nodes,
)
from autopart.bounds.rank_groups import Cap, Inside, Pair, RankGroups, each_link, sort_key
from autopart.cost.collectives import Fastest
from autopart.cost.cuts import Cuts
from autopart.cost.lending import lending_links, lending_pairs
from autopart.cost.rails import on_own_rails
from autopart.cost.stage_times import cut_links
from autopart.cost.sync_rules import RULES
from autopart.cost.syncs import CallPrice, calls_of, sync_price
from autopart.cost.tied_syncs import tied_price
from autopart.records.cluster import Cluster, Link
from autopart.records.layer_graph import LayerGraph, edges, positions
from autopart.records.layouts import Layout
from autopart.records.problem import Problem
from autopart.stopping.time_limit import check_time

MOST_SPLITS = 200
"""Most nodes of the tree that are split for one layout."""

MOST_ENTRIES = 8_000_000
"""Most matrix entries that bounds on these nodes have together: a few seconds with their children."""

FEWEST_SPLITS = 6
"""Nodes that may be split in any case."""

BoundLayout = Callable[[Problem, Layout, Cuts], LayoutBounds]
"""Bounds in seconds for every partition on a layout."""


class Assigned(NamedTuple):
    """A layout with its ranks on nodes, and the problem whose cluster has these nodes."""

    problem: Problem
    layout: Layout


class RankAssignments:
    """Every assignment of ranks to nodes for one layout, whose own ranks stand for any."""

    def __init__(self, problem: Problem, layout: Layout) -> None:
        self.problem, self.layout = problem, layout
        self.places = tuple(dict.fromkeys(layout.stage_ranks))
        place = {ranks: at for at, ranks in enumerate(self.places)}
        self._of_stage = [place[ranks] for ranks in layout.stage_ranks]
        sets = [frozenset(own) for own in self.places]
        self._on_same_ranks = [
            (sets.index(own), at) for at, own in enumerate(sets) if sets.index(own) < at
        ]
        """Pairs of places with the same ranks in another order. They lack a sync together."""
        self.ordered = links_are_ordered(problem.cluster)
        once = RULES[problem.training.sync].ties_once
        self._groups = RankGroups(self.places, ties_by_replica=not once)
        self._differ = bool(problem.cluster.gpus)
        self._matched: dict[Inside, Matching] = {}

    @functools.cached_property
    def root(self) -> Inside:
        """Every link, except those that alone join more ranks than a node has."""
        pairs = [*zip(self._of_stage, self._of_stage[1:], strict=False)]
        # Stash moves between partners replica by replica, as values over a cut do.
        pairs += [(self._of_stage[a], self._of_stage[b]) for a, b in lending_pairs(self.layout)]
        every = Inside(
            cuts=frozenset((min(pair), max(pair)) for pair in pairs if pair[0] != pair[1]),
            syncs=frozenset(at for at, own in enumerate(self.places) if len(own) > 1),
            tied=frozenset(self._tied_pairs()),
            caps=(best_cap(self.problem.cluster),) * len(self.places) if self._differ else (),
        )
        room = self.problem.cluster.gpus_per_node
        for link in each_link(every):
            if self._groups.joined_by(link) > room:
                every = every.without(link)
        return every

    def open_layouts(
        self,
        of_layout: BoundLayout,
        cuts: Cuts,
        value: float,
        is_open: Callable[[Inside], bool] | None = None,
    ) -> list[Layout] | None:
        """The leaves that bounds leave open below `value` seconds, as layouts on the real nodes.

        `is_open` says so for a node in the tree, where a caller knows it already. None where the
        tree is too large to look at, or where a leaf is not certain. Where GPUs differ and each
        stage has its own replicas, the layout's own ranks are the only leaf.
        """

        def may_be_below(inside: Inside) -> bool:
            bounds = of_layout(*self.apart(inside), cuts)
            return next(bounds.paths_below(value), None) is not None

        if takes_gpus_in_order(self.problem):
            return [self.layout]
        open_nodes, seen = [self.root], {self.root}
        found: dict[Layout, None] = {}
        left = most_splits(self.layout, cuts)
        while open_nodes:
            inside = open_nodes.pop()
            # Step 1: a leaf is an assignment, whose own bounds say more. Without (18) on the real
            # nodes, it does not stand for others.
            packing, leaf = self.packing(inside), self.best_leaf(inside)
            if leaf is not None:
                found[leaf] = None
                continue
            # Step 2: nothing below a node is faster than its groups apart.
            if not (is_open or may_be_below)(inside):
                continue
            # Step 3: look at each choice that leaves out a link.
            check_time()
            if packing.nodes is not None or not packing.certain or left == 0:
                return None
            left -= 1
            fewer = [one for one in self.smaller(inside) if one not in seen]
            seen.update(fewer)
            open_nodes += reversed(fewer)
        return list(found)

    def apart(self, inside: Inside) -> Assigned:
        """The layout with each group on a node of its own, as (18) asks."""
        groups = self._groups.of(inside)
        room = max(map(len, groups))
        starts = range(0, len(groups) * room, room)
        there = itertools.chain(*map(range, starts, map(operator.add, starts, map(len, groups))))
        ranks = dict(zip(itertools.chain(*groups), there, strict=True))
        cluster = with_nodes(self.problem.cluster, len(groups), room, ordered=self.ordered)
        if self._differ:
            cap_of = self._cap_of(inside)
            capped = {ranks[rank]: cap for rank, cap in cap_of.items()}
            least = Cap(*map(min, zip(*inside.caps, strict=True)))
            gpus = [capped.get(at, least) for at in range(len(groups) * room)]
            cluster = with_gpus(cluster, gpus)
        problem = msgspec.structs.replace(self.problem, cluster=cluster)
        return Assigned(problem, self._renamed(ranks))

    def on_nodes(self, inside: Inside) -> Layout | None:
        """The layout with its groups on the real nodes; None where no room was found for them."""
        nodes = self.packing(inside).nodes
        return None if nodes is None else self._on_nodes(inside, nodes)

    def best_leaf(self, inside: Inside) -> Layout | None:
        """The assignment for a node in the tree, where no other one under it is faster; else None."""
        leaf = self.on_nodes(inside) if self.ordered else None
        if leaf is None or self.problem.cluster.network is None:
            return leaf
        relaxed = self.apart(inside)
        cuts = zip(
            _send_links(self.problem.cluster, leaf),
            _send_links(relaxed.problem.cluster, relaxed.layout),
            strict=True,
        )
        syncs = self.problem.objective != "bottleneck"
        if all(map(is_no_slower, cuts)) and (not syncs or self._syncs_are_least(leaf, relaxed)):
            return leaf
        return None

    def _syncs_are_least(self, leaf: Layout, relaxed: Assigned) -> bool:
        """Whether no sync in a leaf takes longer than on the groups' nodes, for any bytes."""
        training = self.problem.training
        real, apart = self.problem.cluster, relaxed.problem.cluster
        pairs = set(zip(leaf.stage_ranks, relaxed.layout.stage_ranks, strict=True))
        # Step 1: each stage's own sync.
        prices: list[tuple[CallPrice, CallPrice]] = []
        for own, others in pairs:
            price, least = sync_price(real, own, training), sync_price(apart, others, training)
            prices += zip(calls_of(price), calls_of(least), strict=True)
        # Step 2: tied syncs over two stages. Those over more stages are left open.
        if any(len(set(tied.layers)) > 2 for tied in self.problem.graph.tied):
            return False
        if self.problem.graph.tied:
            for (own, there), (own_2, there_2) in itertools.combinations(pairs, 2):
                price = tied_price(real, (own, own_2), training).price
                least = tied_price(apart, (there, there_2), training).price
                prices += zip(calls_of(price), calls_of(least), strict=True)
        return all(
            isinstance(own, Fastest) and isinstance(least, Fastest) and own.is_never_above(least)
            for own, least in prices
        )

    def packing(self, inside: Inside) -> Packing:
        """Nodes for the groups on the real cluster."""
        cluster = self.problem.cluster
        packed = pack_nodes(self._groups.sizes(inside), cluster.num_nodes, cluster.gpus_per_node)
        if not self._differ or packed.nodes is None:
            return packed
        if self._in_want(inside):
            return Packing(None, certain=True)
        matched = self._match(inside)
        return packed if matched.gpus else Packing(None, certain=matched.certain)

    def _in_want(self, inside: Inside) -> list[int]:
        """A few places that too few GPUs suit."""
        # Places on the same ranks want their GPUs once.
        again = {at for _, at in self._on_same_ranks}
        counts = [0 if at in again else len(own) for at, own in enumerate(self.places)]
        return places_in_want(self.problem.cluster, inside.caps, counts) if self._differ else []

    def _cap_of(self, inside: Inside) -> dict[int, Cap]:
        """The cap for each rank."""
        caps: dict[int, Cap] = {}
        for own, cap in zip(self.places, inside.caps, strict=True):
            for rank in own:
                other = caps.get(rank, cap)
                caps[rank] = Cap(
                    min(cap.speed, other.speed), min(cap.memory_bytes, other.memory_bytes)
                )
        return caps

    def _match(self, inside: Inside) -> Matching:
        if inside not in self._matched:
            groups = self._groups.of(inside)
            found = match_gpus(self.problem.cluster, groups, self._cap_of(inside))
            self._matched[inside] = found
        return self._matched[inside]

    def _on_nodes(self, inside: Inside, nodes: Sequence[int]) -> Layout:
        matched = self._match(inside).gpus if self._differ else None
        if matched is not None:
            return self._renamed(matched)
        room, used = self.problem.cluster.gpus_per_node, [0] * (1 + max(nodes))
        ranks: dict[int, int] = {}
        for group, node in zip(self._groups.of(inside), nodes, strict=True):
            for rank in group:
                ranks[rank] = node * room + used[node]
                used[node] += 1
        leaf = self._renamed(ranks)
        # Nodes decide which links lie within one; on its node each rank takes the rail of its sends.
        own = on_own_rails(self.problem.cluster, leaf.stage_ranks)
        return msgspec.structs.replace(leaf, stage_ranks=own)

    def _renamed(self, ranks: dict[int, int]) -> Layout:
        renamed = tuple(tuple(map(ranks.__getitem__, own)) for own in self.layout.stage_ranks)
        return msgspec.structs.replace(self.layout, stage_ranks=renamed)

    def _largest(self, inside: Inside) -> int:
        """Ranks in the largest group."""
        return max(self._groups.sizes(inside))

    def smaller(self, inside: Inside) -> list[Inside]:
        """Smaller choices of links and caps, where the groups find no room or no GPUs.

        Each assignment with only links from `inside` within nodes, and within its caps, is so for
        one of these.
        """
        core = inside
        if self._largest(inside) > self.problem.cluster.gpus_per_node:
            core = self._core(inside)
        elif in_want := self._in_want(inside):
            return self._with_lower_caps(inside, in_want)
        # Step 1: the assignment lacks a cut or a tied sync.
        lacking = [Inside(frozenset([pair]), frozenset(), frozenset()) for pair in core.cuts]
        lacking += [Inside(frozenset(), frozenset(), frozenset([pair])) for pair in core.tied]
        # Step 2: or it has all these cuts, and lacks every sync on places that they connect.
        together = UnionFind(range(len(self.places)))
        for pair in (*core.cuts, *self._on_same_ranks):
            together.union(*pair)
        for places in together.to_sets():
            if core.syncs.intersection(places):
                lacking.append(Inside(frozenset(), frozenset(places), frozenset()))
        fewer = [inside.without(links) for links in sorted(lacking, key=sort_key)]
        # Step 3: where room is enough but for GPUs that suit, some place has a GPU below its cap.
        if self._differ and core is inside:
            fewer += self._with_lower_caps(inside, range(len(self.places)))
        return fewer

    def _with_lower_caps(self, inside: Inside, places: Iterable[int]) -> list[Inside]:
        """The choices where one of some places has a GPU below its cap."""
        return [
            inside._replace(caps=(*inside.caps[:at], cap, *inside.caps[at + 1 :]))
            for at in places
            for cap in lower_caps(self.problem.cluster, inside.caps[at])
        ]

    def _core(self, inside: Inside) -> Inside:
        """A few links that join a group too large for a node: leaving out any one splits it."""
        # Drop one link after the other, from the last place on, as long as some group is too large.
        # Syncs go before cuts: cuts alone join one replica's ranks, and each of them then costs a send.
        for link in sorted(each_link(inside), key=sort_key, reverse=True):
            fewer = inside.without(link)
            if self._largest(fewer) > self.problem.cluster.gpus_per_node:
                inside = fewer
        return inside

    def _tied_pairs(self) -> Iterator[Pair]:
        """Pairs of places whose stages may have copies of one tied parameter."""
        graph, num_stages = self.problem.graph, len(self.layout.stage_ranks)
        for tied in graph.tied:
            homes = [_homes(graph, name, num_stages) for name in dict.fromkeys(tied.layers)]
            for first, second in itertools.combinations(homes, 2):
                for a, b in itertools.product(first, second):
                    pair = self._of_stage[a], self._of_stage[b]
                    if pair[0] != pair[1]:
                        yield min(pair), max(pair)


def _send_links(cluster: Cluster, layout: Layout) -> list[Link | None]:
    """The links over the cuts, and those between partners that lend stash."""
    return [*cut_links(cluster, layout.stage_ranks), *lending_links(cluster, layout)]


@functools.lru_cache(maxsize=8)
def assignments_of(problem: Problem, layout: Layout) -> RankAssignments:
    """Every assignment for a layout, kept for the next questions about it."""
    return RankAssignments(problem, layout)


def fastest_assigned(problem: Problem, layout: Layout) -> Assigned:
    """The layout with every link within a node that may be: no assignment is faster.

    Where the bound takes GPUs in their order, the layout on its own ranks.
    """
    if takes_gpus_in_order(problem):
        return Assigned(problem, layout)
    tree = assignments_of(problem, layout)
    return tree.apart(tree.root)


def takes_gpus_in_order(problem: Problem) -> bool:
    """Whether search and bound take consecutive ranks only: GPUs differ, and so do replicas."""
    return bool(problem.cluster.gpus) and problem.demands.replicas_per_stage


def most_splits(layout: Layout, cuts: Cuts) -> int:
    """Nodes of the tree that may be split for a layout: bounds on their children take a while.

    A check splits no node that a search has not split. So the limit counts splits, in any order.
    """
    most = MOST_ENTRIES // (cuts.nested.size * len(layout.stage_ranks))
    return min(MOST_SPLITS, max(most, FEWEST_SPLITS))


@functools.lru_cache(maxsize=64)
def _homes(graph: LayerGraph, name: str, num_stages: int) -> range:
    """The stages that a layer can be on.

    Every stage ahead of it has a layer that the layer does not feed. Every stage behind it has one
    that does not feed the layer.
    """
    layer, n = positions(graph)[name], len(graph.layers)
    ahead: list[set[int]] = [set() for _ in range(n)]
    for u, w in sorted(edges(graph), key=lambda edge: edge[1]):
        ahead[w] |= ahead[u] | {u}
    not_fed = sum(layer not in own for own in ahead) - 1
    not_feeding = n - 1 - len(ahead[layer])
    return range(max(0, num_stages - 1 - not_feeding), min(num_stages - 1, not_fed) + 1)
