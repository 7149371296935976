"""The options of a plan: those of `autopart solve` that ask the plan's question again."""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import msgspec

from autopart.records.group_choice import GroupDemand, has_sharding_choice
from autopart.records.plan import Plan
from autopart.records.problem import CUSTOM, Demands
from autopart.records.rank_group import samples_per_gpu
from autopart.search.options import PER_STAGE, SolveOptions

_SPLITS: Mapping[bool | None, str] = MappingProxyType({None: "auto", True: "on", False: "off"})


def options_of(plan: Plan) -> SolveOptions:
    """The options whose problem is the plan's own, on the plan's cluster and with its profiles.

    The batch is in samples. The framework of `--target` is written out as sync, sends and schedules.
    """
    demands, training = plan.demands, plan.training
    options = SolveOptions(
        global_batch=plan.num_microbatches * plan.microbatch_size,
        microbatch_sizes=tuple(
            dict.fromkeys(samples_per_gpu(size.microbatch_size, size.group) for size in plan.sizes)
        ),
        objective=plan.objective,
        schedule="auto" if CUSTOM in demands.schedules else ",".join(demands.schedules),
        num_stages=demands.num_stages,
        num_replicas=demands.num_replicas,
        replicas_per_stage=demands.replicas_per_stage,
        stages_per_rank=demands.stages_per_rank,
        pins={pin.layer: pin.stage for pin in demands.pins},
        same_stage=demands.same_stage,
        different_stage=demands.different_stage,
        recompute=demands.recompute,
        recompute_layers=demands.recompute_layers,
        selective_layers=demands.selective_layers,
        keep_layers=demands.keep_layers,
        offload=demands.offload,
        offload_layers=demands.offload_layers,
        offload_optimizer=demands.offload_optimizer,
        optimizer=training.optimizer,
        precision=training.precision,
        gradient_dtype=training.gradient_dtype,
        zero1=training.zero1 and not has_sharding_choice(demands.group),
        sync=training.sync,
        bucket_bytes=training.bucket_bytes,
        sends=plan.cluster.sends,
    )
    return dataclasses.replace(options, **_group(demands))


def _group(demands: Demands) -> dict[str, Any]:
    """The words for the rank groups to choose from; none for one GPU."""
    asked = demands.group
    if not isinstance(asked, GroupDemand):
        return {}
    degree = PER_STAGE if asked.per_stage is True else str(asked.tensor or "auto")
    found: dict[str, Any] = {
        "tensor": degree,
        "sequence_parallel": _SPLITS[asked.sequence_parallel] if degree != "1" else "auto",
    }
    if asked.context is not msgspec.UNSET:
        found["context"] = "auto" if asked.context is None else ",".join(map(str, asked.context))
    if isinstance(asked.exchange, str):
        found["context_exchange"] = asked.exchange
    if asked.expert is not msgspec.UNSET:
        found["expert"] = "auto" if asked.expert is None else ",".join(map(str, asked.expert))
    if asked.imbalance is not msgspec.UNSET:
        found["expert_imbalance"] = asked.imbalance
    if isinstance(asked.shard, tuple):
        found["shard"] = ",".join(asked.shard)
    if isinstance(asked.shard_degree, int):
        found["shard_degree"] = asked.shard_degree
    return found
