"""Failures of one rank, in messages that name the rank and its action."""

import msgspec

from autopart import errors
from autopart.errors import AutopartError, RunError


class LostRank(RunError):
    """A message to or from `other_rank` failed, because the rank or its connection is gone.

    `other_rank` is None if it may be any of several ranks.
    """

    def __init__(self, other_rank: int | None, waiting_for: str, cause: str) -> None:
        super().__init__(f"{waiting_for}: {cause}")
        self.other_rank = other_rank


class Failure(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The cause of a stopped run. The first rank that knows it writes it to the job's store."""

    rank: int
    """The rank that failed, as far as the writer knows."""
    message: str
    kind: str = "RunError"
    """Name of the error class in errors.py."""
    is_guess: bool = False
    """Whether another rank concluded the failure from a missing message."""


def failure_of(error: BaseException, rank: int, activity: str) -> Failure:
    """The failure for an `error` that `rank` raised during `activity`.

    Errors that the user can fix, such as a wrong plan, mostly occur on every rank. They keep their
    message.
    """
    if isinstance(error, AutopartError):
        where = f" (on rank {rank})" if rank else ""
        return Failure(rank=rank, message=f"{error}{where}", kind=type(error).__name__)
    cause = _innermost(error)
    text = " ".join(str(cause).split())[:400]
    return Failure(
        rank=rank, message=f"rank {rank} raised {type(cause).__name__} on {activity}: {text}"
    )


def as_error(failure: Failure) -> AutopartError:
    """The failure as an exception of its original class."""
    kind = getattr(errors, failure.kind, RunError)
    return kind(failure.message)


def _innermost(error: BaseException) -> BaseException:
    """The original cause. Torch wraps a stage's error in a long report about shapes."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error
