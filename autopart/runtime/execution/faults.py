"""What can go wrong on one rank, in words that name the rank and the action."""

import msgspec

from autopart import errors
from autopart.errors import AutopartError, RunError


class LostPeer(RunError):
    """A message to or from `peer` (None: one of several) cannot be carried: that rank is gone, or
    the way to it is."""

    def __init__(self, peer: int | None, waiting_for: str, cause: str) -> None:
        super().__init__(f"{waiting_for}: {cause}")
        self.peer = peer


class Failure(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Why a run stopped; the first rank to know writes it where all can read it."""

    rank: int
    """The rank at fault, as far as the writer can tell."""
    message: str
    kind: str = "RunError"
    """The class in errors.py that the message belongs to."""
    is_guess: bool = False
    """Whether it was seen from another rank, as a message that did not come."""


def failure_of(error: BaseException, rank: int, deed: str) -> Failure:
    """The failure that `error`, raised on `rank` while it was at `deed`, stands for.

    What the user can mend (a model file, a plan) is mostly the same on every rank, and keeps its
    words.
    """
    if isinstance(error, AutopartError):
        where = f" (on rank {rank})" if rank else ""
        return Failure(rank=rank, message=f"{error}{where}", kind=type(error).__name__)
    cause = _innermost(error)
    text = " ".join(str(cause).split())[:400]
    return Failure(
        rank=rank, message=f"rank {rank} raised {type(cause).__name__} on {deed}: {text}"
    )


def as_error(failure: Failure) -> AutopartError:
    """The failure as an error of the class that it was."""
    kind = getattr(errors, failure.kind, RunError)
    return kind(failure.message)


def _innermost(error: BaseException) -> BaseException:
    """Torch wraps what a stage raises in a page of shapes; the cause is what the user can read."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error
