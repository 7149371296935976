"""Starts the ranks of a script as copies of one process, which has imported the framework.

Usage: python -m tests.support.readback.forked SCRIPT COUNT FOLDER. The imports take most of a short test, and are made
once. Each rank writes its words to FOLDER/rank<r>.txt. Exit code 1 means that a rank failed.
"""

import importlib
import os
import sys
import traceback
from pathlib import Path
from typing import Any, NoReturn

import torch.distributed as dist


def main(name: str, count: int, folder: Path) -> int:
    """Run the script's `main` on each rank, and return the number of ranks that failed."""
    script = importlib.import_module(f"tests.support.readback.{name}")
    script.preload()
    ranks: list[int] = []
    for rank in range(count):
        process = os.fork()
        if process == 0:
            _run(script, rank, folder)
        ranks.append(process)
    return sum(os.waitpid(process, 0)[1] != 0 for process in ranks)


def _run(script: Any, rank: int, folder: Path) -> NoReturn:
    """Be this rank, and end at once: a normal exit has aborted under load, in torch's threads."""
    said = os.open(folder / f"rank{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(said, 1)
    os.dup2(said, 2)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    code = 1
    try:
        script.main(folder)
        dist.barrier()  # a rank that ends early would break the others' connections
        code = 0
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])) > 0)
