"""Compares a plan with the model that it will run."""

from typing import Literal, NamedTuple

import torch
from torch import distributed, fx
from torch.fx.node import Argument, map_aggregate

from autopart.errors import ExportRefused, ModelError, PlanError
from autopart.records.plan import Plan, check_plan
from autopart.records.rank_group import group_name, samples_per_gpu, shard_degree
from autopart.records.torch_replicas import replicas_of
from autopart.records.training import weight_dtype
from autopart.runtime.capture.capture import Captured, Granularity, capture_model
from autopart.runtime.capture.repeatability import check_repeatable
from autopart.runtime.models.attributes import user_name
from autopart.runtime.models.model import Batch, TrainingModel, not_a_number
from autopart.runtime.models.precision import double
from autopart.runtime.sharding.groups import TensorGroup

Backend = Literal["autopart", "torch"]
"""The loop that runs the orders: our executor, or torch's own schedules."""

GRANULARITIES: tuple[Granularity, ...] = ("block", "module")
"""The layers that a plan may name: whole blocks, or their modules."""


def capture_for_plan(
    plan: Plan, model: TrainingModel, batch: Batch, autocast: torch.dtype | None = None
) -> Captured:
    """Capture the model in the layers that the plan names.

    With `autocast`, the model is captured under autocast to that dtype. Raises PlanError if the
    plan was made from another model, microbatch size or dtype, or from other layers.
    """
    if autocast is not None and plan.origin.dtype != "float32":
        raise PlanError(
            f"autocast is for models in float32, and the plan's has {plan.origin.dtype}; leave "
            "--autocast out, or profile with --dtype float32"
        )
    least: _Difference | None = None
    for granularity in GRANULARITIES:
        captured = capture_model(model, batch, granularity=granularity)
        found = _difference(plan, captured)
        if found == _Difference(is_other_graph=False, unknown=[], missing=[]):
            return (
                captured
                if autocast is None
                else _cast(captured, model, batch, granularity, autocast)
            )
        if least is None or found.size < least.size:
            least = found
    assert least is not None
    check_repeatable(model, batch)
    raise PlanError(_told(plan, model.name, least))


def _cast(
    captured: Captured,
    model: TrainingModel,
    batch: Batch,
    granularity: Granularity,
    autocast: torch.dtype,
) -> Captured:
    """The model captured again, under autocast. `captured` has no autocast, as the plan's
    profile."""
    cast = capture_model(model, batch, granularity=granularity, autocast=autocast)
    names, there = ([layer.name for layer in one.layers] for one in (captured, cast))
    if names != there:
        raise ModelError(f"{model.name} has other layers under autocast than without it")
    return cast


def check_can_run(plan: Plan, backend: Backend = "autopart") -> None:
    """Raise PlanError if a plan contradicts itself, or the backend cannot run it."""
    check_plan(plan)
    _check_sharing(plan, backend)
    training = plan.training
    if training.gradient_dtype != weight_dtype(training):
        raise PlanError(
            f"the plan sums gradients in {training.gradient_dtype}, and a run sums them in "
            f"{weight_dtype(training)}, the weights' own dtype; solve without --gradient-dtype"
        )
    if backend == "torch":
        _check_torch_can_run(plan)


def _check_sharing(plan: Plan, backend: Backend) -> None:
    """Raise PlanError where the ranks share state, and the backend cannot."""
    if backend == "torch" and shard_degree(plan.group) > 1:
        raise PlanError(
            f"the plan has {group_name(plan.group)}, and torch's schedules gather no weights; leave --backend out, or "
            "solve with --shard none"
        )


def check_same_weights(model: TrainingModel) -> None:
    """Raise ModelError if ranks built unequal weights from the same seed. Collective over all
    ranks.

    Otherwise the copies of a parameter would silently train apart. Raises it also where a parameter
    contains NaN.
    """
    fault = not_a_number(model)
    if fault is not None:
        raise ModelError(f"{model.name}: {fault}")
    sums = _sums(model)
    all_of: list[dict[str, float]] = [sums] * distributed.get_world_size()
    distributed.all_gather_object(all_of, sums)
    for rank, theirs in enumerate(all_of):
        apart = [name for name, value in theirs.items() if value != all_of[0].get(name)]
        if apart or len(theirs) != len(all_of[0]):
            raise ModelError(
                f"{model.name}: rank {rank} built other weights than rank 0 from the same seed, "
                f"for example '{apart[0] if apart else '?'}'; draw random numbers from torch, "
                "numpy or random, without your own seeds"
            )


