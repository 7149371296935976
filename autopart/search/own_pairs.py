"""Overlapped pairs of a plan's own, chosen for the orders of the best decision so far."""

import msgspec

from autopart.activations.policies import leaves_choice
from autopart.pricing import Decision, fits, price
from autopart.records.layer_graph import has_pair_times
from autopart.records.plan import OrderSource
from autopart.records.problem import CUSTOM
from autopart.schedules.actions import Schedule
from autopart.schedules.catalogue import make_schedule
from autopart.search.incumbent import ROUNDING
from autopart.search.layout_search import LayoutSearch
from autopart.simulator.timeline import simulate
from autopart.solvers.orders.pairing import with_best_pairs
from autopart.stopping.time_limit import passed

ACTIONS = 3_000_000
"""Actions simulated, over all choices of pairs: a few seconds."""


def propose_own_pairs(found: LayoutSearch) -> None:
    """Choose pairs in the best decision's orders, and offer them where the step becomes shorter.

    Nothing is tried without pair times, for another objective than the step, with replicas, and where
    layers may be recomputed or offloaded.
    """
    best, problem = found.best.decision, found.problem
    if best is None or problem.objective != "step" or not has_pair_times(problem.graph):
        return
    layout = best.layout
    apart = all(len(own) == 1 for own in layout.stage_ranks) and len(layout.stage_ranks) > 1
    if not apart or leaves_choice(problem.demands) or passed(found.deadline):
        return
    orders = best.orders or make_schedule(
        layout.schedule, layout.stage_ranks, layout.num_microbatches
    )
    custom = msgspec.structs.replace(layout, schedule=CUSTOM)

    def step_of(schedule: Schedule) -> float:
        return simulate(
            schedule,
            layout.stage_ranks,
            best.prediction.stages,
            best.prediction.syncs,
            action_overhead=problem.cluster.action_overhead,
            sends_overlap=problem.cluster.sends_overlap,
            rendezvous=problem.cluster.sends == "rendezvous",
        ).makespan

    tries = ACTIONS // sum(map(len, orders))
    paired, step = with_best_pairs(orders, step_of, found.deadline, tries)
    if step >= best.prediction.step_time * (1 - ROUNDING):
        return
    own = _with_source(price(problem, custom, best.partition, paired, best.policies), best)
    if fits(problem, own):
        found.best.offer(own, found.best.by)


def _with_source(own: Decision, start: Decision) -> Decision:
    """The decision, with the orders that its pairs were chosen in."""
    source = OrderSource(
        method=f"{start.layout.schedule}, overlapped pairs chosen one by one",
        step_time_without_cap=own.prediction.step_time,
        orders_without_cap=(),
    )
    return own._replace(order_source=source)
