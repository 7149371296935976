"""Kernels that `autopart probe --kernels` times: their work counted by hand, and one real measurement."""

import pytest
import torch
from torch.utils import _pytree as pytree

from autopart.calibration.from_kernels import calibrate_from_kernels
from autopart.errors import UsageError
from autopart.records.calibration import check_calibration
from autopart.records.known_gpus import find_gpu
from autopart.runtime.probing import kernels
from autopart.runtime.probing.kernel_operations import (
    CALL,
    GRADIENT,
    STEP,
    Operation,
    costs_of,
    operations,
    prepared,
    work_of,
)
from autopart.runtime.profiling.profiler import profile_model


@pytest.mark.parametrize(
    ("operation", "work"),
    [
        (Operation("product", "products", (8, 16, 32)), 2 * 8 * 16 * 32),
        (Operation("convolution", "products", (2, 3, 5)), 2 * 2 * 25 * 3 * 9 * 3),
        (Operation("linear", "products", (8, 16, 32)), 2 * 8 * 16 * 32),
        (Operation("linear backward", "products", (8, 16, 32)), 4 * 8 * 16 * 32),
        (Operation("batched", "products", (3, 8, 16, 32)), 2 * 3 * 8 * 16 * 32),
        (Operation("attention", "attention", (4, 16, 8)), 2 * 4 * 16 * 16 * 8),
        (Operation("copy", "memory", (4, 8)), 2 * 4 * 8 * 4),
        (Operation("gelu backward", "memory", (4, 8)), 3 * 4 * 8 * 4),
        (Operation(CALL, "launch", (8, 8)), 1),
    ],
)
def test_work_is_counted_as_by_hand(operation: Operation, work: int) -> None:
    costs = costs_of(operation, torch.float32, on_cpu=True)
    assert work_of(costs, operation) == work


def test_operations_run_where_their_tensors_are() -> None:
    for name, kind in (("layer_norm backward", "memory"), ("cross_entropy", "memory")):
        action = prepared(Operation(name, kind, (4, 8)), torch.float32, torch.device("cpu"))  # pyright: ignore[reportArgumentType]
        for leaf in pytree.tree_leaves(action.run()):
            assert leaf.device.type == "cpu" and bool(torch.isfinite(leaf).all())


@pytest.mark.slow
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_each_device_has_a_grid_of_products_and_every_kind(device: str) -> None:
    own = operations(device)
    assert [one.name for one in own[:3]] == [CALL, GRADIENT, STEP]
    assert {one.kind for one in own} == {"launch", "products", "attention", "memory", "random"}
    assert len({one.shape for one in own if one.name == "product"}) == 27
    if device == "cuda":
        # A stream through a cache would pass the memory's peak rate.
        streams = [one.shape for one in own if one.kind in ("memory", "random")]
        assert min(rows * columns * 2 for rows, columns in streams) >= 256 << 20


def test_a_limit_that_no_product_meets_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    few = [Operation(CALL, "launch", (8, 8)), Operation("copy", "memory", (4, 8))]
    monkeypatch.setattr(kernels, "operations", {"cpu": few}.__getitem__)
    with pytest.raises(UsageError, match="--limit 60: no product was timed"):
        kernels.measure_kernels("cpu", "float32", torch.get_num_threads(), 60.0)


@pytest.mark.slow
def test_this_cpu_gives_a_calibration_that_profiles_take(monkeypatch: pytest.MonkeyPatch) -> None:
    some = [one for one in operations("cpu") if one.shape[0] <= 256][:40]
    monkeypatch.setattr(kernels, "operations", {"cpu": some}.__getitem__)
    measured, pace = kernels.measure_kernels("cpu", "float32", torch.get_num_threads(), 600.0)
    assert pace is not None and pace.samples == len(some) // 10
    assert len(measured) == len(some) and all(one.seconds > 0.0 for one in measured)
    gpu = find_gpu("cpu")
    made, _ = calibrate_from_kernels(measured, "kernels on this CPU", gpu, "float32", "torch")
    check_calibration(made, gpu)
    profile = profile_model(
        "zoo:mlp-tiny", microbatch_size=4, device="meta", gpu="cpu", calibration=made
    )
    assert profile.kernels and "kernels on this CPU" in (profile.kernels.kernels.calibration or "")
