"""The kernel model of analytic profiles: shares of the peak rates that kernels reach, and the seconds to start one.

    products    tiles of the result over multiprocessors, and a depth at which half of the share is reached
    attention   fused attention kernels
    memory      operations that stream memory: norms, activation functions, copies, losses
    random      dropout, which draws numbers

`kernels_of` gives the figures of a known GPU under a framework, before any calibration. docs/profiling.md derives
the formulas; runtime/profiling/kernel_times.py applies them.
"""

from typing import Annotated, Literal

import msgspec

from autopart.errors import ClusterError
from autopart.records.gpu import Gpu
from autopart.units import MOST_AMOUNT, Count, Seconds

Accumulation = Literal["separate", "fused"]
KINDS = ("products", "attention", "memory", "random")
"""The kinds of kernels that have a share of a peak rate."""
Share = Annotated[float, msgspec.Meta(gt=0.0, le=1.0)]
Rate = Annotated[float, msgspec.Meta(gt=0.0, le=MOST_AMOUNT)]


class Shares(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Shares of the peak rates that large kernels reach, above 0 to 1."""

    products: Share
    """Share of the peak operations per second that large, deep products reach."""
    attention: Share
    """The same for fused attention, whose causal mask halves its operations."""
    memory: Share
    """Share of the memory bandwidth that streaming kernels reach."""
    random: Share
    """Share of the memory bandwidth that dropout reaches, with the numbers that it draws."""


class Peaks(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Measured peak rates of a CPU's core, whose table has only an order of magnitude."""

    flops: Rate
    """Operations per second in the calibration's dtype; other dtypes keep their ratios to it."""
    memory_bandwidth: Rate
    """Bytes per second of streaming operations, from caches too."""


class OwnRate(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The rate of one operation that a calibration measured by its name."""

    share: Share
    """Share of the peak operations per second that it reaches."""
    depth: Count = 0
    """Depth (terms per sum) at which it reaches half of its share."""
    start: Seconds = 0.0
    """Seconds that it takes besides its work and `kernel_time`, such as a convolution that brings its operands into a layout of
    its own."""


class Kernels(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the kernels of an analytic profile were timed."""

    target: str
    """The framework whose kernels and host count: `torch`, `torchtitan` or `megatron`."""
    accumulation: Accumulation
    """Whether a weight gradient is added to the sum by its product ("fused"), or by an operation of its own."""
    shares: Shares
    """Shares of the peak rates."""
    depth: Count = 64
    """Depth of a product (terms per sum) at which it reaches half of its share."""
    kernel_time: Seconds = 2e-6
    """Seconds that each kernel takes besides its work."""
    host_time: Seconds = 8e-6
    """Seconds of the host per operation. A pass over a layer takes no less than its operations times this."""
    rates: dict[str, OwnRate] | msgspec.UnsetType = msgspec.UNSET
    """Rates of single products and attention kernels, by their names in torch, where they were measured.

    All others reach the share of their kind."""
    bandwidths: dict[str, Share] | msgspec.UnsetType = msgspec.UNSET
    """Shares of the memory bandwidth that single operations reach, by their names in torch, where they were measured.

    All other streaming operations reach the share of memory."""
    peaks: Peaks | msgspec.UnsetType = msgspec.UNSET
    """Measured peak rates in place of the table's, on a CPU; absent on a GPU, and without a calibration."""
    calibration: str | None = None
    """The calibration behind the shares, in words; null for a table."""


class KernelModel(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The assumptions of an analytic profile about kernels, and the kernels that its model runs."""

    kernels: Kernels
    """How kernels were timed."""
    attention: Literal["fused", "plain", "both", "none"]
    """Attention in the model: fused kernels without a score matrix, plain products with one, both, or none."""
    dropout: bool
    """Whether the model draws numbers for dropout in training."""
    optimizer: str = "adamw"
    """The optimizer whose update was timed."""


class TargetKernels(msgspec.Struct, frozen=True):
    """What a framework decides about kernels."""

    accumulation: Accumulation
    host_time: float
    source: str


TARGETS: dict[str, TargetKernels] = {
    "torch": TargetKernels(
        "separate", 8e-6, "eager PyTorch: autograd adds each gradient; some 8 µs of Python per operation, assumed"
    ),
    "torchtitan": TargetKernels(
        "separate", 3e-6, "torchtitan compiles each block, so that fewer calls leave Python; 3 µs, assumed"
    ),
    "megatron": TargetKernels(
        "fused", 8e-6, "Megatron-Core's --gradient-accumulation-fusion is on by default; 8 µs, assumed"
    ),
}  # fmt: skip
"""The targets of the kernel model."""

PRODUCT_SHARES: dict[str, float] = {
    "gaudi2": 0.969,
    "a100-sxm-40gb": 0.869,
    "a100-sxm-80gb": 0.869,
    "a800-sxm-80gb": 0.869,
    "gh200": 0.838,
    "a100-pcie-80gb": 0.811,
    "h100-sxm": 0.803,
    "h200-sxm": 0.803,
    "h800-sxm": 0.803,
    "b300-sxm": 0.786,
    "b200-sxm": 0.776,
    "gaudi3": 0.677,
    "gb200": 0.729,
    "gb300": 0.729,
    "mi355x": 0.626,
    "mi325x": 0.6,
    "mi300x": 0.511,
}
"""Shares of the peak rate of the tables here that the best product reaches, in bfloat16.

Source: compute/accelerator/README.md of stas00/ml-engineering (744d01e), maximum achievable matmul FLOPS. GPUs with the
same chip share a figure."""
_UNMEASURED = 0.8
_ATTENTION, _ATTENTION_OF_HOPPER = 0.6, 0.4
_HOPPER = ("h100", "h200", "h800", "gh200")
_MEMORY, _RANDOM = 0.8, 0.25
_CPU_CALL = 4e-6


def kernels_of(gpu: Gpu, target: str) -> Kernels:
    """The kernels of `gpu` under the framework `target`; raises ClusterError for an unknown framework.

    Products: measured maxima where published, else 0.8. Attention: FlashAttention-2 (arXiv 2307.08691) reaches up to
    0.73 of an A100's peak rate and 0.35 to 0.4 of an H100's (arXiv 2407.08608). Memory and dropout are assumptions.
    """
    if target not in TARGETS:
        raise ClusterError(
            f"no kernels are known for target '{target}'; known: {', '.join(TARGETS)}"
        )
    own = TARGETS[target]
    hopper = gpu.name.startswith(_HOPPER)
    kernels = Kernels(
        target=target,
        accumulation=own.accumulation,
        host_time=own.host_time,
        shares=Shares(
            products=PRODUCT_SHARES.get(gpu.name, _UNMEASURED),
            attention=_ATTENTION_OF_HOPPER if hopper else _ATTENTION,
            memory=_MEMORY,
            random=_RANDOM,
        ),
    )
    if gpu.name == "cpu":
        # A CPU computes on the thread that starts operations: their cost adds up, and nothing runs ahead.
        plain = msgspec.structs.replace(kernels.shares, products=0.6, attention=0.6, random=_MEMORY)
        return msgspec.structs.replace(
            kernels, shares=plain, depth=0, kernel_time=_CPU_CALL, host_time=0.0
        )
    return kernels


def peak_flops(gpu: Gpu, kernels: Kernels, dtype: str, own: str) -> float:
    """Peak operations per second in `own`, where a dtype without a known rate counts as `dtype`."""
    rate = gpu.flops.get(own, gpu.flops[dtype])
    if kernels.peaks is msgspec.UNSET:
        return rate
    return rate * kernels.peaks.flops / gpu.flops[dtype]


def peak_bandwidth(gpu: Gpu, kernels: Kernels) -> float:
    """Peak bytes per second between the device and its memory."""
    if kernels.peaks is msgspec.UNSET:
        return gpu.memory_bandwidth
    return kernels.peaks.memory_bandwidth


def with_peaks(
    kernels: Kernels, gpu: Gpu, dtype: str, best: tuple[float, float] | None = None
) -> Kernels:
    """The kernels of a CPU under peaks that leave no share above 1; their seconds stay the same.

    Peaks are at least `best`, the highest measured operations and bytes per second; without it, at least the table's.
    Kernels of a GPU stay as they are: its datasheet has the peaks.
    """
    if gpu.name != "cpu":
        return kernels
    own, single, rates = kernels.shares, kernels.bandwidths or {}, kernels.rates or {}
    flops, bandwidth = peak_flops(gpu, kernels, dtype, dtype), peak_bandwidth(gpu, kernels)
    least = best or (flops, bandwidth)
    peaks = Peaks(
        flops=max(
            least[0],
            flops * max(own.products, own.attention, *(one.share for one in rates.values())),
        ),
        memory_bandwidth=max(least[1], bandwidth * max(own.memory, own.random, *single.values())),
    )

    def of_peak(rate: float, peak: float) -> float:
        # The highest rate is the peak, and rounding may leave it just above.
        return min(1.0, rate / peak)

    shares = Shares(
        products=of_peak(own.products * flops, peaks.flops),
        attention=of_peak(own.attention * flops, peaks.flops),
        memory=of_peak(own.memory * bandwidth, peaks.memory_bandwidth),
        random=of_peak(own.random * bandwidth, peaks.memory_bandwidth),
    )
    return msgspec.structs.replace(
        kernels,
        peaks=peaks,
        shares=shares,
        rates={
            name: msgspec.structs.replace(one, share=of_peak(one.share * flops, peaks.flops))
            for name, one in rates.items()
        }
        or msgspec.UNSET,
        bandwidths={
            name: of_peak(share * bandwidth, peaks.memory_bandwidth)
            for name, share in single.items()
        }
        or msgspec.UNSET,
    )


def rate_of(kernels: Kernels, kind: Literal["products", "attention"], operation: str) -> OwnRate:
    """The rate of a product or of attention: its own where it was measured, else that of its kind."""
    own = None if kernels.rates is msgspec.UNSET else kernels.rates.get(operation)
    if own is not None:
        return own
    if kind == "products":
        return OwnRate(share=kernels.shares.products, depth=kernels.depth)
    return OwnRate(share=kernels.shares.attention)


def share_of(kernels: Kernels, operation: str) -> float:
    """The share of the memory bandwidth that a streaming operation reaches."""
    if kernels.bandwidths is msgspec.UNSET:
        return kernels.shares.memory
    return kernels.bandwidths.get(operation, kernels.shares.memory)


def stretched(kernels: Kernels, kind: str, stretch: float) -> Kernels:
    """The kernels with the share of one kind divided by `stretch`: its kernels take `stretch` times as long.

    The share may leave its range, as no file has such kernels.
    """
    share = getattr(kernels.shares, kind) / stretch
    return msgspec.structs.replace(
        kernels, shares=msgspec.structs.replace(kernels.shares, **{kind: share})
    )
