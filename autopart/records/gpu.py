"""One kind of GPU: peak rates and sizes.

Rates are dense, without sparsity. Host bandwidth is the datasheet's PCIe rate; copies reach some
80 to 90 %. A roofline multiplies peak rates by `compute_efficiency` and `memory_efficiency`. Both
are assumptions, so profiles made from them are marked `analytic`.
"""

import msgspec

GiB = 1 << 30


class Gpu(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of GPU, or a CPU core."""

    name: str
    """Name on the command line."""
    memory_bytes: int
    """Device memory in bytes."""
    flops: dict[str, float]
    """Peak operations per second by dtype; a multiply-add counts as two."""
    multiprocessors: int = 0
    """Streaming multiprocessors or compute units, over which a product's tiles spread; 0 where unknown."""
    memory_bandwidth: float
    """Bytes per second between the device and its own memory."""
    link_bandwidth: float
    """Bytes per second from one GPU to another on the same node, in one direction."""
    host_bandwidth: float
    """Bytes per second from the GPU to its host, in one direction."""
    compute_efficiency: float = 0.6
    """Assumed share of `flops` that layers reach."""
    memory_efficiency: float = 0.8
    """Assumed share of `memory_bandwidth` that layers reach."""
    reserve_bytes: int = GiB
    """Bytes per process besides a run's tensors.

    On a GPU: CUDA's context, NCCL's buffers and allocator slack, an assumption. On a CPU: measured by `scripts/measure_reserve.py`."""
    action_overhead: float = 2e-5
    """Fixed seconds that the executor adds to each action."""
    sends_overlap: bool = True
    """Whether sends overlap with compute."""
    cuda_names: tuple[str, ...] = ()
    """CUDA's names for the device. A measured profile finds these figures by them."""
    source: str
    """The datasheet, and its figures."""
