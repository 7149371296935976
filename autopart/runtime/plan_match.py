"""A plan held against the model that it is to run."""

import torch
from torch import fx
from torch.fx.node import Argument, map_aggregate

from autopart.errors import PlanError
from autopart.plan import Plan
from autopart.runtime.capture import Captured, Granularity, capture_model
from autopart.runtime.model import Batch, TrainingModel

_GRANULARITIES: tuple[Granularity, ...] = ("block", "module")


def capture_for_plan(plan: Plan, model: TrainingModel, batch: Batch) -> Captured:
    """Capture the model in the layers that the plan names.

    Raises PlanError where the plan was made from another model, another microbatch size or dtype,
    or from another division into layers.
    """
    unknown: list[str] = []
    missing: list[str] = []
    for granularity in _GRANULARITIES:
        captured = capture_model(model, batch, granularity=granularity)
        unknown, missing = _difference(plan, captured)
        if captured.graph_hash != plan.origin.graph_hash:
            raise PlanError(_other_model(plan, model.name, unknown, missing))
        if not unknown and not missing:
            return captured
    raise PlanError(_other_layers(plan, model.name, unknown, missing))


def place_on(module: fx.GraphModule, device: torch.device) -> None:
    """Move a stage's tensors to `device`, and with them the device that its graph has burned in
    for the tensors that it makes itself (masks, position ids)."""

    def moved(argument: Argument) -> Argument:
        return device if isinstance(argument, torch.device) else argument

    module.to(device)
    for part in module.modules():
        if isinstance(part, fx.GraphModule):
            for node in part.graph.nodes:
                node.args = map_aggregate(node.args, moved)
                node.kwargs = map_aggregate(node.kwargs, moved)
            part.recompile()


def _difference(plan: Plan, captured: Captured) -> tuple[list[str], list[str]]:
    """Layers of the plan that the model lacks, and layers of the model that the plan lacks."""
    planned = [name for stage in plan.stages for name in stage.layers]
    known = [layer.name for layer in captured.layers]
    return [n for n in planned if n not in known], [n for n in known if n not in planned]


def _other_model(plan: Plan, model: str, unknown: list[str], missing: list[str]) -> str:
    made = f"the plan was made from {plan.origin.model}, whose graph has the hash {plan.origin.graph_hash}"
    if unknown or missing:
        return f"{made}; {model} differs: {_listed(unknown, missing)}; profile and solve it anew"
    return (
        f"{made}; {model} has the same layers, but its operations or shapes differ at microbatch "
        f"size {plan.microbatch_size} and {plan.origin.dtype}; profile and solve it anew"
    )


def _other_layers(plan: Plan, model: str, unknown: list[str], missing: list[str]) -> str:
    return f"the plan's layers are not those of {model}: {_listed(unknown, missing)}"


def _listed(unknown: list[str], missing: list[str]) -> str:
    parts = [
        (unknown, "the plan has", "which the model lacks"),
        (missing, "the model has", "which the plan lacks"),
    ]
    return "; ".join(f"{who} {_some(names)}, {lacks}" for names, who, lacks in parts if names)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(f"'{name}'" for name in names[:4]) + more
