"""Schedules of their own: an order for every rank of a given partition (schedule `auto`)."""

from autopart.solvers.orders.of_layout import order_problem, orders_of_layout
from autopart.solvers.orders.optimizer import OrderResult, named_schedules, optimize_orders

__all__ = [
    "OrderResult",
    "named_schedules",
    "optimize_orders",
    "order_problem",
    "orders_of_layout",
]
