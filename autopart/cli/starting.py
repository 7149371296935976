"""How the ranks of a plan are started: by torchrun, or all on this machine."""

import os
from pathlib import Path

from autopart.errors import UsageError


def check_started(command: str, plan: Path, ranks: int, model: str, *, local: bool) -> None:
    """Raise UsageError, with what to type, unless torchrun started this process or all ranks are to be
    started here."""
    if local or {"RANK", "WORLD_SIZE"} <= set(os.environ):
        return
    raise UsageError(
        f"the plan has {ranks} ranks and torchrun started none of them; add --local to start all on "
        f"this machine, or type: torchrun --nproc-per-node {ranks} -m autopart {command} {plan} {model}"
    )
