"""A calibration from single kernels: seconds that known rates make give these rates back."""

import msgspec
import pytest

from autopart.calibration.from_kernels import calibrate_from_kernels, known_gpu
from autopart.errors import ClusterError, UsageError
from autopart.records.calibration import (
    Calibration,
    MeasuredKernel,
    check_calibration,
    described,
    notes_on_kernels,
    range_of_kernels,
)
from autopart.records.kernels import Peaks, kernels_of, peak_bandwidth, peak_flops
from autopart.records.known_gpus import find_gpu

CPU, A100 = find_gpu("cpu"), find_gpu("a100-sxm-80gb")
CALL, STEP = 2e-6, 1e-5
"""Seconds to start an operation alone, and within a step."""
PRODUCT_RATE, ATTENTION_RATE, COPY_RATE, NORM_RATE = 120e9, 30e9, 20e9, 5e9
PRODUCTS = [(rows, columns, 256) for rows in (64, 256, 1024) for columns in (256, 1024)]
ATTENTION = [(4, length, 32) for length in (64, 128, 256)]
STREAMS = [(rows, 512) for rows in (256, 512, 1024)]


def readings(
    half_depth: float = 0.0, start: float = STEP, size: int = 1, bytes_each: int = 4
) -> list[MeasuredKernel]:
    """What a device with the rates above would take. Work is counted by hand."""
    found = [
        MeasuredKernel(kind="launch", operation=name, shape=(8, 8), amount=0.0, seconds=seconds)
        for name, seconds in (("small call", CALL), ("small step", STEP))
    ]

    def add(
        kind: str, name: str, shape: tuple[int, ...], work: float, rate: float, operands: float = 0
    ) -> None:
        row = MeasuredKernel(
            kind=kind,  # pyright: ignore[reportArgumentType]
            operation=name,
            shape=shape,
            amount=work,
            # A core that computes also waits for operands.
            seconds=work / rate + bytes_each * operands / COPY_RATE + start,
        )
        found.append(row)

    for rows, columns, depth in PRODUCTS:
        shape = (size * rows, size * columns, depth)
        rate = PRODUCT_RATE * depth / (depth + half_depth)
        operands = shape[0] * depth + depth * shape[1] + shape[0] * shape[1]
        add("products", "product", shape, 2.0 * shape[0] * shape[1] * depth, rate, operands)
    for heads, length, width in ATTENTION:
        # Scores and their sum with the values; a causal mask halves both.
        work = 2.0 * heads * length * length * width
        operands = heads * length * (4 * width + 1)
        add("attention", "attention", (heads, length, width), work, ATTENTION_RATE, operands)
    for rows, columns in STREAMS:
        elements = float(size * rows * columns)
        shape = (size * rows, columns)
        add("memory", "add", shape, 3 * bytes_each * elements, COPY_RATE)
        add("memory", "copy", shape, 2 * bytes_each * elements, COPY_RATE)
        add("memory", "softmax", shape, 2 * bytes_each * elements, NORM_RATE)
    return found


@pytest.fixture(scope="module")
def of_cpu() -> Calibration:
    made, _ = calibrate_from_kernels(readings(), "kernels on a core", CPU, "float32", "torch")
    return made


def test_the_rates_behind_the_seconds_come_back(of_cpu: Calibration) -> None:
    own = of_cpu.kernels
    flops, bandwidth = peak_flops(CPU, own, "float32", "float32"), peak_bandwidth(CPU, own)
    assert own.shares.products * flops == pytest.approx(PRODUCT_RATE, rel=0.02)
    assert own.shares.attention * flops == pytest.approx(ATTENTION_RATE, rel=0.02)
    assert own.shares.memory * bandwidth == pytest.approx(COPY_RATE, rel=0.02)
    assert own.bandwidths is not msgspec.UNSET
    assert own.bandwidths["_softmax"] * bandwidth == pytest.approx(NORM_RATE, rel=0.02)
    assert (own.kernel_time, own.host_time, own.depth) == (STEP, 0.0, 0)
    assert of_cpu.fit is not None
    assert of_cpu.fit.rows == len(readings()) - 2
    assert of_cpu.fit.worst_error < 0.01
    assert of_cpu.fit.held_out_worst < 0.02


