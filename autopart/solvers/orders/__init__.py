"""Schedules of their own: an order for every rank of a given partition (schedule `auto`)."""

from autopart.solvers.orders.optimizer import OrderResult, optimize_orders

__all__ = ["OrderResult", "optimize_orders"]
