"""One rank in a run, with the environment variables that torchrun or `run_local` sets."""

# pyright: reportPrivateImportUsage=false

import sys
import time
from dataclasses import replace
from datetime import timedelta

import msgspec
import torch
from torch import distributed

from autopart.errors import AutopartError, PlanError, RunError, UsageError
from autopart.records.files import content_hash
from autopart.records.plan import Plan, num_ranks
from autopart.records.plan_degrees import has_several_degrees, num_processes, rank_sizes
from autopart.records.run_result import RunResult
from autopart.runtime.engine.failures import Failure, LostRank, as_error, failure_of
from autopart.runtime.engine.run_settings import RunSettings
from autopart.runtime.job.meeting import SILENT_SECONDS, connect_to, find_store, leave_last, meet
from autopart.runtime.job.status_board import (
    SETTING_UP,
    Ending,
    Guard,
    StatusBoard,
    describe,
)
from autopart.runtime.job.tensor_ranks import (
    agree_in_group,
    lost_process,
    meet_rank_group,
    place_in_plan,
    world_of,
)
from autopart.runtime.job.training import Place, Report, train
from autopart.runtime.job.world import World
from autopart.stopping.signals import heard_interrupts
from autopart.text import counted

_TRANSPORT_TIMEOUTS = 3 * SETTING_UP
"""Torch's own limit on a wait, in timeouts. It is a backstop: the guard acts first, and knows
more."""
_ACCOUNT_SECONDS = 0.05
"""Seconds that a rank waits for a lost rank's own account. That rank writes it before it ends."""


def run_as_rank(
    plan: Plan,
    settings: RunSettings,
    world: World,
    report: Report | None = None,
    patience: float = 1.0,
) -> RunResult | None:
    """Run the plan as one rank. Returns the result on rank 0, None on other ranks.

    If a run fails, one rank raises the error with the cause, and other ranks raise SystemExit(1).
    So the cause is printed once: under torchrun the others wait until that rank has ended. The
    guard ends a rank that hangs inside torch. Raises PlanError if the plan has another number of
    ranks, RunError if ranks are missing after `patience` timeouts.
    """
    if world.size != num_processes(plan):
        _raise_once(world, PlanError(_wrong_size(plan, world)))
    with heard_interrupts() as interrupted:
        # Step 1: find the store. Without torchrun rank 0 hosts it, until `store` is deleted.
        seconds = settings.timeout * patience
        store = find_store(world, seconds)
        status_board = StatusBoard(connect_to(world), world.rank, world.size)
        status_board.working("starting up", SETTING_UP)
        # Step 2: start the guard, with its own connection: the rank's may block inside torch.
        guard = Guard(
            StatusBoard(connect_to(world), world.rank, world.size),
            settings.timeout,
            Ending(
                interrupted,
                _print_failure,
                world.speaks,
                SILENT_SECONDS if world.under_torchrun else None,
            ),
        )
        guard.start()
        # Step 3: run, and stop the guard while the store exists. Its host may be a rank that ends
        # now.
        try:
            meet(status_board, seconds)
            result = _run(plan, settings, world, status_board, store, report)
            guard.stand_down()
        except KeyboardInterrupt:
            guard.leave_soon()
            guard.claim_interrupt()
            raise
        # Any error, also one from the user's code, must reach the other ranks.
        except Exception as error:
            guard.leave_soon()
            failure = _account(error, world.rank, status_board)
            if failure is None:
                guard.leave_soon(SILENT_SECONDS)
                leave_last(world)
                raise SystemExit(1) from error
            told = as_error(failure)
            told.rank = world.rank
            raise told from error
        distributed.destroy_process_group()
        return result


def _run(
    plan: Plan,
    settings: RunSettings,
    world: World,
    status_board: StatusBoard,
    store: distributed.Store,
    report: Report | None,
) -> RunResult | None:
    at, place = place_in_plan(plan, world.rank), place_of(settings.device, world)
    degree, several = rank_sizes(plan)[at.group], has_several_degrees(plan)
    own = world_of(plan, world.rank)
    timeout = _seconds(settings.timeout * _TRANSPORT_TIMEOUTS)
    status_board.waiting("meeting the other ranks", None)
    store = distributed.PrefixStore(f"autopart/{world.attempt}", store)
    distributed.init_process_group(
        "cpu:gloo,cuda:nccl" if place.backend == "nccl" else "gloo",
        store=distributed.PrefixStore(own.name, store),
        rank=own.number,
        world_size=own.size,
        timeout=timeout,
    )
    _agree(plan, settings)
    place = replace(place, rank=at.group, num_ranks=num_ranks(plan), place=at.place)
    if degree > 1:
        group = meet_rank_group(store, plan, at, place.backend, timeout)
        agree_in_group(store, at, group, str(_said(plan, settings)), place.device)
        place = replace(place, tensor=group)
    try:
        result = train(plan, settings, place, status_board, report if world.rank == 0 else None)
    except LostRank as error:
        # Where all are in one world, the error names the process.
        if not several:
            error.other_rank = lost_process(error, at.place, degree)
        raise
    status_board.done()
    # No process leaves before all have come here: rank 0 may serve the store.
    distributed.barrier()
    if place.tensor is not None:
        place.tensor.all_reduce(torch.zeros(1, device=place.device), "sum")
    return result if world.rank == 0 else None


