"""Process that `probe_cluster` starts for each rank.

It runs as ``python -m autopart.runtime.probing.rank_process``.
"""

import os
import sys

from autopart.runtime.job.process_end import end_with, end_with_starter


def main(options: str, result_file: str) -> None:
    """Measure as one rank. Rank 0 writes the result."""
    end_with_starter()
    import msgspec

    from autopart.runtime.job.world import read_world
    from autopart.runtime.probing.probe import probe_as_rank
    from autopart.runtime.probing.ranks import ProbeSettings

    asked = msgspec.json.decode(options, type=ProbeSettings)
    end_with(lambda: probe_as_rank(read_world(os.environ), asked), result_file)


if __name__ == "__main__":
    main(*sys.argv[1:])
