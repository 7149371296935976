"""The search of one layout on every assignment of its ranks to nodes.

A layout's own ranks stand for any others. A visit tries likely assignments
(autopart/search/likely_assignments.py). To raise the lower bound, the tree of all assignments
(autopart/bounds/rank_assignments.py) is followed best first: the node with the smallest bound is
split, and a leaf is searched as a layout with ranks of its own. Nothing is faster than the smallest
bound of a node that is left.
"""

import heapq
import itertools
from collections.abc import Sequence

from autopart.bounds.any_cuts import class_bounds
from autopart.bounds.objectives import open_apart
from autopart.bounds.of_layout import LayoutBounds
from autopart.bounds.rank_assignments import (
    RankAssignments,
    assignments_of,
    fastest_assigned,
    most_splits,
    takes_gpus_in_order,
)
from autopart.bounds.rank_groups import Inside
from autopart.certificate.apart import may_be_faster_apart
from autopart.cost.cuts import list_all
from autopart.records.layouts import Layout
from autopart.records.problem import CLASSIC, CUSTOM
from autopart.search import closing
from autopart.search.closing import Closed, Raised
from autopart.search.layout_search import ACTIONS, BASELINES, LayoutSearch
from autopart.search.likely_assignments import likely_layouts
from autopart.search.nearby_cuts import improve_nearby
from autopart.search.open_layout import OpenLayout
from autopart.solvers import cuts_dp
from autopart.stopping.time_limit import check_time, passed

STEPS_TO_BEST = (1 / 8, 1 / 4, 1 / 2, 1.0)
"""Values between a layout's bound and the best value at which the lower bound is raised."""

SHARE_OF_LIKELY = 0.1
"""The part of the budget that simulates partitions on each likely assignment."""


def visit(found: LayoutSearch, layout: Layout, quick: float) -> OpenLayout | None:
    """Try the proposals for a layout on likely assignments of its ranks.

    Returns the layout with its bound; None where nothing fits. `quick` bounds it where its partitions
    cannot all be listed.
    """
    listed = list_all(found.cuts, len(layout.stage_ranks))
    named = layout.schedule != CUSTOM
    if not listed:
        return _visit_unlisted(found, layout, quick)
    # Step 1: proposals that need no bounds.
    if named and found.solver in (*BASELINES, "ilp"):
        for one in likely_layouts(found.problem, layout, None):
            found.propose_without_bounds(one, listed=True)
    # Step 2: the smallest possible largest bound, whatever the ranks.
    least = least_of_root(found, layout)
    if least is None:
        return None
    # The check passes a shape over whose own bound reaches the value, by a rounding too.
    least = max(least, quick)
    # Step 3: proposals along the cuts. Nodes change at a partition's cheap cuts last.
    if named and found.solver in ("auto", "dp") and found.is_promising(least):
        likely = likely_layouts(found.problem, layout, None)
        for one in likely:
            found.visit(one)
        best = found.best.decision
        if best is not None and len(best.layout.stage_ranks) == len(layout.stage_ranks):
            for one in likely_layouts(found.problem, layout, best.partition)[len(likely) :]:
                found.visit(one)
    return OpenLayout(least, layout)


def _visit_unlisted(found: LayoutSearch, layout: Layout, quick: float) -> OpenLayout | None:
    """`visit` for a layout whose cuts are too many to list: classes of cuts bound it."""
    least = quick
    of_classes = class_bounds(
        *fastest_assigned(found.problem, layout), found.objective.bounds.of_layout
    )
    if of_classes is not None:
        bounds, classes = of_classes
        path = cuts_dp.best_path(bounds.stages, classes.nested)
        if path is None:
            return None
        least = max(quick, path.largest, bounds.whole)
    if layout.schedule != CUSTOM and least < found.best.value:
        for one in likely_layouts(found.problem, layout, None):
            found.propose_without_bounds(one, listed=False)
        if layout.schedule in CLASSIC and found.solver in ("auto", "dp"):
            improve_nearby(found)
    return OpenLayout(least, layout)


