"""Orders of a plan's own where no named schedule fits into memory.

Named schedules keep several microbatches in flight. Own orders may keep one, so they may fit where
nothing else does. On each placement the leanest partition is tried, until one fits.
"""

from collections.abc import Iterable

from autopart.activations.best_policies import best_policies
from autopart.cost.cuts import partition_of
from autopart.errors import InfeasibleError
from autopart.pricing import fits
from autopart.records.layouts import Layout
from autopart.search.joint_choices import with_faster_policies
from autopart.search.layout_search import LayoutSearch
from autopart.search.order_decisions import with_orders
from autopart.search.own_orders import SOME_ACTIONS
from autopart.solvers import cuts_dp
from autopart.solvers.orders.of_layout import Known, orders_of_layout
from autopart.stopping.time_limit import check_time


def propose_first_orders(found: LayoutSearch, layouts: Iterable[Layout]) -> None:
    """Offer own orders on the first of these layouts where some fit."""
    for layout in layouts:
        check_time()
        # Step 1: the partition that needs the fewest bytes with one microbatch in flight.
        best = cuts_dp.least_memory(found.problem, layout, found.cuts)
        if best is None:
            continue
        partition = partition_of(found.cuts, best.path)
        # Step 2: its orders within the memory, under policies that let one microbatch at a time fit.
        policies = best_policies(found.problem, layout, partition)
        try:
            orders = orders_of_layout(
                found.problem,
                layout,
                partition,
                split=True,
                known=Known(policies=policies),
                deadline=found.deadline,
                actions=SOME_ACTIONS,
            )
        except InfeasibleError:
            continue
        own = with_orders(found, layout, partition, orders, policies)
        own = with_faster_policies(found.problem, own) or own
        if fits(found.problem, own):
            found.best.offer(own, found.best.by)
            found.best_of_layout[own.layout] = own
            return
