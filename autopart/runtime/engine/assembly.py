"""Builds one rank's executor from a plan and the programs of its stages."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal, cast

import torch
from torch import distributed

from autopart.cost.stage_syncs import RUN_BUCKET_BYTES
from autopart.records.plan import Plan, schedule_of, stage_ranks
from autopart.runtime.capture.call_outputs import calls_opaque_code
from autopart.runtime.capture.stage_modules import StageProgram
from autopart.runtime.engine.asynchronous import AsynchronousExecutor
from autopart.runtime.engine.asynchronous_rules import check_no_shared, rules_of
from autopart.runtime.engine.executor import Executor
from autopart.runtime.engine.gloo_threads import let_compute_go_first
from autopart.runtime.engine.group_part import NO_GROUPS, GroupPart
from autopart.runtime.engine.lending import moves_of_rank, transfers_of_moves
from autopart.runtime.engine.plan_match import Backend, check_can_run
from autopart.runtime.engine.prepared_stages import prepare_stages
from autopart.runtime.engine.rank_executor import RankPart, StepExecutor
from autopart.runtime.engine.resharded_transfers import ReshardedTransfers
from autopart.runtime.engine.sharded_state import ShardedState
from autopart.runtime.engine.stage import TorchStage, stage_parameters
from autopart.runtime.engine.torch_backend import TorchBackend, check_backwards
from autopart.runtime.engine.transfers import BETWEEN_RANKS, Transfers, Transport
from autopart.runtime.host_allocator import keep_freed_memory
from autopart.runtime.measuring.watcher import Unwatched, Watcher
from autopart.runtime.update.gradient_sum import (
    GradientSum,
    Holders,
    NamedParameters,
    holders_of,
)
from autopart.runtime.update.overlapped_sum import OverlappedSum, StageCopies
from autopart.runtime.update.unequal_ties import UnequalTies
from autopart.schedules.actions import StageRanks
from autopart.schedules.messages import Program, write_messages


def make_executor(
    plan: Plan,
    programs: Sequence[StageProgram],
    *,
    device: torch.device,
    watcher: Watcher | None = None,
    backend: Backend = "autopart",
    sync: Literal["end", "overlap"] | None = None,
    group: GroupPart | None = None,
) -> StepExecutor:
    """This rank's executor for the plan's own schedule.

    `programs` come from `split_stages` for all the plan's stages, with equal weights on every rank.
    This rank's stages are moved to `device`. `watcher` is told about every action. `sync` says whether
    gradient sums run beside last backwards; None means as the plan was solved. With a tensor degree
    the programs are local, and `group` is this process's part. Collective: all ranks in the default
    process group call this, because it creates process groups.

    Raises PlanError if the plan, or this backend, cannot be run.
    """
    check_can_run(plan, backend)
    if backend == "torch":
        check_backwards(programs)
    holders, group = _holders(plan, programs), group or NO_GROUPS
    part = _part(plan, programs, holders, device, watcher, group=group)
    if backend == "torch":
        return TorchBackend(plan, part)
    if (sync or plan.training.sync) == "overlap":
        part = replace(part, sums=_overlapped(plan, programs, part))
        let_compute_go_first()
    world, transport = group.world, cast(Transport, BETWEEN_RANKS)
    if world is not None:
        transport = ReshardedTransfers(programs, world.cuts, world.processes, world.place)
    return _executor(plan, part, _own_rank(group), transport)


def make_asynchronous_executor(
    plan: Plan,
    programs: Sequence[StageProgram],
    name: str,
    *,
    device: torch.device,
    watcher: Watcher | None = None,
) -> AsynchronousExecutor:
    """This rank's executor for the asynchronous schedule called `name`.

    All else is as in `make_executor`. Raises PlanError if the schedule cannot run on the plan's
    stages.
    """
    check_can_run(plan)
    rules = rules_of(plan, name)
    holders = _holders(plan, programs)
    check_no_shared(rules, [program.parameters for program in programs], stage_ranks(plan))
    part = _part(plan, programs, holders, device, watcher)
    together = _together([group.ranks for group in holders])
    return AsynchronousExecutor(part, _torch_stages(plan, part), rules, stage_ranks(plan), together)


def make_lone_executor(
    plan: Plan,
    rank: int,
    programs: Sequence[StageProgram],
    transfers: Transfers,
    *,
    device: torch.device,
    partner: Transport,
    group: GroupPart = NO_GROUPS,
) -> Executor:
    """The executor for `rank` alone, in a process group with this process only.

    `transfers` replace the other ranks, and `partner` the one that stash is lent to or borrowed
    from. No gradients are summed over ranks. Raises PlanError as `make_executor` does.
    """
    check_can_run(plan)
    part = _part(plan, programs, (), device, None, rank, group)
    return _executor(plan, part, rank, transfers, partner)


def _executor(
    plan: Plan, part: RankPart, rank: int, transport: Transport, partner: Transport | None = None
) -> Executor:
    """The executor for a rank's part in the plan's orders; without `partner` it meets the real one."""
    schedule, ranks, device = schedule_of(plan), stage_ranks(plan), part.device
    stages, program = _torch_stages(plan, part), _program(plan, rank, device)
    between = partner or transfers_of_moves(schedule, ranks, rank, device)
    moves = moves_of_rank(schedule, ranks, rank, stages, between)
    return Executor(part, stages, program, transport, moves)


def _program(plan: Plan, rank: int, device: torch.device) -> Program:
    """The rank's actions and messages. Over gloo receives go first (see docs/engine.md); over NCCL
    both ranks must post their messages in one order."""
    over_gloo = device.type == "cpu"
    return write_messages(schedule_of(plan), stage_ranks(plan), receives_first=over_gloo)[rank]


def _overlapped(plan: Plan, programs: Sequence[StageProgram], part: RankPart) -> OverlappedSum:
    """The part's gradient sums, with those of each stage's replicas beside its last backward."""
    world = part.group.world
    copies = [
        StageCopies(stage, program.parameters, on)
        for stage, (program, ranks) in enumerate(zip(programs, stage_ranks(plan), strict=True))
        for on in ([ranks] if world is None else world.places(ranks))
    ]
    size = plan.training.bucket_bytes or RUN_BUCKET_BYTES
    return OverlappedSum(part.sums, _parameters(part.programs, part.state), copies, size)


def _holders(plan: Plan, programs: Sequence[StageProgram]) -> tuple[Holders, ...]:
    return holders_of([program.parameters for program in programs], stage_ranks(plan))


def _together(groups: Sequence[Sequence[int]]) -> dict[int, set[int]]:
    """For each rank, the ranks connected with it through groups, directly or through others."""
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
    group: GroupPart = NO_GROUPS,
) -> RankPart:
    """The part that belongs to `rank` (default: this rank), with the plan's policies applied."""
    keep_freed_memory(device)
    rank, ranks = _own_rank(group) if rank is None else rank, stage_ranks(plan)
    # Policies replace graphs by calls, so this must come first.
    use_varies = any(calls_opaque_code(program.module) for program in programs)
    mine = {index: programs[index] for index, of_stage in enumerate(ranks) if rank in of_stage}
    hosts = prepare_stages(plan, mine, device)
    state = None
    if group.data is not None:
        state = ShardedState(mine, programs, group.data, use_varies=use_varies)
    parameters = _parameters(mine, state)
    part = RankPart(
        programs=mine,
        hosts=hosts,
        owned=_owned([program.parameters for program in programs], ranks, rank),
        sums=_sums(holders, parameters, rank, group, use_varies=use_varies),
        num_microbatches=plan.num_microbatches,
        device=device,
        watcher=watcher or Unwatched(),
        group=group,
        state=state,
        ties=_ties(holders, parameters, group),
    )
    let_compute_go_first()  # All process groups exist now, and with them gloo's threads.
    return part


