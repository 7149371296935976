"""One rank of a run, in the environment that torchrun (or `run_local`) gives it."""

# pyright: reportPrivateImportUsage=false

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

import msgspec
import torch
from torch import distributed

from autopart.errors import AutopartError, PlanError, RunError, UsageError
from autopart.files import content_hash
from autopart.plan import Plan, num_ranks
from autopart.run_result import RunResult
from autopart.runtime.execution.board import SETTING_UP, Board, Guard, connect, describe
from autopart.runtime.execution.faults import Failure, LostPeer, as_error, failure_of
from autopart.runtime.execution.run_settings import RunSettings
from autopart.runtime.execution.training import Place, Report, train

CONNECT_SECONDS = 60.0
"""How long the ranks may take to find each other."""
_TRANSPORT_TIMEOUTS = 3 * SETTING_UP
"""Torch's own limit on a wait, in timeouts: a backstop behind the guard, who knows more."""
_BETTER_KNOWN = 0.05
"""Seconds that a rank which lost another waits for that one's own account, which was written
before it ended, if at all."""


@dataclass(frozen=True, slots=True)
class World:
    """The environment of one rank, as torchrun defines it."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    host: str
    port: int
    attempt: str


def is_rank(environment: Mapping[str, str]) -> bool:
    """Whether this process was started as one rank of several."""
    return "RANK" in environment and "WORLD_SIZE" in environment


def read_world(environment: Mapping[str, str]) -> World:
    """Raises UsageError where a variable is missing or is no number."""
    try:
        return World(
            rank=int(environment["RANK"]),
            size=int(environment["WORLD_SIZE"]),
            local_rank=int(environment.get("LOCAL_RANK", "0")),
            local_size=int(environment.get("LOCAL_WORLD_SIZE", environment["WORLD_SIZE"])),
            host=environment["MASTER_ADDR"],
            port=int(environment["MASTER_PORT"]),
            attempt=environment.get("TORCHELASTIC_RESTART_COUNT", "0"),
        )
    except KeyError as error:
        raise UsageError(
            f"environment variable {error.args[0]} is not set; start the ranks with torchrun"
        ) from None
    except ValueError as error:
        raise UsageError(f"an environment variable of torchrun is wrong: {error}") from None


def run_as_rank(
    plan: Plan, settings: RunSettings, world: World, report: Report | None = None
) -> RunResult | None:
    """Run the plan as one rank: the result on rank 0, None on the others.

    When a run fails, one rank raises the error that says why, and the others raise SystemExit(1),
    so that it is said once; a rank that hangs inside torch is ended by its guard. Raises PlanError
    where the plan is for another number of ranks.
    """
    if world.size != num_ranks(plan):
        _say_once(world, PlanError(_wrong_size(plan, world)))
    # Without torchrun rank 0 hosts the store, for as long as this one lives.
    store, _, _ = next(iter(distributed.rendezvous("env://", timeout=_seconds(CONNECT_SECONDS))))
    own = connect(world.host, world.port, world.attempt, CONNECT_SECONDS)
    board = Board(own, world.rank, world.size)
    board.working("starting up", SETTING_UP)
    guards = connect(world.host, world.port, world.attempt, CONNECT_SECONDS)
    guard = Guard(Board(guards, world.rank, world.size), settings.timeout, _last_words)
    guard.start()
    try:
        result = _run(plan, settings, world, board, store, report)
        # Until here the store is there: its host may be a rank that ends now.
        guard.stand_down()
    # Whatever ends this rank, the user's own code included, must be known to the others.
    except Exception as error:
        guard.leave_soon()
        failure = _account(error, world.rank, board)
        if failure is None:
            raise SystemExit(1) from error
        raise as_error(failure) from error
    distributed.destroy_process_group()
    return result


def _run(
    plan: Plan,
    settings: RunSettings,
    world: World,
    board: Board,
    store: distributed.Store,
    report: Report | None,
) -> RunResult | None:
    place = place_of(settings.device, world)
    board.waiting("meeting the other ranks", None)
    distributed.init_process_group(
        "cpu:gloo,cuda:nccl" if place.backend == "nccl" else "gloo",
        store=distributed.PrefixStore(f"autopart/{world.attempt}/group", store),
        rank=world.rank,
        world_size=world.size,
        timeout=_seconds(settings.timeout * _TRANSPORT_TIMEOUTS),
    )
    _agree(plan, settings)
    result = train(plan, settings, place, board, report if world.rank == 0 else None)
    board.done()
    distributed.barrier()
    return result


def _seconds(seconds: float) -> timedelta:
    return timedelta(seconds=seconds)


def place_of(device: str | None, world: World) -> Place:
    """Where this rank computes: on `device`, or on a GPU where each rank of the machine has one.

    Raises UsageError where a GPU is asked for and there is none for each rank.
    """
    here = torch.cuda.device_count() if torch.cuda.is_available() else 0
    kind = device or ("cuda" if here >= world.local_size else "cpu")
    if kind == "cpu":
        return Place(world.rank, world.size, torch.device("cpu"), "gloo")
    if kind != "cuda" or here < world.local_size:
        raise UsageError(
            f"device {kind}: {world.local_size} ranks run on this machine, which has {here} GPUs; "
            "use --device cpu"
        )
    own = torch.device("cuda", world.local_rank)
    torch.cuda.set_device(own)
    return Place(world.rank, world.size, own, "nccl")


def _agree(plan: Plan, settings: RunSettings) -> None:
    """Raise RunError where ranks were started with different plans, options or versions."""
    options = str(msgspec.structs.replace(settings, model=""))  # Paths may differ between hosts.
    mine = {"plan": content_hash(plan), "torch": str(torch.__version__), "options": options}
    all_of: list[dict[str, str]] = [mine] * distributed.get_world_size()
    distributed.all_gather_object(all_of, mine)
    for rank, theirs in enumerate(all_of):
        for what, value in theirs.items():
            if value != all_of[0][what]:
                raise RunError(
                    f"rank {rank} was started with another {what} than rank 0: {value} instead of "
                    f"{all_of[0][what]}"
                )


def _account(error: Exception, rank: int, board: Board) -> Failure | None:
    """This rank's failure, written where all can read it; None where another rank's stands there."""
    lost = _as_lost(error, board)
    try:
        mine = _guess(lost, rank, board) if lost else failure_of(error, rank, describe(board.last))
        written = mine if mine is None else board.claim(mine)
    except RuntimeError:  # The store is gone too.
        return Failure(rank=rank, message=f"rank {rank} lost the host of the run's store: {error}")
    return mine if written == mine else None


def _as_lost(error: Exception, board: Board) -> LostPeer | None:
    """The error as one of another rank's, which it is where torch raised it in a wait for others."""
    if isinstance(error, LostPeer):
        return error
    if isinstance(error, RuntimeError) and board.last and board.last.state == "waiting":
        return LostPeer(None, board.last.on, " ".join(str(error).split()))
    return None


def _guess(error: LostPeer, rank: int, board: Board) -> Failure | None:
    """What a message that did not come says of its sender, unless someone knows better."""
    until = time.monotonic() + _BETTER_KNOWN
    while time.monotonic() < until:
        if board.failure() is not None:
            return None
        time.sleep(_BETTER_KNOWN / 5)
    if error.peer is None:
        text = f"rank {rank} lost another rank in {error}"
        return Failure(rank=rank, message=text, is_guess=True)
    was = describe(board.notes()[error.peer])
    text = f"rank {error.peer} is gone; it was last on {was} (rank {rank} needed it for {error})"
    return Failure(rank=error.peer, message=text, is_guess=True)


def _say_once(world: World, error: AutopartError) -> None:
    if world.rank == 0:
        raise error
    raise SystemExit(1)


def _wrong_size(plan: Plan, world: World) -> str:
    return (
        f"the plan is for {num_ranks(plan)} ranks, but {world.size} were started; "
        f"start it with --nproc-per-node so that all nodes together have {num_ranks(plan)}"
    )


def _last_words(failure: Failure) -> None:
    """The thread that finds the run stuck cannot raise in a thread that waits inside torch."""
    sys.stderr.write(f"error: {failure.message}\n")
    sys.stderr.flush()
