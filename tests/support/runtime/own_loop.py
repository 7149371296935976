"""A user's training loop, in a pipeline on each rank, and with the plain model."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import distributed, nn
from torch.distributed import checkpoint
from torch.distributed.checkpoint import state_dict as states

from autopart.errors import AutopartError
from autopart.records.plan import Plan
from autopart.runtime.engine.pipeline import Pipeline, make_pipeline
from autopart.runtime.engine.plan_match import Backend
from autopart.runtime.models.model import Batch, TrainingModel, build_training_model, example_batch
from autopart.runtime.models.model_file import load_model
from autopart.runtime.sharding.groups import TensorGroup
from autopart.zoo.source import ModelSource

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Loop:
    """Settings of the loop."""

    steps: int = 2
    optimizer: str = "sgd"
    max_norm: float | None = None
    accumulate: int = 1
    """Batches that accumulate gradients before each optimizer step."""
    scale: float = 1.0
    """Loss scale, undone before the optimizer's step."""
    whole_batches: bool = False
    """Whether the pipeline gets whole batches and divides them."""
    first: int = 0
    """Number of the first step, which selects its data."""
    backend: Backend = "autopart"


@dataclass(frozen=True)
class Trained:
    """Results of a loop."""

    losses: list[float]
    norms: list[float]
    gradients: Tensors
    """Gradients in the last step."""
    state: Tensors


def in_pipeline(rank: int, plan: Plan, loop: Loop) -> Trained:
    pipeline, source = pipeline_of(plan, backend=loop.backend)
    return trained(pipeline, source, plan, loop, optimizer_of(loop, pipeline.parameters.values()))


def by_both_backends(rank: int, plan: Plan, loop: Loop) -> tuple[Trained, Trained]:
    ours, torchs = (replace(loop, backend=backend) for backend in ("autopart", "torch"))
    return in_pipeline(rank, plan, ours), in_pipeline(rank, plan, torchs)


def saved_half_way(rank: int, plan: Plan, loop: Loop, folder: Path) -> None:
    """Train, and save parameters, buffers and the optimizer's state."""
    pipeline, source = pipeline_of(plan)
    optimizer = optimizer_of(loop, pipeline.parameters.values())
    trained(pipeline, source, plan, loop, optimizer)
    checkpoint.save(whole_state(pipeline.module, optimizer), checkpoint_id=folder)


def loaded_and_trained(rank: int, plan: Plan, loop: Loop, folder: Path) -> Trained:
    """Build other weights, load a checkpoint, perhaps under another plan, and continue training."""
    pipeline, source = pipeline_of(plan, seed=7)
    optimizer = optimizer_of(loop, pipeline.parameters.values())
    state = whole_state(pipeline.module, optimizer)
    checkpoint.load(state, checkpoint_id=folder)
    states.set_state_dict(
        pipeline.module,
        optimizer,
        model_state_dict=state["model"],
        optim_state_dict=state["optimizer"],
        options=states.StateDictOptions(flatten_optimizer_state_dict=True),
    )
    return trained(pipeline, source, plan, loop, optimizer)


def whole_state(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, dict]:
    options = states.StateDictOptions(flatten_optimizer_state_dict=True)
    model, optim = states.get_state_dict(module, optimizer, options=options)
    return {"model": model, "optimizer": optim}


def pipeline_of(
    plan: Plan,
    seed: int = 0,
    backend: Backend = "autopart",
    tensor_group: TensorGroup | None = None,
) -> tuple[Pipeline, ModelSource]:
    source, dtype = load_model(plan.origin.model), plan.origin.dtype
    training = build_training_model(source, dtype=dtype, seed=seed)
    example = example_batch(source, plan.microbatch_size, dtype=dtype)
    pipeline = make_pipeline(
        plan,
        training.model,
        example,
        loss_fn=training.loss_fn,
        backend=backend,
        tensor_group=tensor_group,
    )
    return pipeline, source


