"""From a plan and the programs of its stages to the executor of one rank."""

from collections.abc import Mapping, Sequence

import torch
from torch import distributed

from autopart.plan import Plan, schedule_of, stage_ranks
from autopart.runtime.capture.split import StageProgram
from autopart.runtime.execution.executor import Executor, Watcher
from autopart.runtime.execution.gradient_sum import GradientSum, holders_of
from autopart.runtime.execution.messages import write_messages
from autopart.runtime.execution.plan_match import check_can_run, place_on
from autopart.runtime.execution.stage import TorchStage, stage_parameters
from autopart.runtime.execution.transfers import Transfers
from autopart.runtime.execution.treated_layers import treat_layers
from autopart.runtime.execution.weight_gradients import split_backwards


class Unwatched:
    """A watcher for programs that have their own way of noticing a hang."""

    def working(self, on: str) -> None:
        pass

    def waiting(self, on: str, peer: int | None) -> None:
        pass


def make_executor(
    plan: Plan,
    programs: Sequence[StageProgram],
    *,
    device: torch.device,
    watcher: Watcher | None = None,
) -> Executor:
    """This rank's executor; its stages' tensors are moved to `device`.

    `programs` are those of `split_stages` for the plan's stages, made on every rank from equal
    weights. Every rank of the default process group must call this: it makes process groups.
    Raises PlanError where the plan asks for what is not run yet.
    """
    check_can_run(plan)
    rank, ranks = distributed.get_rank(), stage_ranks(plan)
    stages = _stages_of(plan, rank, programs, device, _alone(rank))
    names = [program.parameters for program in programs]
    return Executor(
        stages,
        write_messages(schedule_of(plan), ranks)[rank],
        GradientSum(holders_of(names, ranks), _parameters(stages), rank),
        num_microbatches=plan.num_microbatches,
        device=device,
        watcher=watcher or Unwatched(),
        owned=_owned(names, ranks, rank),
    )


def make_lone_executor(
    plan: Plan,
    rank: int,
    programs: Sequence[StageProgram],
    transfers: Transfers,
    *,
    device: torch.device,
) -> Executor:
    """The executor of `rank` in a process group of this process alone; `transfers` stand in for the
    other ranks, and nothing is summed over them. Raises PlanError as `make_executor` does."""
    check_can_run(plan)
    stages = _stages_of(plan, rank, programs, device, _alone(0))
    return Executor(
        stages,
        write_messages(schedule_of(plan), stage_ranks(plan))[rank],
        GradientSum((), _parameters(stages), rank),
        num_microbatches=plan.num_microbatches,
        device=device,
        watcher=Unwatched(),
        transfers=transfers,
    )


def _stages_of(
    plan: Plan,
    rank: int,
    programs: Sequence[StageProgram],
    device: torch.device,
    alone: distributed.ProcessGroup,
) -> dict[int, TorchStage]:
    """The stages of `rank`, each with what the plan does to its layers."""
    halved = {action.stage for order in schedule_of(plan) for action in order if action.op == "W"}
    stages: dict[int, TorchStage] = {}
    for index, stage in enumerate(plan.stages):
        if rank in stage.ranks:
            program = programs[index]
            place_on(program.module, device)
            if index in halved:
                split_backwards(program.module)
            treat_layers(program, stage.recompute, stage.offload)
            stages[index] = TorchStage(
                program, index, len(plan.stages), plan.num_microbatches, device, alone
            )
    return stages


def _parameters(stages: Mapping[int, TorchStage]) -> dict[str, torch.nn.Parameter]:
    return {n: p for stage in stages.values() for n, p in stage_parameters(stage.program).items()}


def _owned(
    names_of_stages: Sequence[Sequence[str]], ranks: Sequence[Sequence[int]], rank: int
) -> tuple[str, ...]:
    """The parameters of which `rank` is the first to hold a copy."""
    first: dict[str, int] = {}
    for names, on in zip(names_of_stages, ranks, strict=True):
        for name in names:
            first[name] = min(first.get(name, min(on)), *on)
    return tuple(name for name, owner in first.items() if owner == rank)


def _alone(rank: int) -> distributed.ProcessGroup:
    group = distributed.new_group([rank], use_local_synchronization=True)
    assert isinstance(group, distributed.ProcessGroup)
    return group
