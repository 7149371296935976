"""Arithmetic of the roofline."""

import pytest
import torch

from autopart.errors import ClusterError
from autopart.records.gpu import Gpu
from autopart.records.known_gpus import find_gpu
from autopart.runtime.profiling.op_costs import OpCost, OpCosts
from autopart.runtime.profiling.roofline import (
    LAUNCH_TIME,
    RooflineStopwatch,
    memory_share,
    roofline_time,
    update_time,
)

GPU = Gpu(
    name="toy",
    memory_bytes=1 << 30,
    flops={"float32": 1e9, "bfloat16": 4e9},
    memory_bandwidth=1e8,
    host_bandwidth=1e9,
    link_bandwidth=1e8,
    compute_efficiency=0.5,
    memory_efficiency=0.25,
    source="a test",
)


def _cost(flops: int, moved_bytes: int, dtype: torch.dtype = torch.float32) -> OpCost:
    return OpCost(flops, moved_bytes, dtype)


def test_an_operation_takes_the_time_of_its_bound() -> None:
    assert roofline_time([_cost(10**9, 1)], GPU, "float32") == pytest.approx(2.0), "0.5e9 FLOP/s"
    assert roofline_time([_cost(1, 10**8)], GPU, "float32") == pytest.approx(4.0), "25e6 bytes/s"
    assert roofline_time([_cost(1, 1)], GPU, "float32") == LAUNCH_TIME


def test_operations_follow_one_another() -> None:
    costs = [_cost(10**9, 1), _cost(1, 10**8), _cost(0, 0)]
    assert roofline_time(costs, GPU, "float32") == pytest.approx(6.0 + LAUNCH_TIME)


def test_each_operation_runs_at_its_own_dtypes_rate() -> None:
    costs = [_cost(10**9, 1, torch.bfloat16), _cost(10**9, 1, torch.float32)]
    assert roofline_time(costs, GPU, "bfloat16") == pytest.approx(0.5 + 2.0)
    unknown = [_cost(10**9, 1, torch.float64)]
    assert roofline_time(unknown, GPU, "bfloat16") == pytest.approx(0.5), "at the model's rate"


def test_a_cpu_launches_no_kernels() -> None:
    assert roofline_time([_cost(1, 1)], find_gpu("cpu"), "float32") < LAUNCH_TIME


def test_only_large_operations_that_memory_bounds_wait_for_memory() -> None:
    # 25e6 bytes and 0.5e9 operations per second: 1 s in memory, 2 s of compute.
    bound, computing, small = _cost(1, 25 * 10**6), _cost(10**9, 25 * 10**6), _cost(1, 2_500_000)
    assert memory_share([bound, computing], GPU) == pytest.approx(1 / 3)
    assert memory_share([bound, computing, *[small] * 10], GPU) == pytest.approx(1 / 4)
    assert memory_share([bound], GPU) == 1.0
    assert memory_share([computing], GPU) == memory_share([], GPU) == 0.0


def test_a_step_of_adamw_streams_its_state() -> None:
    per_second = 1e8 * 0.25
    assert update_time(GPU, 1000, 4) == pytest.approx(1000 * (4 + 8 + 16) / per_second)
    assert update_time(GPU, 1000, 2) == pytest.approx(1000 * (2 + 10 + 16) / per_second)


def test_a_dtype_without_a_known_rate_is_refused_by_name() -> None:
    with OpCosts() as costs, pytest.raises(ClusterError, match=r"'toy'.*float64.*bfloat16"):
        RooflineStopwatch(GPU, costs, "float64")


def test_the_stopwatch_reads_only_operations_inside_the_action() -> None:
    x = torch.empty(1000, 1000, device="meta")
    with OpCosts() as costs:
        stopwatch = RooflineStopwatch(GPU, costs, "float32")
        _ = x @ x
        result, reading = stopwatch.measure(lambda: x + 1)
        assert reading() == pytest.approx(2 * 4e6 / 25e6)
        assert result.shape == x.shape
