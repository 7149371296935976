"""The process that `run_local` starts for each rank: ``python -m autopart.runtime.execution.rank_process``.

What ends it stands in the job's store, where the launcher finds it, and in its own output.
"""

import os
import sys
import threading
from pathlib import Path


def main(plan_file: str, options: str, result_file: str) -> None:
    """Run one rank; rank 0 writes the result. The process ends at once: after a failure torch's threads
    may still wait for peers that are gone, and would keep it; after the last step the interpreter's own end
    under load has met threads of torch that were still there, and aborted."""
    threading.Thread(target=_end_with_launcher, name="autopart-launcher", daemon=True).start()
    # Seconds pass in these imports, in which the launcher may be killed.
    import msgspec

    from autopart.errors import AutopartError
    from autopart.files import encode, write_file
    from autopart.plan import load_plan
    from autopart.runtime.execution.rank import read_world, run_as_rank
    from autopart.runtime.execution.run_settings import RunSettings

    settings = msgspec.json.decode(options, type=RunSettings)
    try:
        result = run_as_rank(load_plan(Path(plan_file)), settings, read_world(os.environ))
    except AutopartError as error:
        sys.stderr.write(f"{error}\n")
        sys.stderr.flush()
        os._exit(1)
    except SystemExit:
        os._exit(1)
    if result is not None:
        write_file(Path(result_file), encode(result))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _end_with_launcher() -> None:
    """The launcher holds the other end of our standard input, and writes nothing to it."""
    while os.read(0, 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    main(*sys.argv[1:])
