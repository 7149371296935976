"""The time of a layer on a GPU that is not at hand, from the roofline of its data sheet.

Symbols   f, b     floating-point operations and bytes moved of one operation
          F, M     the GPU's peak rate for the operation's dtype, and its memory bandwidth
          e, g     the shares of F and M that are reached (`Gpu.compute_efficiency`, …)
          o        the time below which no operation comes: one kernel launch

    time = sum over operations of max( f / (e F),  b / (g M),  o )

Operations run one after the other, as on one CUDA stream, without fusion. The model is that of
Williams, Waterman and Patterson, "Roofline", CACM 52(4), 2009; e, g and o are assumptions.
"""

from collections.abc import Callable, Iterable
from typing import TypeVar

from autopart.errors import ClusterError
from autopart.gpus import Gpu
from autopart.runtime.profiling.op_costs import OpCost, OpCosts
from autopart.runtime.profiling.timing import Reading

T = TypeVar("T")

LAUNCH_TIME = 5e-6
"""Seconds between two kernels of one stream when eager PyTorch launches them: an order of
magnitude, not a measurement. It decides small operations (norms of a few rows, masks) only."""


class RooflineStopwatch:
    """A stopwatch that reads what `gpu` would need, whatever the device that runs the action."""

    counts_host_work = False
    waiting_share = 0.0

    def __init__(self, gpu: Gpu, costs: OpCosts, dtype: str) -> None:
        """`costs` is the active context; `dtype` is the model's, which the GPU must know."""
        if dtype not in gpu.flops:
            raise ClusterError(
                f"gpu '{gpu.name}': no peak rate is known for {dtype}; "
                f"known: {', '.join(gpu.flops)}"
            )
        self._gpu = gpu
        self._costs = costs
        self._dtype = dtype

    def measure(self, action: Callable[[], T]) -> tuple[T, Reading]:
        self._costs.take()
        result = action()
        seconds = roofline_time(self._costs.take(), self._gpu, self._dtype)
        return result, lambda: seconds

    def settle(self) -> None:
        """Nothing is ever outstanding: the readings are computed."""


def roofline_time(costs: Iterable[OpCost], gpu: Gpu, dtype: str) -> float:
    """Seconds of operations that run one after the other.

    An operation in a dtype whose rate is not known counts at the rate of `dtype`.
    """
    launch = 0.0 if gpu.name == "cpu" else LAUNCH_TIME
    return sum(_op_time(cost, gpu, dtype, launch) for cost in costs)


def update_time(gpu: Gpu, num_trainable: int, element_size: int) -> float:
    """Seconds of an AdamW step, which only streams memory.

    Read: gradient, parameter, two float32 moments. Written: parameter and moments. Parameters in
    16 bits have a float32 master copy, which is read and written instead and then rounded.
    """
    moments = 4 * 4
    gradient = element_size
    parameter = 2 * 4 + element_size if element_size < 4 else 2 * element_size
    moved = num_trainable * (moments + gradient + parameter)
    return moved / (gpu.memory_bandwidth * gpu.memory_efficiency)


def _op_time(cost: OpCost, gpu: Gpu, dtype: str, launch: float) -> float:
    name = str(cost.dtype).removeprefix("torch.")
    rate = gpu.flops.get(name, gpu.flops[dtype]) * gpu.compute_efficiency
    bandwidth = gpu.memory_bandwidth * gpu.memory_efficiency
    return max(cost.flops / rate, cost.moved_bytes / bandwidth, launch)
