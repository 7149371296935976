"""A memory sweep shares one time limit among all its sizes."""

import time

import msgspec
import pytest

from autopart.errors import InfeasibleError
from autopart.records.cluster import Cluster
from autopart.records.plan import Plan
from autopart.search.memory_sweep import memory_sweep
from tests.support.problems import cluster
from tests.support.samples import sample_plan


def test_behind_the_time_limit_the_plan_for_less_memory_stands_for_larger_sizes(
    monkeypatch: pytest.MonkeyPatch,
):
    plan = sample_plan()
    peaks = (10**9,) * len(plan.prediction.rank_peak_bytes)
    large = msgspec.structs.replace(
        plan, prediction=msgspec.structs.replace(plan.prediction, rank_peak_bytes=peaks)
    )
    now, solved = [0.0], 0
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def solve_on(target: Cluster, seconds: float) -> Plan:
        nonlocal solved
        solved += 1
        now[0] += 1.0
        if target.memory_bytes == 1:
            raise InfeasibleError("nothing fits", 1000)
        return large

    points = memory_sweep(solve_on, cluster(1, 2), 1000, 5.0)
    assert solved <= 7
    assert len(points) == 1001 and points[-1].plan is None
    assert all(point.plan is large for point in points[:-1])
    sizes = [point.memory_bytes for point in points]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] == 10**9 and sizes[-1] == 999
