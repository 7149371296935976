"""Frameworks that plans are made for: how each syncs and sends, and the orders that it can run.

docs/cost-model.md names the sources.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, NamedTuple

from autopart.records.cluster import Sends
from autopart.records.rank_group import Shard
from autopart.records.training import HALF, Sync
from autopart.schedules.catalogue import KINDS

MEGATRON_SCHEDULES = ("1f1b", "interleaved-1f1b")
"""Schedules of Megatron-Core's own."""


class Framework(NamedTuple):
    """How a framework trains."""

    title: str
    sync: Sync = "end"
    """Whose gradient sync it runs: the word of `--sync`."""
    sends: Sends = "rendezvous"
    """Whether its sends wait for their receiver: all but serving frameworks ask right before an action."""
    schedules: tuple[str, ...] | None = None
    """The schedules that it runs; None for any orders."""
    sums_in_float32: tuple[str, ...] = ()
    """Weight dtypes whose gradients it sums in float32, unless it is told otherwise."""
    shards: bool = False
    """Whether replicas always share a stage's optimizer state, as with ZeRO-1."""
    tensor_groups: Literal["any", "whole sequences", "none"] = "any"
    """Whether a rank may be a tensor group; `whole sequences`: without sequence parallelism."""
    sharded_state: tuple[Shard, ...] = ()
    """The kinds of sharded state inside a group that its export takes: zero2, zero3."""
    unsharded: bool = True
    """Whether its export takes plans without sharded state."""
    stages: int | None = None
    """The number of stages that it runs; None for any."""
    context: bool = False
    """Whether its export takes a context degree."""
    ring: bool = False
    """Whether its context ranks may pass keys and values around a ring; all may gather them."""
    expert: bool = False
    """Whether its export takes an expert degree."""
    pairs_with_experts: tuple[str, ...] = ()
    """The schedules with overlapped pairs that it runs with an expert degree: all-to-alls of one microbatch run beside the other."""
    beside_experts: Literal["any", "split sequences", "none"] = "any"
    """The tensor groups whose ranks may have an expert degree; `split sequences`: with sequence parallelism."""


def _whole() -> tuple[str, ...]:
    """Schedules that never split a backward, in one direction, where all stash stays on its rank."""
    kinds = KINDS.values()
    return tuple(
        k.name for k in kinds if not (k.splits_backward or k.bidirectional or k.pairs or k.lends)
    )


FRAMEWORKS: Mapping[str, Framework] = MappingProxyType(
    {
        "torch": Framework("torch.distributed.pipelining", tensor_groups="none"),
        "torchtitan": Framework(
            "torchtitan", "fsdp2", schedules=_whole(), sums_in_float32=HALF,
            sharded_state=("zero2", "zero3"), context=True, expert=True, beside_experts="none",
        ),
        "megatron": Framework(
            "Megatron-Core", "megatron", schedules=MEGATRON_SCHEDULES, sums_in_float32=("bfloat16",),
            context=True, ring=True, expert=True, beside_experts="split sequences",
            pairs_with_experts=("paired-interleaved-1f1b",),
        ),
        "deepspeed": Framework(
            "DeepSpeed", "deepspeed", schedules=("1f1b",), tensor_groups="none",
        ),
        "automodel": Framework(
            "NeMo AutoModel", "fsdp2", schedules=_whole(), shards=True, tensor_groups="whole sequences",
            sharded_state=("zero2",), context=True, expert=True, beside_experts="none",
        ),
        "accelerate": Framework(
            "Hugging Face accelerate", "fsdp2", schedules=("gpipe", "1f1b"), tensor_groups="whole sequences",
            sharded_state=("zero2", "zero3"), unsharded=False, stages=1, context=True, ring=True,
        ),
        "primus": Framework(
            "AMD Primus", "megatron", schedules=(*MEGATRON_SCHEDULES, "zb-h1", "zbv"),
            sums_in_float32=("bfloat16",), context=True, ring=True, expert=True, beside_experts="split sequences",
        ),
        "vllm": Framework("vLLM (serving)", sends="buffered"),
        "device-map": Framework(
            "Hugging Face Accelerate (inference)", sends="buffered", tensor_groups="none",
        ),
    }
)  # fmt: skip
"""By the word of `solve --target` and `export --to`."""
EXECUTOR = "autopart run"
"""Who runs a plan where no framework is named."""