def raise_bound(found: LayoutSearch, place: OpenLayout, actions: int) -> Raised:
    """The value up to which a layout has nothing better, on any assignment of its ranks."""
    if found.solver in BASELINES:
        return Raised(place.bound, 0, 0)
    alone = _only_assignment(found, place.layout)
    if alone is not None:
        return _raise_assigned(found, alone, place.bound, actions)
    spent = _improve_likely(found, place.layout, actions)
    return _raise_best_first(found, place, actions - spent)._replace(simulated=None)


def close_named(found: LayoutSearch, places: Sequence[OpenLayout]) -> None:
    """Raise the bounds of named schedules' layouts, each schedule with the budget that it has alone."""
    if found.solver not in ("auto", "dp") or found.objective.bounds.attained:
        return
    left = dict.fromkeys(found.problem.demands.schedules, ACTIONS)
    for place in sorted(places, key=lambda place: place.bound):
        name = place.layout.schedule
        if place.bound >= found.best.value or found.out_of_time():
            break
        if left[name] > 0 and list_all(found.cuts, len(place.layout.stage_ranks)):
            left[name] -= raise_bound(found, place, left[name]).actions


def close(found: LayoutSearch, layout: Layout, value: float, actions: int) -> Closed | None:
    """Simulate every partition that may take less than `value`, on any assignment of a layout.

    None where that takes more than so many `actions`, or where time is up.
    """
    least = least_of_root(found, layout)
    if least is None or least >= value:
        return Closed(0, 0)
    assigned = _assigned_below(found, layout, value)
    if assigned is None:
        return None
    partitions = spent = 0
    for one in assigned:
        closed = found.close(one, value, actions - spent)
        if closed is None:
            return None
        partitions += closed.simulated
        spent += closed.actions
    return Closed(partitions, spent)


def count_below(found: LayoutSearch, layout: Layout, value: float) -> int:
    """Partitions that bounds leave open below `value`, on any assignment of a layout's ranks."""
    assigned = _assigned_below(found, layout, value) or ()
    paths = itertools.chain(*(found.bounds_of(one).paths_below(value) for one in assigned))
    return sum(1 for _ in paths)


def _assigned_below(found: LayoutSearch, layout: Layout, value: float) -> list[Layout] | None:
    tree = assignments_of(found.problem, layout)

    def is_open(inside: Inside) -> bool:
        least = _least_of_node(found, tree, inside)
        return least is not None and least < value

    if found.problem.demands.replicas_per_stage:
        of_layout = found.objective.bounds.of_layout
        simulated = open_apart(
            found.problem, layout, of_layout, found.cuts, value, may_be_faster_apart
        )
        return tree.open_layouts(
            of_layout, found.cuts, value, lambda inside: is_open(inside) and simulated(inside)
        )
    # Under custom orders the bounds of all stages together say more than the least of a stage.
    known = None if layout.schedule == CUSTOM else is_open
    of_layout = found.objective.bounds.of_layout
    return tree.open_layouts(of_layout, found.cuts, value, known)


def _only_assignment(found: LayoutSearch, layout: Layout) -> Layout | None:
    """The assignment that no other one beats; None where several may be the best."""
    if takes_gpus_in_order(found.problem):
        return layout
    tree = assignments_of(found.problem, layout)
    return tree.best_leaf(tree.root)


def bounds_of_root(found: LayoutSearch, layout: Layout) -> LayoutBounds | None:
    """Bounds that hold on every assignment of a layout's ranks, as the certificate takes them.

    None where there are none for so many cuts.
    """
    if not list_all(found.cuts, len(layout.stage_ranks)):
        of_classes = class_bounds(
            *fastest_assigned(found.problem, layout), found.objective.bounds.of_layout
        )
        return None if of_classes is None else of_classes[0]
    alone = _only_assignment(found, layout)
    if alone is not None:
        return found.bounds_of(alone)
    return found.objective.bounds.of_layout(*fastest_assigned(found.problem, layout), found.cuts)


def least_of_root(found: LayoutSearch, layout: Layout) -> float | None:
    """Seconds that no partition on any assignment can beat; None where nothing fits."""
    tree = assignments_of(found.problem, layout)
    known = found.least_of.setdefault(layout, {})
    alone = None if tree.root in known else _only_assignment(found, layout)
    if alone is not None:
        known[tree.root] = found.least(found.bounds_of(alone))
    return _least_of_node(found, tree, tree.root)


