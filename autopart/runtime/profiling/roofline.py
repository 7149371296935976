"""Layer times on an absent GPU, from its datasheet's roofline.

Symbols   f, b     floating-point operations and moved bytes of one operation
          F, M     peak rate for the operation's dtype, and memory bandwidth, of the GPU
          e, g     shares of F and M that are reached (`Gpu.compute_efficiency`, …)
          o        least time per operation: one kernel launch

    time = sum over operations of max( f / (e F),  b / (g M),  o )

Operations run one after another, as on one CUDA stream, without fusion. The model follows Williams,
Waterman and Patterson, "Roofline", CACM 52(4), 2009. e, g and o are assumptions.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from autopart.cost.contention import CACHE_BYTES
from autopart.errors import ClusterError
from autopart.records.gpu import Gpu
from autopart.records.kernels import Kernels, peak_bandwidth
from autopart.runtime.measuring.stopwatch import Gradients, PendingTime
from autopart.runtime.profiling.kernel_times import kernel_pair_seconds, kernel_seconds
from autopart.runtime.profiling.op_costs import OpCost, OpCosts

T = TypeVar("T")

LAUNCH_TIME = 5e-6
"""Seconds between two kernels on one stream when eager PyTorch launches them.

This is an order of magnitude, not a measurement. It decides only small operations (norms over a few
rows, masks).
"""


class RooflineStopwatch:
    """A stopwatch that reads the time that `gpu` would need, whatever device runs the action."""

    counts_host_work = False
    waiting_share = 0.0

    def __init__(
        self, gpu: Gpu, costs: OpCosts, dtype: str, kernels: Kernels | None = None
    ) -> None:
        """Read `costs`, which must be the active context. The GPU must know the model's `dtype`.

        With `kernels` their model gives the seconds, in place of the plain roofline.
        """
        if dtype not in gpu.flops:
            raise ClusterError(
                f"gpu '{gpu.name}': no peak rate is known for {dtype}; "
                f"known: {', '.join(gpu.flops)}"
            )
        self._gpu = gpu
        self._costs = costs
        self._dtype = dtype
        self._kernels = kernels

    def measure(self, action: Callable[[], T]) -> tuple[T, PendingTime]:
        self._costs.take()
        result = action()
        seconds = self._seconds(self._costs.take())
        return result, lambda: seconds

    def measure_together(
        self, forward: Callable[[], object], backward: Callable[[], Gradients]
    ) -> tuple[Gradients, PendingTime]:
        self._costs.take()
        forward()
        ahead = self._costs.take()
        gradients = backward()
        seconds = self._pair_seconds(ahead, self._costs.take())
        return gradients, lambda: seconds

    def _seconds(self, costs: Sequence[OpCost]) -> float:
        if self._kernels is None:
            return roofline_time(costs, self._gpu, self._dtype)
        return kernel_seconds(costs, self._gpu, self._kernels, self._dtype)

    def _pair_seconds(self, forward: Sequence[OpCost], backward: Sequence[OpCost]) -> float:
        if self._kernels is None:
            return pair_time(forward, backward, self._gpu, self._dtype)
        return kernel_pair_seconds(forward, backward, self._gpu, self._kernels, self._dtype)

    def settle(self) -> None:
        """Return at once: the readings are computed."""


def roofline_time(costs: Iterable[OpCost], gpu: Gpu, dtype: str) -> float:
    """Return the seconds for operations that run one after another.

    An operation whose dtype has no known rate counts at the rate for `dtype`.
    """
    launch = 0.0 if gpu.name == "cpu" else LAUNCH_TIME
    return sum(_op_time(cost, gpu, dtype, launch) for cost in costs)


def pair_time(forward: Sequence[OpCost], backward: Sequence[OpCost], gpu: Gpu, dtype: str) -> float:
    """Return the seconds for a forward beside a backward, on two streams.

    Operations that wait for memory hide beneath those that compute, as far as there are any:

        max( each alone,  sum of f / (e F),  sum of b / (g M),  sum of o )

    This is the most that two streams can hide. Kernels that fill a GPU alone hide less.
    """
    both = [*forward, *backward]
    launch = 0.0 if gpu.name == "cpu" else LAUNCH_TIME
    return max(
        roofline_time(forward, gpu, dtype),
        roofline_time(backward, gpu, dtype),
        sum(_compute_time(cost, gpu, dtype) for cost in both),
        sum(_memory_time(cost, gpu) for cost in both),
        launch * len(both),
    )


def memory_share(costs: Iterable[OpCost], cpu: Gpu) -> float:
    """Return the share of a layer's seconds on a CPU's core, 0 to 1, that wait for memory.

    They belong to operations that move more bytes than the core's caches hold, and that take longer to move
    them than to compute.
    """
    waiting = total = 0.0
    for cost in costs:
        time = _op_time(cost, cpu, "float32", 0.0)
        total += time
        is_bound = _memory_time(cost, cpu) >= time
        waiting += time * (is_bound and cost.moved_bytes > CACHE_BYTES)
    return waiting / total if total else 0.0


def update_time(
    gpu: Gpu, num_trainable: int, element_size: int, kernels: Kernels | None = None
) -> float:
    """Return the seconds for an AdamW step, which only streams memory.

    It reads gradient, parameter and two float32 moments, and writes parameter and moments. A 16-bit
    parameter has a float32 master copy, which is read and written in its place and then rounded.
    """
    moments = 4 * 4
    gradient = element_size
    parameter = 2 * 4 + element_size if element_size < 4 else 2 * element_size
    moved = num_trainable * (moments + gradient + parameter)
    if kernels is None:
        return moved / (gpu.memory_bandwidth * gpu.memory_efficiency)
    return moved / (peak_bandwidth(gpu, kernels) * kernels.shares.memory)


def _op_time(cost: OpCost, gpu: Gpu, dtype: str, launch: float) -> float:
    return max(_compute_time(cost, gpu, dtype), _memory_time(cost, gpu), launch)


def _compute_time(cost: OpCost, gpu: Gpu, dtype: str) -> float:
    name = str(cost.dtype).removeprefix("torch.")
    return cost.flops / (gpu.flops.get(name, gpu.flops[dtype]) * gpu.compute_efficiency)


def _memory_time(cost: OpCost, gpu: Gpu) -> float:
    return cost.moved_bytes / (gpu.memory_bandwidth * gpu.memory_efficiency)
