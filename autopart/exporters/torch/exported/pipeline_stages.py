"""The stages on one rank, and the parameters that several ranks share.

Written by autopart. `build_stages` is the entry.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import fx, nn
from torch.distributed.pipelining import PipelineStage

from pipeline_capture import Microbatch
from pipeline_cut import StageModule, cut_model
from pipeline_plan import NUM_STAGES, RANKS, SPLITS_BACKWARD, replica_of, stages_of


@dataclass
class Stages:
    """This rank's stages, ready to train."""

    pipeline_stages: list[PipelineStage]  # one for each stage on this rank, by rising stage
    module: nn.Module  # has all parameters on this rank, under the model's own names
    device: torch.device
    replica: int
    shared: list[tuple[dist.ProcessGroup, list[nn.Parameter]]]  # parameters that other ranks share
    counted: list[nn.Parameter]  # parameters that this rank adds to the norm; each counts once


def build_stages(
    model: nn.Module,
    loss_fn: Callable[[Any, Any], torch.Tensor] | None,
    example_microbatch: Microbatch,
    rank: int,
    device: torch.device | str,
) -> Stages:
    """Cut the model and keep the stages on `rank`.

    Every rank must call this function, because it creates process groups. The stages are fixed to
    the example's shapes and to training mode. The example and the model must be on one device, such
    as the CPU. The stages' own parameters move to `device`.

    Raises ValueError where the plan does not fit the number of processes, or the model.
    """
    device = torch.device(device)
    num_ranks = len({rank for on in RANKS for rank in on})
    if dist.get_world_size() != num_ranks:
        raise ValueError(f"the plan is for {num_ranks} ranks, not {dist.get_world_size()}")
    replica = replica_of(rank)
    cut = cut_model(model, loss_fn, example_microbatch, device)
    mine = {index: cut[index].to(device) for index in stages_of(rank)}
    pipelines = [_group(sorted(set(on))) for on in zip(*RANKS, strict=True)]
    pipeline_stages = [
        _pipeline_stage(part, index, replica, device, pipelines[replica])
        for index, part in mine.items()
    ]
    module = _joined([part.cut for part in mine.values()])
    held = [[n for n, p in part.cut.named_parameters() if p.requires_grad] for part in cut]
    parameters = dict(module.named_parameters())
    holders = _holders(held)
    return Stages(
        pipeline_stages=pipeline_stages,
        module=module,
        device=device,
        replica=replica,
        shared=_shared(holders, parameters, rank),
        counted=[parameters[name] for name, on in holders.items() if on[0] == rank],
    )


def _pipeline_stage(
    part: "StageModule",
    index: int,
    replica: int,
    device: torch.device,
    group: dist.ProcessGroup,
) -> PipelineStage:
    stage = PipelineStage(
        part,
        index,
        NUM_STAGES,
        device,
        input_args=part.received_examples,
        output_args=part.output_examples,
        group=group,
        dw_builder=part.weight_gradients if SPLITS_BACKWARD else None,
    )
    ordered = sorted({on[replica] for on in RANKS})
    stage.stage_index_to_group_rank = {s: ordered.index(on[replica]) for s, on in enumerate(RANKS)}
    return stage


def _joined(parts: Sequence[fx.GraphModule]) -> nn.Module:
    """A module with all parameters and buffers from the parts. It computes nothing."""
    if len(parts) == 1:
        return parts[0]
    tensors: dict[str, Any] = {}
    for part in parts:
        tensors |= dict(part.named_parameters()) | dict(part.named_buffers())
    graph = fx.Graph()
    for name in tensors:
        graph.get_attr(name)
    graph.output(None)
    return fx.GraphModule(tensors, graph)


def _group(ranks: Sequence[int]) -> Any:
    """A process group with these ranks. On other ranks torch returns a number instead."""
    return dist.new_group(list(ranks))


def _holders(held: Sequence[Sequence[str]]) -> dict[str, tuple[int, ...]]:
    """The ranks with each trained parameter, from the parameter names for each stage."""
    holders: dict[str, set[int]] = {}
    for names, on in zip(held, RANKS, strict=True):
        for name in names:
            holders.setdefault(name, set()).update(on)
    return {name: tuple(sorted(on)) for name, on in sorted(holders.items())}


def _shared(
    holders: dict[str, tuple[int, ...]], parameters: dict[str, nn.Parameter], rank: int
) -> list[tuple[dist.ProcessGroup, list[nn.Parameter]]]:
    """A process group for each set of ranks that share parameters, and these parameters.

    Every rank must call this function, because it creates process groups. Single stages come
    before several stages with a tied parameter, so that a stage's own sums wait for no other stage.
    """
    shared = []
    single = {tuple(sorted(on)) for on in RANKS}
    several = {on for on in holders.values() if len(on) > 1}
    for on in sorted(several, key=lambda on: (on not in single, on)):
        group = _group(on)
        if rank in on:
            shared.append((group, [parameters[n] for n, ranks in holders.items() if ranks == on]))
    return shared