def _seconds(seconds: float) -> timedelta:
    return timedelta(seconds=seconds)


def place_of(device: str | None, world: World) -> Place:
    """This rank's device: `device` if given, else a GPU if each rank on this node has one, else the
    CPU.

    Raises UsageError if `device` is cuda and there are fewer GPUs than ranks on this node.
    """
    here = torch.cuda.device_count() if torch.cuda.is_available() else 0
    kind = device or ("cuda" if here >= world.local_size else "cpu")
    if kind == "cpu":
        return Place(world.rank, world.size, torch.device("cpu"), "gloo")
    if kind != "cuda" or here < world.local_size:
        raise UsageError(
            f"device {kind}: {counted(world.local_size, 'rank runs', 'ranks run')} on this machine, which has {counted(here, 'GPU')}; "
            "use --device cpu"
        )
    own = torch.device("cuda", world.local_rank)
    torch.cuda.set_device(own)
    return Place(world.rank, world.size, own, "nccl")


def _said(plan: Plan, settings: RunSettings) -> dict[str, str]:
    options = str(msgspec.structs.replace(settings, model=""))  # Paths may differ between hosts.
    return {"plan": content_hash(plan), "torch": str(torch.__version__), "options": options}


def _agree(plan: Plan, settings: RunSettings) -> None:
    """Raise RunError if ranks have different plans, options or torch versions. Collective."""
    mine = _said(plan, settings)
    all_of: list[dict[str, str]] = [mine] * distributed.get_world_size()
    distributed.all_gather_object(all_of, mine)
    for rank, theirs in enumerate(all_of):
        for kind, value in theirs.items():
            if value != all_of[0][kind]:
                raise RunError(
                    f"rank {rank} was started with another {kind} than rank 0: {value} instead of "
                    f"{all_of[0][kind]}"
                )


def _account(error: Exception, rank: int, status_board: StatusBoard) -> Failure | None:
    """Write this rank's failure to the status board and return it.

    Returns None if another rank's failure was written first.
    """
    lost = _as_lost(error, status_board)
    try:
        mine = (
            _guess(lost, rank, status_board)
            if lost
            else failure_of(error, rank, describe(status_board.last))
        )
        is_first = mine is not None and status_board.claim(mine)
    except RuntimeError:  # The store is gone too.
        return Failure(rank=rank, message=f"rank {rank} lost the host of the run's store: {error}")
    return mine if is_first else None


def _as_lost(error: Exception, status_board: StatusBoard) -> LostRank | None:
    """The error as the loss of another rank; None if it is this rank's own.

    Errors that torch raises during a wait for other ranks count as a loss. Torch puts an error of its
    own around one inside a backward, such as that of a tensor group's collective.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, LostRank):
            return cause
        cause = cause.__cause__
    if (
        isinstance(error, RuntimeError)
        and status_board.last
        and status_board.last.state == "waiting"
    ):
        return LostRank(None, status_board.last.on, " ".join(str(error).split()))
    return None


def _guess(error: LostRank, rank: int, status_board: StatusBoard) -> Failure | None:
    """A guess from a missing message: its sender failed. None if a rank has written a failure."""
    until = time.monotonic() + _ACCOUNT_SECONDS
    while time.monotonic() < until:
        if status_board.failure() is not None:
            return None
        time.sleep(_ACCOUNT_SECONDS / 5)
    if error.other_rank is None:
        text = f"rank {rank} lost another rank during {error}"
        return Failure(rank=rank, message=text, is_guess=True)
    was = describe(status_board.notes()[error.other_rank])
    text = (
        f"rank {error.other_rank} is gone; it was last on {was} (rank {rank} needed it for {error})"
    )
    return Failure(rank=error.other_rank, message=text, is_guess=True)


def _raise_once(world: World, error: AutopartError) -> None:
    if world.rank == 0:
        error.rank = 0
        raise error
    leave_last(world)
    raise SystemExit(1)


def _wrong_size(plan: Plan, world: World) -> str:
    return (
        f"the plan is for {counted(num_processes(plan), 'rank')}, but {counted(world.size, 'was', 'were')} started; "
        f"choose --nproc-per-node so that all nodes together have {num_processes(plan)}"
    )


def _print_failure(failure: Failure) -> None:
    """Print a failure that the guard found. It cannot raise in a thread that waits inside torch."""
    sys.stderr.write(f"error: {failure.message}\n")
    sys.stderr.flush()
