"""The decision with orders that a search has found, with the source of these orders."""

import msgspec

from autopart.activations.policies import StagePolicies
from autopart.pricing import Decision, price, simulated
from autopart.records.layouts import Layout, Partition
from autopart.records.plan import OrderSource, orders_of
from autopart.records.problem import CUSTOM
from autopart.search.layout_search import LayoutSearch
from autopart.solvers.orders.optimizer import OrderResult
from autopart.units import format_time


def with_orders(
    found: LayoutSearch,
    layout: Layout,
    partition: Partition,
    orders: OrderResult,
    policies: tuple[StagePolicies, ...] | None = None,
) -> Decision:
    """The decision with these orders, or with the named schedule that they are.

    None for the policies takes the best ones under the orders.
    """
    # The answer may be a named schedule after all.
    if orders.name != "auto":
        named = msgspec.structs.replace(layout, schedule=orders.name)
        return price(found.problem, named, partition, given=policies)
    custom = msgspec.structs.replace(layout, schedule=CUSTOM)
    own = price(found.problem, custom, partition, orders.schedule, policies)
    least, free = found.objective.value(own), orders.without_cap
    without = orders.step_time_without_cap
    if found.problem.objective == "period":
        # The search for orders has minimised a bound on the period: both are simulated here.
        without = least
        if free != orders.schedule:
            stages, syncs = own.prediction.stages, own.prediction.syncs
            cluster = found.problem.cluster
            other = simulated(cluster, custom, stages, syncs, free, "period").period
            assert other is not msgspec.UNSET
            without, free = (other, free) if other < least else (least, orders.schedule)
    source = OrderSource(
        method=_method(orders),
        step_time_without_cap=without,
        orders_without_cap=() if free == orders.schedule else orders_of(free),
    )
    return own._replace(order_source=source)


def _method(orders: OrderResult) -> str:
    """The origin of the orders, and CP-SAT's word on their bound, which nobody checks."""
    if orders.said_bound is None:
        return orders.origin
    least = format_time(orders.said_bound)
    return f"{orders.origin}, and CP-SAT says that no order of these stages takes less than {least}"
