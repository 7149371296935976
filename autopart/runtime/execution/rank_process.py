"""The process that `run_local` starts for each rank: ``python -m autopart.runtime.execution.rank_process``.

What ends it stands in the job's store, where the launcher finds it, and in its own output.
"""

import os
import sys
from pathlib import Path

from autopart.runtime.started_process import end_with, end_with_starter


def main(plan_file: str, options: str, result_file: str) -> None:
    """Run one rank; rank 0 writes the result."""
    end_with_starter()
    import msgspec

    from autopart.plan import load_plan
    from autopart.runtime.execution.rank import read_world, run_as_rank
    from autopart.runtime.execution.run_settings import RunSettings

    settings = msgspec.json.decode(options, type=RunSettings)
    end_with(
        lambda: run_as_rank(load_plan(Path(plan_file)), settings, read_world(os.environ)),
        result_file,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
