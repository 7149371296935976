"""The process that `run_local` starts per rank: ``python -m autopart.runtime.job.rank_process``.

If it fails, it writes the cause to the job's store, where the launcher reads it, and to its output.
"""

import os
import sys
from pathlib import Path

from autopart.runtime.job.process_end import end_with, end_with_starter


def main(plan_file: str, options: str, result_file: str) -> None:
    """Run one rank; rank 0 writes the result to `result_file`."""
    end_with_starter()  # Before the slow imports below.
    import msgspec

    from autopart.records.plan import load_plan
    from autopart.runtime.engine.run_settings import RunSettings
    from autopart.runtime.job.rank import run_as_rank
    from autopart.runtime.job.status_board import SETTING_UP
    from autopart.runtime.job.world import read_world

    settings = msgspec.json.decode(options, type=RunSettings)
    end_with(
        lambda: run_as_rank(
            load_plan(Path(plan_file)), settings, read_world(os.environ), patience=SETTING_UP
        ),
        result_file,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
