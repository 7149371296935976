"""Packages that only some users have."""

from collections.abc import Generator
from contextlib import contextmanager

from autopart.errors import UsageError


@contextmanager
def needed(package: str) -> Generator[None]:
    """Imports of `package` stand inside. Raises UsageError where it is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        missing = (error.name or package).partition(".")[0]
        raise UsageError(
            f"{missing} is not installed; install it with pip install 'autopart[trainers]'"
        ) from error
