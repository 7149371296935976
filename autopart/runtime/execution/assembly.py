"""From a plan and the programs of its stages to the executor of one rank."""

from collections.abc import Mapping, Sequence

import torch
from torch import distributed

from autopart.errors import UsageError
from autopart.plan import Plan, Stage, schedule_of, stage_ranks
from autopart.runtime.capture.split import StageProgram
from autopart.runtime.execution.asynchronous import (
    AsynchronousExecutor,
    check_no_shared,
    way_of,
)
from autopart.runtime.execution.executor import Executor
from autopart.runtime.execution.gloo_threads import let_compute_go_first
from autopart.runtime.execution.gradient_sum import GradientSum, Holders, holders_of
from autopart.runtime.execution.host_link import HostLink, host_link
from autopart.runtime.execution.messages import Program, write_messages
from autopart.runtime.execution.offload import HostStash
from autopart.runtime.execution.plan_match import Backend, check_can_run, place_on
from autopart.runtime.execution.rank_executor import RankPart, StepExecutor
from autopart.runtime.execution.stage import TorchStage, stage_parameters
from autopart.runtime.execution.torch_backend import TorchBackend, check_backwards
from autopart.runtime.execution.transfers import Transfers
from autopart.runtime.execution.treated_layers import (
    offloading,
    recomputing,
    selective,
    treat_layers,
)
from autopart.runtime.execution.watcher import Unwatched, Watcher
from autopart.runtime.execution.weight_gradients import split_backwards
from autopart.runtime.host_allocator import keep_freed_memory
from autopart.schedule import StageRanks


def make_executor(
    plan: Plan,
    programs: Sequence[StageProgram],
    *,
    device: torch.device,
    watcher: Watcher | None = None,
    backend: Backend = "autopart",
) -> StepExecutor:
    """This rank's executor; its stages' tensors are moved to `device`.

    `programs` are those of `split_stages` for the plan's stages, made on every rank from equal
    weights. Every rank of the default process group must call this: it makes process groups.
    Raises PlanError where the plan asks for what is not run, or not by this backend.
    """
    check_can_run(plan, backend)
    if backend == "torch":
        check_backwards(programs)
    holders = _holders(plan, programs)
    part = _part(plan, programs, holders, device, watcher)
    if backend == "torch":
        return TorchBackend(plan, part)
    program = _program(plan, distributed.get_rank(), device)
    return Executor(part, _torch_stages(plan, part), program)


def make_asynchronous_executor(
    plan: Plan,
    programs: Sequence[StageProgram],
    name: str,
    *,
    device: torch.device,
    watcher: Watcher | None = None,
) -> AsynchronousExecutor:
    """This rank's executor for the asynchronous schedule called `name`, as `make_executor`.

    Raises PlanError where the schedule cannot run on the plan's stages.
    """
    check_can_run(plan)
    way = way_of(plan, name)
    holders = _holders(plan, programs)
    check_no_shared(way, holders)
    part = _part(plan, programs, holders, device, watcher)
    together = _together([held.ranks for held in holders])
    return AsynchronousExecutor(part, _torch_stages(plan, part), way, stage_ranks(plan), together)


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
    part = _part(plan, programs, (), device, None, rank)
    return Executor(part, _torch_stages(plan, part), _program(plan, rank, device), transfers)


def _program(plan: Plan, rank: int, device: torch.device) -> Program:
    """Receives go first over gloo; over NCCL one order matches messages."""
    over_gloo = device.type == "cpu"
    return write_messages(schedule_of(plan), stage_ranks(plan), receives_first=over_gloo)[rank]


def _holders(plan: Plan, programs: Sequence[StageProgram]) -> tuple[Holders, ...]:
    return holders_of([program.parameters for program in programs], stage_ranks(plan))


def _together(groups: Sequence[Sequence[int]]) -> dict[int, set[int]]:
    """By rank all ranks that are in a group with it, or with one that is."""
    together: dict[int, set[int]] = {}
    for group in groups:
        joined = set(group).union(*(together.get(rank, ()) for rank in group))
        together |= dict.fromkeys(joined, joined)
    return together


def _part(
    plan: Plan,
    programs: Sequence[StageProgram],
    holders: Sequence[Holders],
    device: torch.device,
    watcher: Watcher | None,
    rank: int | None = None,
) -> RankPart:
    """The part of `rank`, by default this one, with what the plan says of its layers put into their
    graphs."""
    keep_freed_memory(device)
    rank, ranks = distributed.get_rank() if rank is None else rank, stage_ranks(plan)
    mine = {index: programs[index] for index, on in enumerate(ranks) if rank in on}
    hosts = _prepare(plan, mine, device)
    parameters = {n: p for program in mine.values() for n, p in stage_parameters(program).items()}
    part = RankPart(
        programs=mine,
        hosts=hosts,
        owned=_owned([program.parameters for program in programs], ranks, rank),
        sums=GradientSum(holders, parameters, rank),
        num_microbatches=plan.num_microbatches,
        device=device,
        watcher=watcher or Unwatched(),
    )
    let_compute_go_first()  # All process groups are there.
    return part


def _prepare(
    plan: Plan, programs: Mapping[int, StageProgram], device: torch.device
) -> dict[int, HostStash | None]:
    """Put what the plan says of a stage's layers and backwards into its graph; where each stage's
    offloaded layers keep their stash."""
    link, hosts = host_link(device), dict[int, HostStash | None]()
    halved = {action.stage for order in schedule_of(plan) for action in order if action.op == "W"}
    for index, program in programs.items():
        if program.autocast is not None and program.autocast.device_type != device.type:
            raise UsageError(
                f"the model was captured under autocast on {program.autocast.device_type}, which casts "
                f"other operations than on {device.type}; move the model there first"
            )
        place_on(program.module, device)
        if index in halved:
            split_backwards(program.module)
        hosts[index] = _treat(program, plan.stages[index], link)
    return hosts


def _torch_stages(plan: Plan, part: RankPart) -> dict[int, TorchStage]:
    group = distributed.new_group([distributed.get_rank()], use_local_synchronization=True)
    assert isinstance(group, distributed.ProcessGroup)
    return {
        index: TorchStage(
            program,
            index,
            len(plan.stages),
            plan.num_microbatches,
            part.device,
            group,
            part.hosts[index],
        )
        for index, program in part.programs.items()
    }


def _treat(program: StageProgram, stage: Stage, link: HostLink) -> HostStash | None:
    """Recompute and offload the layers that the plan's stage names; where offloaded ones are kept."""
    host = HostStash(link) if stage.offload else None
    treatments = dict.fromkeys(stage.recompute, recomputing)
    treatments |= dict.fromkeys(stage.selective, selective)
    if host is not None:
        treatments |= dict.fromkeys(stage.offload, offloading(host))
    treat_layers(program, treatments)
    return host


def _owned(
    names_of_stages: Sequence[Sequence[str]], ranks: StageRanks, rank: int
) -> tuple[str, ...]:
    """The parameters of which `rank` is the first to hold a copy."""
    first: dict[str, int] = {}
    for names, on in zip(names_of_stages, ranks, strict=True):
        for name in names:
            first[name] = min(first.get(name, min(on)), *on)
    return tuple(name for name, owner in first.items() if owner == rank)