def test_the_file_says_its_device_its_rows_and_its_range(of_cpu: Calibration) -> None:
    assert (of_cpu.gpu, of_cpu.dtype, of_cpu.source) == ("cpu", "float32", "kernels")
    assert described(of_cpu).startswith("kernels on a core (18 kernels, 0.0 % off on held-out")
    least, most = range_of_kernels(of_cpu)["products"]
    assert (least, most) == (2.0 * 64 * 256 * 256, 2.0 * 1024 * 1024 * 256)
    assert notes_on_kernels(of_cpu, {"products": 4 * most, "memory": 1.0}) == ()
    (note,) = notes_on_kernels(of_cpu, {"products": 5 * most})
    assert "products of up to 5.4e+08 FLOP, and this model has one of 2.7e+09" in note


def test_a_depth_at_which_products_are_slow_is_found() -> None:
    own = [(rows, 256, depth) for rows in (64, 256) for depth in (32, 64, 256, 1024)]
    streaming = kernels_of(CPU, "torch").shares.memory * CPU.memory_bandwidth
    rows = [
        MeasuredKernel(
            kind="products",
            operation="product",
            shape=shape,
            amount=2.0 * shape[0] * shape[1] * shape[2],
            seconds=2.0 * shape[0] * shape[1] * (shape[2] + 64) / PRODUCT_RATE
            + 4 * (shape[0] * shape[2] + shape[2] * shape[1] + shape[0] * shape[1]) / streaming
            + 4e-6,
        )
        for shape in own
    ]
    made, _ = calibrate_from_kernels(rows, "a core", CPU, "float32", "torch")
    assert made.kernels.depth == 64
    flops = peak_flops(CPU, made.kernels, "float32", "float32")
    assert made.kernels.shares.products * flops == pytest.approx(PRODUCT_RATE, rel=0.02)


@pytest.mark.parametrize("backward", ["", " backward"])
def test_a_convolution_on_a_cpu_has_a_rate_a_depth_and_a_start_of_its_own(backward: str) -> None:
    rate, half, start, engine = 80e9, 128, 1e-4, 9e-5
    rows = [
        MeasuredKernel(kind="launch", operation=name, shape=(8, 8), amount=0.0, seconds=seconds)
        for name, seconds in (
            ("small call", CALL),
            ("small gradient", CALL + engine),
            ("small step", STEP),
        )
    ]
    streaming = kernels_of(CPU, "torch").shares.memory * CPU.memory_bandwidth
    for samples, channels, side in ((4, 8, 32), (4, 16, 32), (4, 64, 16), (2, 128, 16)):
        depth, image = 9 * channels, samples * channels * side * side
        weight, times = channels * depth, 2 if backward else 1
        work = 2.0 * times * image * depth
        # Forward: image, weight and result. Backward: two gradients more, and not the result.
        operands = 2 * image + weight if not backward else 3 * image + 2 * weight
        seconds = work * (depth + half) / depth / rate + 4 * operands / streaming + start + STEP
        seconds += engine if backward else 0.0
        row = MeasuredKernel(
            kind="products",
            operation=f"convolution{backward}",
            shape=(samples, channels, side),
            amount=work,
            seconds=seconds,
        )
        rows.append(row)
    made, _ = calibrate_from_kernels(rows, "a core", CPU, "float32", "torch")
    assert made.kernels.rates is not msgspec.UNSET and made.fit is not None
    (own,) = made.kernels.rates.values()
    assert (own.depth, own.start) == (half, start)
    flops = peak_flops(CPU, made.kernels, "float32", "float32")
    assert own.share * flops == pytest.approx(rate, rel=1e-6)
    assert made.fit.worst_error < 1e-6


