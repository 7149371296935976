"""The options of a plan: those of `autopart solve` that ask the plan's question again."""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType

from autopart.records.group_choice import GroupDemand
from autopart.records.plan import Plan
from autopart.records.problem import CUSTOM, Demands
from autopart.search.options import PER_STAGE, SolveOptions

_SPLITS: Mapping[bool | None, str] = MappingProxyType({None: "auto", True: "on", False: "off"})


def options_of(plan: Plan) -> SolveOptions:
    """The options whose problem is the plan's own, on the plan's cluster and with its profiles.

    The batch is in samples. The framework of `--target` is written out as sync, sends and schedules.
    """
    demands, training = plan.demands, plan.training
    options = SolveOptions(
        global_batch=plan.num_microbatches * plan.microbatch_size,
        microbatch_sizes=tuple(dict.fromkeys(size.microbatch_size for size in plan.sizes)),
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
        zero1=training.zero1,
        sync=training.sync,
        bucket_bytes=training.bucket_bytes,
        sends=plan.cluster.sends,
    )
    return dataclasses.replace(options, **_tensor(demands))


def _tensor(demands: Demands) -> dict[str, str]:
    """The words for the tensor degrees to choose from; none for degree 1."""
    asked = demands.group
    if not isinstance(asked, GroupDemand):
        return {}
    degree = PER_STAGE if asked.per_stage is True else str(asked.tensor or "auto")
    return {"tensor": degree, "sequence_parallel": _SPLITS[asked.sequence_parallel]}
