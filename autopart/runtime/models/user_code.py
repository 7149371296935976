"""The boundary to the user's own code: what it raises becomes one ModelError line with its place."""

import sysconfig
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from traceback import FrameSummary, extract_tb

import torch

from autopart.errors import AutopartError, ModelError

_LONGEST_MESSAGE = 400


@contextmanager
def user_code(deed: str, advice: str = "") -> Generator[None]:
    """Run the user's code; whatever it raises becomes ``ModelError('{deed} raised …')``.

    The message carries the error's own type and text, and the innermost line of the user's code.
    """
    try:
        yield
    except AutopartError:
        raise
    # Any exception may come out of code that is not ours, and SystemExit out of a script's main.
    except (Exception, SystemExit) as error:
        place = error_place(error)
        text = f"{deed} raised {describe_error(error)}{f' ({place})' if place else ''}"
        raise ModelError(f"{text}; {advice}" if advice else text) from error


def describe_error(error: BaseException) -> str:
    """An exception's type and message on one line."""
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    message = " ".join(text.split())
    if len(message) > _LONGEST_MESSAGE:
        message = message[:_LONGEST_MESSAGE] + " …"
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def error_place(error: BaseException) -> str | None:
    """`file:line` of the innermost frame of the user's own code, or failing that of a library
    that the user called (transformers), which torch and autopart's runtime are not."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{_short(error.filename)}:{error.lineno}"
    frames = [frame for frame in extract_tb(error.__traceback__) if _is_file_of_others(frame)]
    own = [frame for frame in frames if not _is_installed(frame)]
    innermost = (own or frames)[-1:]
    return f"{_short(innermost[0].filename)}:{innermost[0].lineno}" if innermost else None


def _is_file_of_others(frame: FrameSummary) -> bool:
    if frame.filename.startswith("<"):
        return False
    mine = (Path(__file__).parent, Path(torch.__file__).parent)
    return not any(Path(frame.filename).is_relative_to(folder) for folder in mine)


def _is_installed(frame: FrameSummary) -> bool:
    paths = sysconfig.get_paths()
    installed = (paths["stdlib"], paths["purelib"], paths["platlib"])
    return any(Path(frame.filename).is_relative_to(folder) for folder in installed)


def _short(filename: str) -> str:
    """A path as the user would type it: relative where it lies below the working directory."""
    path = Path(filename)
    below = path.is_relative_to(Path.cwd())
    return str(path.relative_to(Path.cwd())) if below else str(path)