def test_beside_a_gpu_launches_are_the_hosts_and_shares_are_of_its_datasheet() -> None:
    rate, bandwidth = 0.7 * A100.flops["bfloat16"], 0.9 * A100.memory_bandwidth
    rows = [
        MeasuredKernel(
            kind="products",
            operation="product",
            # Whole waves of the largest tile over 108 multiprocessors.
            shape=(256 * 12, 128 * 9 * times, 8192),
            amount=2.0 * 256 * 12 * 128 * 9 * times * 8192,
            seconds=2.0 * 256 * 12 * 128 * 9 * times * 8192 / rate + 2e-6,
        )
        for times in (1, 2, 4)
    ]
    rows += [
        MeasuredKernel(
            kind="memory",
            operation="copy",
            shape=(count, 8192),
            amount=4.0 * count * 8192,
            seconds=4.0 * count * 8192 / bandwidth + 2e-6,
        )
        for count in (16384, 32768)
    ]
    step = MeasuredKernel(
        kind="launch", operation="small step", shape=(8, 8), amount=0.0, seconds=6e-6
    )
    made, _ = calibrate_from_kernels([step, *rows], "a GPU", A100, "bfloat16", "megatron")
    own = made.kernels
    assert own.peaks is msgspec.UNSET
    assert (own.host_time, own.kernel_time, own.accumulation) == (6e-6, 2e-6, "fused")
    assert own.shares.memory == pytest.approx(0.9, rel=0.01)
    assert own.shares.products == pytest.approx(0.7, rel=0.02)
    check_calibration(made, A100)
    with pytest.raises(ClusterError, match="for a100-sxm-80gb, not for h100-sxm"):
        check_calibration(made, find_gpu("h100-sxm"))
    fast = msgspec.structs.replace(rows[0], seconds=rows[0].seconds / 2)
    with pytest.raises(ClusterError, match=r"products 3072 x 1152 x 8192 at 13\d.\d % of the peak"):
        check_calibration(msgspec.structs.replace(made, measured=(fast,)), A100)


def test_rates_beyond_a_cpus_measured_peak_are_refused(of_cpu: Calibration) -> None:
    check_calibration(of_cpu, CPU)
    peaks = Peaks(flops=PRODUCT_RATE / 2, memory_bandwidth=COPY_RATE)
    slower = msgspec.structs.replace(of_cpu.kernels, peaks=peaks)
    with pytest.raises(ClusterError, match="of the peak rate of cpu"):
        check_calibration(msgspec.structs.replace(of_cpu, kernels=slower), CPU)


def test_few_rows_and_rows_without_seconds_are_refused() -> None:
    with pytest.raises(UsageError, match="2 kernels for a calibration, where 3 are needed"):
        calibrate_from_kernels(readings()[:4], "a core", CPU, "float32", "torch")
    rows = readings()
    rows[3] = msgspec.structs.replace(rows[3], seconds=0.0)
    with pytest.raises(UsageError, match="product 64 x 1024 x 256: measured seconds must be above"):
        calibrate_from_kernels(rows, "a core", CPU, "float32", "torch")


def test_the_gpu_is_known_by_its_own_name_or_by_the_users() -> None:
    assert known_gpu("cuda", A100.cuda_names[0], None) == A100
    assert known_gpu("cuda", "Quantum 3000", "h100-sxm").name == "h100-sxm"
    assert known_gpu("cpu", "some processor", None).name == "cpu"
    with pytest.raises(UsageError, match="'Quantum 3000' is no known GPU; name one with --gpu"):
        known_gpu("cuda", "Quantum 3000", None)
    with pytest.raises(UsageError, match="make a calibration of 'cpu' only"):
        known_gpu("cpu", "some processor", "h100-sxm")
