"""The tables of the kernel model."""

from random import Random

import msgspec
import pytest

from autopart.errors import ClusterError
from autopart.records.kernels import (
    KINDS,
    PRODUCT_SHARES,
    TARGETS,
    Shares,
    kernels_of,
    stretched,
    with_peaks,
)
from autopart.records.known_gpus import GPUS, find_gpu


@pytest.mark.parametrize("name", GPUS)
def test_every_known_gpu_has_shares_for_every_target(name: str) -> None:
    for target in TARGETS:
        shares = kernels_of(find_gpu(name), target).shares
        assert all(0.0 < getattr(shares, kind) <= 1.0 for kind in KINDS)


def test_every_gpu_of_the_table_is_known() -> None:
    assert not set(PRODUCT_SHARES) - set(GPUS)


def test_megatron_alone_adds_gradients_in_its_products() -> None:
    found = {t: kernels_of(find_gpu("h100-sxm"), t).accumulation for t in TARGETS}
    assert found == {"torch": "separate", "torchtitan": "separate", "megatron": "fused"}


def test_an_unknown_target_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ClusterError, match=r"'jax'; known: torch, torchtitan, megatron"):
        kernels_of(find_gpu("h100-sxm"), "jax")


def test_a_pace_divides_a_share() -> None:
    table = kernels_of(find_gpu("h100-sxm"), "torch")
    slower = stretched(table, "memory", 2.0)
    assert slower.shares.memory == table.shares.memory / 2
    assert slower.shares.products == table.shares.products


def test_the_highest_share_of_a_cpu_is_1_whatever_is_rounded() -> None:
    gpu, random = find_gpu("cpu"), Random(1)
    for _ in range(200):
        shares = Shares(**{name: random.uniform(0.1, 9.0) for name in Shares.__struct_fields__})
        kernels = msgspec.structs.replace(kernels_of(gpu, "torch"), shares=shares)
        own = with_peaks(kernels, gpu, "float32", (1.0, 1.0)).shares
        assert max(own.memory, own.random) == pytest.approx(1.0, rel=1e-9)
        assert max(own.products, own.attention, own.memory, own.random) <= 1.0
