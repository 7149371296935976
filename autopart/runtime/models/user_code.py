"""The boundary to the user's code: each error becomes one ModelError line with its place."""

import sysconfig
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from traceback import FrameSummary, extract_tb, walk_tb
from types import FrameType

import torch

from autopart.errors import AutopartError, ModelError

_LONGEST_MESSAGE = 400


@contextmanager
def user_code(call: str, advice: str = "") -> Generator[None]:
    """Run the user's code and turn each error into ``ModelError('{call} raised …')``.

    The message has the error's own type and text, and the innermost line in the user's code.
    """
    try:
        yield
    except AutopartError:
        raise
    # User code may raise any exception, and a script's main may raise SystemExit.
    except (Exception, SystemExit) as error:
        place = error_place(error)
        text = f"{call} raised {describe_error(error)}{f' ({place})' if place else ''}"
        raise ModelError(f"{text}; {advice}" if advice else text) from error


def describe_error(error: BaseException) -> str:
    """Return an exception's type and message on one line."""
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    message = " ".join(text.split())
    if len(message) > _LONGEST_MESSAGE:
        message = message[:_LONGEST_MESSAGE] + " …"
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def error_place(error: BaseException) -> str | None:
    """Return `file:line` of the innermost frame in the user's own code.

    If there is none, take the innermost frame in a library that the user called (transformers).
    Frames of torch and of autopart's runtime never count.
    """
    if isinstance(error, SyntaxError) and error.filename:
        return f"{shown_path(error.filename)}:{error.lineno}"
    frames = [frame for frame in extract_tb(error.__traceback__) if _is_others(frame.filename)]
    own = [frame for frame in frames if not _is_installed(frame)]
    innermost = (own or frames)[-1:]
    return f"{shown_path(innermost[0].filename)}:{innermost[0].lineno}" if innermost else None


def user_frames(error: BaseException) -> list[tuple[FrameType, int]]:
    """Return the frames of an error's traceback with their lines, without torch's and autopart's."""
    walked = walk_tb(error.__traceback__)
    return [(f, line) for f, line in walked if _is_others(f.f_code.co_filename)]


def shown_path(filename: str) -> str:
    """Return a path as the user would type it: relative below the working directory."""
    path = Path(filename)
    below = path.is_relative_to(Path.cwd())
    return str(path.relative_to(Path.cwd())) if below else str(path)


def _is_others(filename: str) -> bool:
    if filename.startswith("<"):
        return False
    mine = (Path(__file__).parents[1], Path(torch.__file__).parent)
    return not any(Path(filename).is_relative_to(folder) for folder in mine)


def _is_installed(frame: FrameSummary) -> bool:
    paths = sysconfig.get_paths()
    installed = (paths["stdlib"], paths["purelib"], paths["platlib"])
    return any(Path(frame.filename).is_relative_to(folder) for folder in installed)
