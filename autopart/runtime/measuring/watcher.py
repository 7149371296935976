"""Listeners for the rank's present work."""

from typing import Protocol


class Watcher(Protocol):
    """Learns the rank's present work, so that a failure report can name it."""

    def working(self, on: str) -> None:
        """The rank computes action `on`."""
        ...

    def waiting(self, on: str, other_rank: int | None) -> None:
        """The rank waits for `other_rank`, or for any rank where it is None, with action `on`."""
        ...


class Unwatched:
    """A watcher that ignores everything, for programs that detect a hang themselves."""

    def working(self, on: str) -> None:
        pass

    def waiting(self, on: str, other_rank: int | None) -> None:
        pass
