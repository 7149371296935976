"""A check that the plan's ranks are started: by torchrun, or all on this machine."""

import os
import shlex
from pathlib import Path

from autopart.errors import UsageError
from autopart.runtime.job.world import is_rank, read_world
from autopart.text import counted


def check_started(command: str, plan: Path, ranks: int, model: str, *, local: bool) -> None:
    """Raise UsageError unless torchrun started this process, or `local` starts all ranks here.

    The message contains the torchrun command to type. Variables of torchrun that are impossible are
    refused too.
    """
    if is_rank(os.environ):
        read_world(os.environ)
        return
    if local:
        return
    words = shlex.join(["autopart", command, str(plan), model])
    raise UsageError(
        f"the plan has {counted(ranks, 'rank')} and torchrun started none of them; add --local to start all on "
        f"this machine, or type: torchrun --nproc-per-node {ranks} -m {words}"
    )