def _least_of_node(found: LayoutSearch, tree: RankAssignments, inside: Inside) -> float | None:
    """Seconds that no partition on a node of the tree can beat; None where nothing fits."""
    check_time()
    known = found.least_of.setdefault(tree.layout, {})
    if inside not in known:
        bounds = found.objective.bounds.of_layout(*tree.apart(inside), found.cuts)
        known[inside] = found.least(bounds)
    return known[inside]


def _raise_assigned(found: LayoutSearch, layout: Layout, bound: float, actions: int) -> Raised:
    """`raise_bound` for a layout's own ranks."""
    if not actions:
        return Raised(bound, 0, 0)
    return closing.raise_bound(
        found.best, bound, STEPS_TO_BEST, lambda aim, left: found.close(layout, aim, left), actions
    )


def _improve_likely(found: LayoutSearch, layout: Layout, actions: int) -> int:
    """Simulate the partitions that are open on likely assignments; returns the actions simulated."""
    spent, best = 0, found.best.decision
    if not actions or layout.schedule == CUSTOM:
        return spent
    alike = best is not None and len(best.layout.stage_ranks) == len(layout.stage_ranks)
    for one in likely_layouts(found.problem, layout, best.partition if best and alike else None):
        closed = found.close(one, found.best.value, int(SHARE_OF_LIKELY * actions))
        spent += closed.actions if closed else 0
    return spent


def _find_some_plan(found: LayoutSearch, tree: RankAssignments) -> None:
    """Try assignments depth first until one has a plan, where none is known.

    Likely assignments may miss the only ones on which stages fit into different GPUs. The smallest
    bound first leads to no leaf soon where many bounds are nearly equal.
    """
    if tree.layout.schedule == CUSTOM or found.solver not in ("auto", "dp"):
        return
    stack, seen = [tree.root], {tree.root}
    left = most_splits(tree.layout, found.cuts)
    while stack and left and found.best.decision is None and not passed(found.deadline):
        inside = stack.pop()
        leaf, packing = tree.on_nodes(inside), tree.packing(inside)
        if leaf is not None:
            found.visit(leaf)
        elif packing.certain:
            left -= 1
            fewer = [one for one in tree.smaller(inside) if one not in seen]
            seen.update(fewer)
            able = [(least, at) for at, one in enumerate(fewer)
                    if (least := _least_of_node(found, tree, one)) is not None]  # fmt: skip
            stack += [fewer[at] for _, at in sorted(able, reverse=True)]


def _raise_best_first(found: LayoutSearch, place: OpenLayout, actions: int) -> Raised:
    """Follow the tree of assignments, the smallest bound first."""
    tree, order = assignments_of(found.problem, place.layout), itertools.count()
    _find_some_plan(found, tree)
    seen, searched = {tree.root}, dict[Layout, float]()
    left = most_splits(place.layout, found.cuts)
    heap = [(place.bound, next(order), tree.root)]
    spent, leaves = 0, float("inf")
    while heap and heap[0][0] < min(found.best.value, leaves):
        inside, packing = heap[0][2], tree.packing(heap[0][2])
        # Step 1: stop where the tree is too large, or nobody knows whether a node is a leaf.
        if (packing.nodes is None and left == 0) or not packing.certain or passed(found.deadline):
            break
        bound, _, _ = heapq.heappop(heap)
        # Step 2: a leaf is an assignment: search it, and raise its bound.
        if packing.nodes is not None:
            leaf = tree.on_nodes(inside)
            assert leaf is not None, "a packing gives ranks"
            if leaf not in searched:
                if leaf.schedule != CUSTOM and found.solver in ("auto", "dp"):
                    found.visit(leaf)
                budget = actions - spent if tree.best_leaf(inside) is not None else 0
                raised = _raise_assigned(found, leaf, bound, budget)
                searched[leaf] = raised.proven
                spent += raised.actions
            leaves = min(leaves, max(bound, searched[leaf]))
            continue
        # Step 3: else split it by the links that an assignment may lack.
        left -= 1
        for fewer in tree.smaller(inside):
            if fewer not in seen:
                seen.add(fewer)
                least = _least_of_node(found, tree, fewer)
                if least is not None:
                    heapq.heappush(heap, (max(bound, least), next(order), fewer))
    left_open = min(leaves, heap[0][0] if heap else float("inf"))
    return Raised(min(found.best.value, left_open), spent, None)