def _parameters(
    programs: Mapping[int, StageProgram], state: ShardedState | None
) -> NamedParameters:
    """The parameters that the rank's optimizer steps, by name."""
    if state is not None:
        return state.parameters
    return {n: p for program in programs.values() for n, p in stage_parameters(program).items()}


def _own_rank(group: GroupPart) -> int:
    """This process's rank in the plan."""
    return distributed.get_rank() if group.world is None else group.world.rank


def _sums(
    holders: Sequence[Holders],
    parameters: NamedParameters,
    rank: int,
    group: GroupPart,
    *,
    use_varies: bool,
) -> GradientSum:
    if group.world is not None:
        holders, rank = group.world.equal_holders(holders), group.world.process
    return GradientSum(holders, parameters, rank, use_varies=use_varies)


def _ties(
    holders: Sequence[Holders], parameters: NamedParameters, group: GroupPart
) -> UnequalTies | None:
    if group.world is None:
        return None
    unequal = group.world.unequal_holders(holders)
    return UnequalTies(unequal, parameters, group.shards, group.world.process)


def _torch_stages(plan: Plan, part: RankPart) -> dict[int, TorchStage]:
    group = distributed.new_group([distributed.get_rank()], use_local_synchronization=True)
    assert isinstance(group, distributed.ProcessGroup)
    stages = {
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
    for index, stage in stages.items():
        stage.held = plan.stages[index].held
        stage.use_varies = part.sums.use_varies
        if part.state is not None:
            stage.state = part.state.stages[index]
    return stages


def _owned(
    names_of_stages: Sequence[Sequence[str]], ranks: StageRanks, rank: int
) -> tuple[str, ...]:
    """Names of parameters for which `rank` is the lowest holder."""
    first: dict[str, int] = {}
    for names, of_stage in zip(names_of_stages, ranks, strict=True):
        for name in names:
            first[name] = min(first.get(name, min(of_stage)), *of_stage)
    return tuple(name for name, owner in first.items() if owner == rank)
