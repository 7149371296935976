"""A rank's place among all ranks, as torchrun's environment variables define it."""

from collections.abc import Mapping
from dataclasses import dataclass

from autopart.errors import UsageError

_LAST_PORT = 65535


@dataclass(frozen=True, slots=True)
class World:
    """One rank's environment, as torchrun defines it."""

    rank: int
    size: int
    """Ranks on all nodes together."""
    local_rank: int
    local_size: int
    """Ranks on this node."""
    host: str
    port: int
    """Port where `host` serves the job's key-value store."""
    attempt: str
    """Number of restarts so far; it keeps the notes of each attempt apart."""
    hosts_store: bool
    """Whether this rank serves the store itself. torchrun's agent serves it elsewise."""
    under_torchrun: bool
    """Whether torchrun watches this rank. It kills all ranks as soon as one has failed."""

    @property
    def speaks(self) -> bool:
        """Whether this rank tells errors that all ranks of its node meet alike."""
        return self.local_rank == 0 or not self.under_torchrun


def is_rank(environment: Mapping[str, str]) -> bool:
    """Whether torchrun, or `run_local`, started this process as a rank."""
    return "RANK" in environment and "WORLD_SIZE" in environment


def read_world(environment: Mapping[str, str]) -> World:
    """Read torchrun's variables; raises UsageError if one is missing, no number or impossible."""
    try:
        rank, size = int(environment["RANK"]), int(environment["WORLD_SIZE"])
        served = environment.get("TORCHELASTIC_USE_AGENT_STORE") == str(True)
        world = World(
            rank=rank,
            size=size,
            local_rank=int(environment.get("LOCAL_RANK", "0")),
            local_size=int(environment.get("LOCAL_WORLD_SIZE", environment["WORLD_SIZE"])),
            host=environment["MASTER_ADDR"],
            port=int(environment["MASTER_PORT"]),
            attempt=environment.get("TORCHELASTIC_RESTART_COUNT", "0"),
            hosts_store=rank == 0 and not served,
            under_torchrun="TORCHELASTIC_RUN_ID" in environment,
        )
    except KeyError as error:
        raise UsageError(
            f"environment variable {error.args[0]} is not set; start the ranks with torchrun"
        ) from None
    except ValueError as error:
        raise UsageError(f"an environment variable of torchrun is wrong: {error}") from None
    _check(world)
    return world


def _check(world: World) -> None:
    for name, value, size_name, size in (
        ("RANK", world.rank, "WORLD_SIZE", world.size),
        ("LOCAL_RANK", world.local_rank, "LOCAL_WORLD_SIZE", world.local_size),
    ):
        if not 0 <= value < size:
            raise UsageError(
                f"environment variable {name}={value} is not below {size_name}={size}; start the "
                "ranks with torchrun, or count them from 0"
            )
    if world.local_size > world.size:
        raise UsageError(
            f"environment variable LOCAL_WORLD_SIZE={world.local_size} is above "
            f"WORLD_SIZE={world.size}; start the ranks with torchrun"
        )
    if not 0 < world.port <= _LAST_PORT:
        raise UsageError(
            f"environment variable MASTER_PORT={world.port} is no port; name one from 1 to {_LAST_PORT}"
        )
