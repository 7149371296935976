"""The process that `probe_cluster` starts for each rank: ``python -m autopart.runtime.probing.rank_process``."""

import os
import sys
import threading
from pathlib import Path


def main(options: str, result_file: str) -> None:
    """Measure as one rank; rank 0 writes the result. The process ends at once, since threads of torch
    may still wait for ranks that are gone."""
    threading.Thread(target=_end_with_starter, name="autopart-starter", daemon=True).start()
    import msgspec

    from autopart.errors import AutopartError
    from autopart.files import encode, write_file
    from autopart.runtime.execution.rank import read_world
    from autopart.runtime.probing.probe import probe_as_rank

    device, threads, timeout = msgspec.json.decode(options, type=tuple[str | None, int, float])
    try:
        result = probe_as_rank(read_world(os.environ), device, threads, timeout)
    except AutopartError as error:
        sys.stderr.write(f"{error}\n")
        sys.stderr.flush()
        os._exit(1)
    if result is not None:
        write_file(Path(result_file), encode(result))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _end_with_starter() -> None:
    """The starter holds the other end of our standard input, and writes nothing to it."""
    while os.read(0, 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    main(*sys.argv[1:])
