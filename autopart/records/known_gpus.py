"""Known GPUs: peak rates and sizes from the makers' datasheets, each with its source.

Rates are dense, without sparsity. Host bandwidth is the datasheet's PCIe rate; copies reach some
80 to 90 %. A roofline multiplies peak rates by `compute_efficiency` and `memory_efficiency`. Both
are assumptions, so profiles made from them are marked `analytic`.
"""

import msgspec

from autopart.errors import ClusterError

GiB = 1 << 30


class Gpu(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of GPU, or a CPU core."""

    name: str
    """Name on the command line."""
    memory_bytes: int
    """Device memory in bytes."""
    flops: dict[str, float]
    """Peak operations per second by dtype; a multiply-add counts as two."""
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


GPUS: dict[str, Gpu] = {
    gpu.name: gpu
    for gpu in (
        Gpu(
            name="v100-sxm-32gb",
            memory_bytes=32 * GiB,
            flops={"float16": 125e12, "bfloat16": 15.7e12, "float32": 15.7e12},
            memory_bandwidth=900e9,
            link_bandwidth=150e9,
            host_bandwidth=16e9,
            cuda_names=(
                "Tesla V100-SXM2-32GB",
                "Tesla V100-SXM3-32GB",
            ),
            source="NVIDIA V100 datasheet (2020): 125 TFLOPS tensor, 900 GB/s, NVLink 300 GB/s both ways, PCIe 3.0 x16 32 GB/s both ways",
        ),
        Gpu(
            name="a100-sxm-40gb",
            memory_bytes=40 * GiB,
            flops={"float16": 312e12, "bfloat16": 312e12, "float32": 19.5e12},
            memory_bandwidth=1555e9,
            link_bandwidth=300e9,
            host_bandwidth=32e9,
            cuda_names=("NVIDIA A100-SXM4-40GB",),
            source="NVIDIA A100 datasheet (2021): 312 TFLOPS bf16, 1555 GB/s, NVLink 600 GB/s both ways, PCIe 4.0 x16 64 GB/s both ways",
        ),
        Gpu(
            name="a100-sxm-80gb",
            memory_bytes=80 * GiB,
            flops={"float16": 312e12, "bfloat16": 312e12, "float32": 19.5e12},
            memory_bandwidth=2039e9,
            link_bandwidth=300e9,
            host_bandwidth=32e9,
            cuda_names=("NVIDIA A100-SXM4-80GB",),
            source="NVIDIA A100 datasheet (2021): 312 TFLOPS bf16, 2039 GB/s, NVLink 600 GB/s both ways, PCIe 4.0 x16 64 GB/s both ways",
        ),
        Gpu(
            name="a100-pcie-80gb",
            memory_bytes=80 * GiB,
            flops={"float16": 312e12, "bfloat16": 312e12, "float32": 19.5e12},
            memory_bandwidth=1935e9,
            link_bandwidth=32e9,
            host_bandwidth=32e9,
            cuda_names=("NVIDIA A100 80GB PCIe",),
            source="NVIDIA A100 datasheet (2021): 312 TFLOPS bf16, 1935 GB/s, PCIe 4.0 x16 64 GB/s both ways; no NVLink bridge",
        ),
        Gpu(
            name="h100-sxm",
            memory_bytes=80 * GiB,
            flops={"float16": 989.4e12, "bfloat16": 989.4e12, "float32": 66.9e12},
            memory_bandwidth=3.35e12,
            link_bandwidth=450e9,
            host_bandwidth=64e9,
            cuda_names=("NVIDIA H100 80GB HBM3",),
            source="NVIDIA H100 datasheet (2023): 989.4 TFLOPS bf16 dense, 3.35 TB/s, NVLink 900 GB/s both ways, PCIe 5.0 x16 128 GB/s both ways",
        ),
        Gpu(
            name="h200-sxm",
            memory_bytes=141 * 10**9,
            flops={"float16": 989.4e12, "bfloat16": 989.4e12, "float32": 66.9e12},
            memory_bandwidth=4.8e12,
            link_bandwidth=450e9,
            host_bandwidth=64e9,
            cuda_names=("NVIDIA H200",),
            source="NVIDIA H200 datasheet (2024): 989 TFLOPS bf16 dense, 4.8 TB/s, 141 GB, NVLink 900 GB/s both ways, PCIe 5.0 x16 128 GB/s both ways",
        ),
        Gpu(
            name="b200-sxm",
            memory_bytes=180 * 10**9,
            flops={"float16": 2.25e15, "bfloat16": 2.25e15, "float32": 75e12},
            memory_bandwidth=7.7e12,
            link_bandwidth=900e9,
            host_bandwidth=64e9,
            cuda_names=("NVIDIA B200",),
            source="NVIDIA HGX B200 datasheet (2024): 2.25 PFLOPS bf16 dense, 7.7 TB/s, 180 GB, NVLink 1.8 TB/s both ways, PCIe 5.0 x16 128 GB/s both ways; from memory",
        ),
        Gpu(
            name="gb200",
            memory_bytes=186 * 10**9,
            flops={"float16": 2.5e15, "bfloat16": 2.5e15, "float32": 80e12},
            memory_bandwidth=8e12,
            link_bandwidth=900e9,
            host_bandwidth=450e9,
            cuda_names=("NVIDIA GB200",),
            source="NVIDIA GB200 NVL72 datasheet (2024): 2.5 PFLOPS bf16 dense, 8 TB/s, 186 GB, NVLink 1.8 TB/s both ways, NVLink-C2C 900 GB/s both ways; from memory",
        ),
        Gpu(
            name="b300-sxm",
            memory_bytes=270 * 10**9,
            flops={"float16": 2.25e15, "bfloat16": 2.25e15, "float32": 75e12},
            memory_bandwidth=7.7e12,
            link_bandwidth=900e9,
            host_bandwidth=64e9,
            cuda_names=("NVIDIA B300",),
            source="NVIDIA HGX B300 datasheet (2025): 2.25 PFLOPS bf16 dense, 7.7 TB/s, 270 GB, NVLink 1.8 TB/s both ways; from memory, PCIe 5.0 assumed",
        ),
        Gpu(
            name="l40s",
            memory_bytes=48 * GiB,
            flops={"float16": 362.05e12, "bfloat16": 362.05e12, "float32": 91.6e12},
            memory_bandwidth=864e9,
            link_bandwidth=32e9,
            host_bandwidth=32e9,
            cuda_names=("NVIDIA L40S",),
            source="NVIDIA L40S datasheet (2023): 362.05 TFLOPS bf16 dense, 864 GB/s, PCIe 4.0 x16 32 GB/s",
        ),
        Gpu(
            name="rtx-4090",
            memory_bytes=24 * GiB,
            flops={"float16": 165.2e12, "bfloat16": 165.2e12, "float32": 82.6e12},
            memory_bandwidth=1008e9,
            link_bandwidth=32e9,
            host_bandwidth=32e9,
            cuda_names=("NVIDIA GeForce RTX 4090",),
            source="NVIDIA Ada whitepaper (2022): 165.2 TFLOPS fp16 with fp32 sum, 1008 GB/s, PCIe 4.0 x16 32 GB/s",
        ),
        Gpu(
            name="cpu",
            memory_bytes=4 * GiB,
            flops={"float64": 25e9, "float32": 50e9, "bfloat16": 25e9, "float16": 10e9},
            memory_bandwidth=10e9,
            link_bandwidth=3.7e9,
            host_bandwidth=5e9,
            reserve_bytes=384 << 20,
            action_overhead=2.5e-4,
            sends_overlap=False,
            source="one x86 core, order of magnitude, a copy in memory at half its bandwidth; gloo over loopback 3.7 GB/s as measured with torch 2.13",
        ),
    )
}


def find_gpu(name: str) -> Gpu:
    """The GPU called `name`; raises ClusterError with the known names."""
    if name not in GPUS:
        raise ClusterError(f"unknown GPU '{name}'; known: {', '.join(GPUS)}")
    return GPUS[name]
