"""Captures of the repository's own models that a process makes once and then copies.

Tracing takes most of the time of a small run. A copy has the graph of the first capture, and the
parameters and buffers of the model that is given.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import NamedTuple

import torch

from autopart.records.plan import Plan
from autopart.runtime.capture.capture import Captured, capture_model
from autopart.runtime.capture.tracing import batch_leaf_names
from autopart.runtime.engine.plan_match import capture_for_plan
from autopart.runtime.models.model import Batch, TrainingModel
from tests.support.places import MODELS

HUGGING_FACE = frozenset(str(path) for path in MODELS.glob("hf_*.py"))


class _Kept(NamedTuple):
    """A capture whose tensors are empty, and the tensors of the model that they stand for."""

    captured: Captured
    names: Mapping[int, str]
    """For each empty tensor, by identity, its name in the model."""
    empty: Mapping[int, torch.Tensor]


_kept: dict[object, _Kept] = {}


def captured_for_plan(
    plan: Plan, model: TrainingModel, batch: Batch, autocast: torch.dtype | None = None
) -> Captured:
    """`capture_for_plan`, whose graph is traced once for each model, batch shape and dtype."""
    layers = tuple(stage.layers for stage in plan.stages)
    of_plan = (plan.origin.graph_hash, plan.origin.dtype, layers, autocast)
    return _once(of_plan, model, batch, lambda: capture_for_plan(plan, model, batch, autocast))


def captured_once(model: TrainingModel, batch: Batch) -> Captured:
    """`capture_model`, whose graph is traced once for each model, batch shape and dtype."""
    return _once(None, model, batch, lambda: capture_model(model, batch))


def _once(
    how: object, model: TrainingModel, batch: Batch, capture: Callable[[], Captured]
) -> Captured:
    """Only built-in models and the tests' Hugging Face models are kept: their graphs depend on
    nothing else. All others are captured anew."""
    if not model.name.startswith("zoo:") and model.name not in HUGGING_FACE:
        return capture()
    key = (how, *_key(model, batch))
    if key not in _kept:
        captured = capture()
        _kept[key] = _emptied(captured, model)
        return captured
    return _filled(_kept[key], model)


def _key(model: TrainingModel, batch: Batch) -> tuple[object, ...]:
    state = [(name, t.shape, t.dtype, t.requires_grad) for name, t in _tensors(model).items()]
    leaves = [
        (name, leaf.shape, leaf.dtype) if isinstance(leaf, torch.Tensor) else (name, repr(leaf))
        for name, leaf in batch_leaf_names(batch)
    ]
    modes = tuple(module.training for module in model.modules())
    return (model.name, tuple(state), tuple(leaves), modes)


def _tensors(model: TrainingModel) -> dict[str, torch.Tensor]:
    parameters = model.named_parameters(remove_duplicate=False)
    return {**dict(parameters), **dict(model.named_buffers(remove_duplicate=False))}


def _emptied(captured: Captured, model: TrainingModel) -> _Kept:
    names = {id(tensor): name for name, tensor in _tensors(model).items()}
    inside = [*captured.module.parameters(), *captured.module.buffers()]
    twins = {id(t): _twin(t) for t in inside if id(t) in names}
    module = copy.deepcopy(captured.module, dict[int, object](twins))
    return _Kept(
        replace(captured, module=module),
        {id(twin): names[at] for at, twin in twins.items()},
        {id(twin): twin for twin in twins.values()},
    )


def _twin(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor without memory that stands for `tensor` in a kept graph."""
    empty = torch.empty_like(tensor, device="meta")
    if isinstance(tensor, torch.nn.Parameter):
        return torch.nn.Parameter(empty, requires_grad=tensor.requires_grad)
    return empty


def _filled(kept: _Kept, model: TrainingModel) -> Captured:
    tensors = _tensors(model)
    given = {at: tensors[name] for at, name in kept.names.items()}
    module = copy.deepcopy(kept.captured.module, dict[int, object](given))
    return replace(kept.captured, module=module)
