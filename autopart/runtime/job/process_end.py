"""The end of a rank's process: together with the process that started it, or right after its work.

Import this module first, before slow ones. Then a process also ends if its starter is killed while
the process still imports.
"""

import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import msgspec

from autopart.errors import AutopartError
from autopart.records.files import encode, write_file


def end_with_starter() -> None:
    """From now on, end this process when its starter is gone.

    The starter has the other end of our standard input and never writes to it. So a read returns
    only when the starter is gone.
    """
    threading.Thread(target=_until_closed, name="autopart-starter", daemon=True).start()


def _until_closed() -> None:
    while os.read(0, 1):
        pass
    os._exit(1)


def end_with(main: Callable[[], msgspec.Struct | None], result_file: str) -> NoReturn:
    """Run `main`, write its result to `result_file` if it has one, and end this process at once.

    If `main` raises AutopartError, write one line to stderr and end with exit code 1.

    The process ends with ``os._exit`` for two reasons. After a failure torch's threads may wait for
    peers that are gone, and would keep the process alive. After success the interpreter's normal
    exit has aborted under load, because torch's threads were still running.
    """
    try:
        result = main()
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