def trained(
    pipeline: Pipeline,
    source: ModelSource,
    plan: Plan,
    loop: Loop,
    optimizer: torch.optim.Optimizer,
) -> Trained:
    losses, norms, gradients = [], [], {}
    for step in range(loop.first, loop.first + loop.steps):
        loss = 0.0
        for part in range(loop.accumulate):
            every = microbatches(source, plan, step * loop.accumulate + part)
            mine = {m: every[m] for m in pipeline.microbatches}
            last = part == loop.accumulate - 1
            loss += pipeline.step(
                joined(every) if loop.whole_batches else mine,
                scale=loop.scale / loop.accumulate,
                sync=last,
            ).item()
        assert pipeline.unscale_gradients(loop.scale)
        losses.append(loss / loop.accumulate)
        if loop.max_norm is not None:
            norms.append(pipeline.clip_gradients(loop.max_norm).item())
        named = pipeline.parameters.items()
        gradients = {name: p.grad.clone() for name, p in named if p.grad is not None}
        optimizer.step()
        optimizer.zero_grad()
    return Trained(losses, norms, gradients, pipeline.state_dict())


def plain(plan: Plan, loop: Loop) -> Trained:
    """The same loop with the plain model in one process."""
    source = load_model(plan.origin.model)
    model = build_training_model(source, dtype=plan.origin.dtype)
    optimizer = optimizer_of(loop, model.parameters())
    losses, norms, gradients = [], [], {}
    for step in range(loop.first, loop.first + loop.steps):
        losses.append(_plain_step(model, source, plan, loop, step))
        if loop.max_norm is not None:
            norm = nn.utils.clip_grad_norm_(model.parameters(), loop.max_norm)
            norms.append(norm.item())
        named = model.model.named_parameters()
        gradients = {name: p.grad.clone() for name, p in named if p.grad is not None}
        optimizer.step()
        optimizer.zero_grad()
    return Trained(losses, norms, gradients, model.model.state_dict())


def _plain_step(
    model: TrainingModel, source: ModelSource, plan: Plan, loop: Loop, step: int
) -> float:
    total = 0.0
    count = loop.accumulate * plan.num_microbatches
    for part in range(loop.accumulate):
        for inputs, target in microbatches(source, plan, step * loop.accumulate + part):
            loss = model(inputs, target) / count
            loss.backward()
            total += loss.item()
    return total


def microbatches(source: ModelSource, plan: Plan, batch: int) -> list[Batch]:
    size, dtype = plan.microbatch_size, plan.origin.dtype
    count = plan.num_microbatches
    return [
        example_batch(source, size, dtype=dtype, seed=1 + batch * count + m) for m in range(count)
    ]


def joined(every: Sequence[Batch]) -> Batch:
    """Microbatches with positional inputs as one batch."""
    inputs = tuple(torch.cat(parts) for parts in zip(*(i for i, _ in every), strict=True))
    return inputs, None if every[0][1] is None else torch.cat([target for _, target in every])


def optimizer_of(loop: Loop, parameters: object) -> torch.optim.Optimizer:
    if loop.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=1e-3)
    return torch.optim.SGD(parameters, lr=1e-2)


def complaint_of_step(rank: int, plan: Plan, fault: str) -> str:
    """The pipeline's error for a wrong batch."""
    pipeline, source = pipeline_of(plan)
    every = microbatches(source, plan, 0)
    wrong = {
        "missing": {m: b for m, b in enumerate(every) if m != pipeline.microbatches[-1]},
        "ragged": ((joined(every)[0][0][:-1],), None),
        "shape": joined([*every, *every]),
    }
    try:
        pipeline.step(wrong[fault])
    except AutopartError as error:
        return f"{type(error).__name__}: {error}"
    finally:
        distributed.barrier()
    return ""


def complaint_of_load(rank: int, plan: Plan) -> tuple[list[str], str]:
    """Names in this rank's state, and the error if one of them is missing."""
    pipeline, _ = pipeline_of(plan)
    state = pipeline.state_dict()
    pipeline.load_state_dict({name: torch.zeros_like(tensor) for name, tensor in state.items()})
    assert all(not tensor.any() for tensor in pipeline.state_dict().values())
    lost = sorted(state)[0]
    try:
        pipeline.load_state_dict({n: t for n, t in state.items() if n != lost})
    except AutopartError as error:
        return list(state), f"{type(error).__name__}: {error}"
    return list(state), ""