def check_same_in_group(model: TrainingModel, group: TensorGroup, device: torch.device) -> None:
    """Raise ModelError if processes of a tensor group built unequal weights from the same seed.

    Collective over the group, which communicates on `device`.
    """
    mine = torch.tensor(list(_sums(model).values()), dtype=torch.float64, device=device)
    if not torch.equal(group.all_reduce(mine, "max"), mine):
        raise ModelError(
            f"{model.name}: processes of one tensor group built other weights from the same seed; draw "
            "random numbers from torch, numpy or random, without your own seeds"
        )


def _sums(model: TrainingModel) -> dict[str, float]:
    """The sum of each parameter, by the user's names."""
    return {user_name(n): float(double(p.detach()).sum()) for n, p in model.named_parameters()}


def place_on(module: fx.GraphModule, device: torch.device) -> None:
    """Move a stage to `device`: its tensors, and the device arguments in its graph.

    Such arguments belong to operations that create tensors, such as masks and position ids.
    """

    def moved(argument: Argument) -> Argument:
        return device if isinstance(argument, torch.device) else argument

    module.to(device)
    for part in module.modules():
        if isinstance(part, fx.GraphModule):
            for node in part.graph.nodes:
                node.args = map_aggregate(node.args, moved)
                node.kwargs = map_aggregate(node.kwargs, moved)
            part.recompile()


def _check_torch_can_run(plan: Plan) -> None:
    try:
        replicas_of(plan)
    except ExportRefused as error:
        raise PlanError(f"--backend torch cannot run this plan: {error}") from error
    for index, stage in enumerate(plan.stages):
        if stage.offload:
            raise PlanError(
                f"--backend torch cannot run this plan: stage {index} offloads layer "
                f"'{stage.offload[0]}', and torch's schedules do not say when to copy it back; "
                "leave --backend out, or solve with --offload never"
            )


class _Difference(NamedTuple):
    """Differences between a plan and a captured model."""

    is_other_graph: bool
    unknown: list[str]
    """Layers of the plan that the model lacks."""
    missing: list[str]
    """Layers of the model that the plan lacks."""

    @property
    def size(self) -> int:
        return len(self.unknown) + len(self.missing)


def _difference(plan: Plan, captured: Captured) -> _Difference:
    planned = [name for stage in plan.stages for name in stage.layers]
    known = [layer.name for layer in captured.layers]
    return _Difference(
        is_other_graph=not _is_scaled(plan) and captured.graph_hash != plan.origin.graph_hash,
        unknown=[name for name in planned if name not in known],
        missing=[name for name in known if name not in planned],
    )


def _is_scaled(plan: Plan) -> bool:
    """Whether the profile has another microbatch size than the plan.

    The graph then has other shapes and another hash, so only the layers can be compared.
    """
    own = (size for size in plan.sizes if size.microbatch_size == plan.microbatch_size)
    return any(
        size.profiled_size != samples_per_gpu(size.microbatch_size, size.group) for size in own
    )


def _told(plan: Plan, model: str, found: _Difference) -> str:
    if not found.is_other_graph:
        return f"the plan and {model} have different layers: {_layers(found)}"
    made = f"the plan was made from {plan.origin.model} (graph {plan.origin.graph_hash[:16]})"
    if found.size:
        return f"{made}; {model} differs: {_layers(found)}; profile and solve again"
    return (
        f"{made}; {model} has the same layers, but its operations or shapes differ at microbatch "
        f"size {plan.microbatch_size} and {plan.origin.dtype}; profile and solve again"
    )


def _layers(found: _Difference) -> str:
    parts: list[str] = []
    if found.unknown:
        parts.append(f"the plan has {_some(found.unknown)}, which the model lacks")
    if found.missing:
        parts.append(f"the model has {_some(found.missing)}, which the plan lacks")
    return "; ".join(parts)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(f"'{name}'" for name in names[:4]) + more


def device_of(asked: torch.device | str | None) -> torch.device:
    """A rank's device: as asked, else its GPU if the process group uses NCCL, else the CPU."""
    if asked is not None:
        return torch.device(asked)
    if "nccl" in str(distributed.get_backend()):
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
