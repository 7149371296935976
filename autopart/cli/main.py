"""The command line: each command reads files, makes one public call, writes and prints.

Exit codes: 0 success, 1 an error that the user can mend, 2 wrong usage, 3 no plan exists,
4 the export target cannot express the plan, 5 no plan was found in the time.
129 stopped by SIGHUP, 130 stopped from the keyboard, 141 stdout's reader is gone, 143 stopped by SIGTERM.

Imports wait until a command runs, so that an early Ctrl-C ends in one line too.
"""

import os
import sys
import time
from collections.abc import Sequence

from autopart.cli.streams import READER_GONE, OutputLost, open_streams
from autopart.errors import AutopartError, FileError
from autopart.stopping.signals import Stopped, ending_signals
from autopart.text import shortened, visible

INTERRUPTED = 130
"""The exit code that a shell gives a program stopped from the keyboard (128 + SIGINT)."""

SILENT_SECONDS = 60.0
"""Seconds that a silent rank waits for its end, so that another rank can tell the error."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command line, `sys.argv` by default, and exit with its code."""
    try:
        open_streams()
        code = exit_code(arguments)
        sys.stdout.flush()
    except OutputLost as lost:
        code = _told(lost)
    except KeyboardInterrupt:
        code = _interrupted()
    sys.exit(code)


def exit_code(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code; errors are one line on stderr."""
    try:
        # torchrun stops its ranks with SIGTERM. They have nothing to clean up, and may not delay it.
        if _is_rank():
            return _run(arguments)
        with ending_signals():
            return _run(arguments)
    except AutopartError as error:
        return _told(error)
    except Stopped as stopped:
        return _complain(str(stopped), 128 + stopped.number)
    except MemoryError:
        return _complain("memory ran out; free some, raise the limit, or ask for less", 1)
    except KeyboardInterrupt:
        return _interrupted()


def _run(arguments: Sequence[str] | None) -> int:
    try:
        os.getcwd()
    except OSError:
        raise FileError("the working directory is gone; change to a folder that exists") from None
    from autopart.cli.application import run_application

    return run_application(sys.argv[1:] if arguments is None else list(arguments))


def _told(error: AutopartError) -> int:
    """Tell an error, unless another process tells it, and return its exit code."""
    if isinstance(error, OutputLost) and error.exit_code == READER_GONE:
        return READER_GONE
    if error.rank is None and not _speaks():
        # torchrun ends all ranks as soon as one has ended. So the silent ones end last.
        time.sleep(SILENT_SECONDS)
        return error.exit_code
    return _complain(str(error), error.exit_code)


def _interrupted() -> int:
    """Tell an interrupt, which torchrun passes on to all ranks, once per node."""
    return _complain("stopped from the keyboard", INTERRUPTED) if _speaks() else INTERRUPTED


def _is_rank() -> bool:
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def _speaks() -> bool:
    """Whether this process tells errors that all ranks of a node meet alike: the first one does."""
    return "TORCHELASTIC_RUN_ID" not in os.environ or os.environ.get("LOCAL_RANK", "0") == "0"


def _complain(message: str, code: int) -> int:
    """Write a message on one line of stderr, without the line breaks that it may contain."""
    line = " ".join(part.strip() for part in message.splitlines() if part.strip())
    sys.stderr.write(f"error: {shortened(visible(line))}\n")
    return code
