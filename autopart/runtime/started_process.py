"""How a process ends that was started for one rank: with its starter, or at once when its deed is done.

Imported before anything slow, so that a process whose starter is killed meanwhile does not stay.
"""

import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import msgspec

from autopart.errors import AutopartError
from autopart.files import encode, write_file


def end_with_starter() -> None:
    """From now on, end this process when the one that started it is gone: that one holds the other end of
    our standard input, and writes nothing to it."""
    threading.Thread(target=_until_closed, name="autopart-starter", daemon=True).start()


def _until_closed() -> None:
    while os.read(0, 1):
        pass
    os._exit(1)


def end_with(deed: Callable[[], msgspec.Struct | None], result_file: str) -> NoReturn:
    """Write what `deed` gives, if anything, and end this process; with 1 and one line where it raises
    AutopartError.

    At once: after a failure torch's threads may still wait for peers that are gone, and would keep the process;
    after the last step the interpreter's own end under load has met threads of torch that were still there, and
    aborted.
    """
    try:
        result = deed()
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
