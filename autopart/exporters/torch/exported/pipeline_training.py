"""One optimizer step: gradients, their sums over ranks, clipping and the update.

Written by autopart. `train_step` is the entry.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

from pipeline_capture import Microbatch, leaves_of
from pipeline_cut import StageModule
from pipeline_plan import microbatches_of
from pipeline_schedule import Schedule
from pipeline_stages import Stages


def train_step(
    stages: Stages,
    schedule: Schedule,
    optimizer: torch.optim.Optimizer,
    microbatches: Sequence[Microbatch],
    max_norm: float | None = None,
) -> torch.Tensor:
    """Run one optimizer step over the replica's microbatches.

    Returns the mean loss over the batch, all replicas included. `max_norm` clips gradients by their
    norm over the whole model.
    """
    optimizer.zero_grad()
    loss = accumulate_gradients(stages, schedule, microbatches)
    sum_shared_gradients(stages)
    if max_norm is not None:
        clip_gradients(stages, max_norm)
    optimizer.step()
    return loss


def accumulate_gradients(
    stages: Stages,
    schedule: Schedule,
    microbatches: Sequence[Microbatch],
) -> torch.Tensor:
    """Run the schedule, which adds to this rank's gradients.

    Returns the mean loss over the batch. Raises ValueError for a wrong number of microbatches.
    """
    count = microbatches_of(stages.replica)
    if len(microbatches) != count:
        given = len(microbatches)
        raise ValueError(f"replica {stages.replica} takes {count} microbatches, not {given}")
    named = [leaves_of(microbatch) for microbatch in microbatches]
    # Step 1: stack each leaf over the microbatches, in a new first dimension. The schedule splits
    # that dimension, and the stage removes it. Every stage gets all leaves and picks its own.
    read: dict[str, str] = {}
    for stage in stages.pipeline_stages:
        assert isinstance(stage.submod, StageModule)
        read |= stage.submod.leaves
    leaves = {
        name: torch.stack([leaves[place] for leaves in named]).to(stages.device)
        for name, place in read.items()
    }
    # Step 2: run the schedule. Only a rank with the last stage gets losses; torch wants a target
    # there, though the target that counts is among the leaves.
    losses: list[torch.Tensor] = []
    has_last = any(stage.is_last for stage in stages.pipeline_stages)
    on_last: dict[str, Any] = {"target": torch.zeros(count), "losses": losses} if has_last else {}
    arguments: dict[str, Any] = on_last | leaves
    schedule.step(**arguments)
    # Step 3: sum the losses over all ranks. Each is already divided by NUM_MICROBATCHES.
    loss = torch.zeros((), device=stages.device)
    for part in losses:
        loss += part.detach()
    dist.all_reduce(loss)
    return loss


def sum_shared_gradients(stages: Stages) -> None:
    """Sum each gradient over the ranks that share its parameter.

    These are a stage's replicas, and other stages that read a tied parameter.
    """
    for group, parameters in stages.shared:
        # Step 1: agree on the parameters with a gradient on any rank, so that all ranks sum alike.
        used = torch.tensor([p.grad is not None for p in parameters], device=parameters[0].device)
        used = used.int()
        dist.all_reduce(used, op=dist.ReduceOp.MAX, group=group)
        for dtype in sorted({p.dtype for p in parameters}, key=str):
            summed = [
                p for p, u in zip(parameters, used.tolist(), strict=True) if u and p.dtype == dtype
            ]
            if not summed:
                continue
            # Step 2: sum them in one flat message for each dtype. A missing gradient is zero.
            gradients: list[torch.Tensor] = []
            for p in summed:
                p.grad = torch.zeros_like(p) if p.grad is None else p.grad
                gradients.append(p.grad)
            flat = torch.cat([gradient.flatten() for gradient in gradients])
            dist.all_reduce(flat, group=group)
            # Step 3: copy the sums back into the gradients.
            parts = flat.split([gradient.numel() for gradient in gradients])
            for gradient, part in zip(gradients, parts, strict=True):
                gradient.copy_(part.view_as(gradient))


def clip_gradients(stages: Stages, max_norm: float) -> torch.Tensor:
    """Scale all gradients so that their norm over the whole model is at most `max_norm`.

    Returns the norm before scaling. Call it after `sum_shared_gradients`.
    """
    square = torch.zeros((), device=stages.device)
    for p in stages.counted:
        if p.grad is not None:
            square += p.grad.float().square().sum()
    dist.all_reduce(square)
    norm = square.sqrt()
    scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    for p in stages.module.parameters():
        if p.grad is not None:
            p.grad.mul_(scale.to(p.grad.dtype))
    return norm
