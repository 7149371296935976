"""The plans that a report shows beside a plan: the usual splits, and the best plans for other memory."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from autopart.certificate.plan_problem import own_size
from autopart.errors import AutopartError
from autopart.records.cluster import Cluster
from autopart.records.layer_graph import LayerGraph
from autopart.records.plan import Plan
from autopart.records.profile import Profile
from autopart.search.memory_sweep import SweepPoint, memory_sweep
from autopart.search.options_of_plan import options_of
from autopart.search.planner import baselines, solve_with_options
from autopart.stopping.time_limit import deadline_in, time_left

SWEEP_SIZES = 6
"""Memory sizes of the sweep, besides the one where nothing fits."""
LEAST_SECONDS = 0.5
"""Seconds that each part has at least."""


class PlansBeside(NamedTuple):
    """Other plans for a plan's problem."""

    graph: LayerGraph
    """The layers at the plan's microbatch size."""
    baselines: Mapping[str, Plan | str]
    """The usual splits by name, or the reason why there is none."""
    sweep: Sequence[SweepPoint]
    """The best plan within each memory size, the largest first."""
    no_sweep: str
    """Why there is no sweep; empty where there is one."""


def plans_beside(plan: Plan, profiles: Sequence[Profile], *, time_limit: float) -> PlansBeside:
    """The usual splits and a memory sweep, in about so many seconds together.

    Raises PlanError where the profiles are not the plan's. A sweep that the cluster cannot have, or
    that finds nothing in its time, is left out with the reason.
    """
    until = deadline_in(time_limit)
    graph = own_size(plan, profiles).profile.graph
    splits = baselines(profiles, plan, time_limit=max(LEAST_SECONDS, time_limit / 3))
    options = options_of(plan)

    def solve_on(cluster: Cluster, seconds: float) -> Plan:
        limited = dataclasses.replace(options, time_limit=seconds)
        return solve_with_options(profiles, cluster, limited)

    try:
        left = max(LEAST_SECONDS, time_left(until))
        sweep, reason = memory_sweep(solve_on, plan.cluster, SWEEP_SIZES, left), ""
    except AutopartError as error:
        sweep, reason = (), str(error)
    return PlansBeside(graph, splits, sweep, reason)
