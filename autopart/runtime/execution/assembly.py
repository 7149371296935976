"""From a plan and the programs of its stages to the executor of one rank."""

from collections.abc import Sequence

import torch
from torch import distributed

from autopart.plan import Plan, schedule_of, stage_ranks
from autopart.runtime.capture.split import StageProgram
from autopart.runtime.execution.executor import Executor, Watcher
from autopart.runtime.execution.gradient_sum import GradientSum, holders_of
from autopart.runtime.execution.messages import write_messages
from autopart.runtime.execution.plan_match import check_can_run, place_on
from autopart.runtime.execution.stage import TorchStage, stage_parameters
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
    rank, ranks, schedule = distributed.get_rank(), stage_ranks(plan), schedule_of(plan)
    halved = {action.stage for order in schedule for action in order if action.op == "W"}
    stages: dict[int, TorchStage] = {}
    alone = _alone(rank)
    for index, on in enumerate(ranks):
        if rank in on:
            program = programs[index]
            place_on(program.module, device)
            if index in halved:
                split_backwards(program.module)
            treat_layers(program, plan.stages[index].recompute, plan.stages[index].offload)
            stages[index] = TorchStage(
                program, index, len(ranks), plan.num_microbatches, device, alone
            )
    holders = holders_of([program.parameters for program in programs], ranks)
    mine = {n: p for stage in stages.values() for n, p in stage_parameters(stage.program).items()}
    return Executor(
        stages,
        write_messages(schedule, ranks)[rank],
        GradientSum(holders, mine, rank),
        num_microbatches=plan.num_microbatches,
        device=device,
        watcher=watcher or Unwatched(),
        owned=_owned([program.parameters for program in programs], ranks, rank),
    )


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
