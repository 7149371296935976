"""The end of a rank's process under a real framework."""

import os
import sys
from typing import NoReturn

import torch.distributed as dist


def end_rank() -> NoReturn:
    """Wait for the other ranks, and end this process at once, with exit code 0.

    The interpreter's normal exit has aborted under load, because torch's threads were still running.
    """
    dist.barrier()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
