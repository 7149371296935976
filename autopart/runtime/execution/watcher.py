"""Who is told what a rank is at."""

from typing import Protocol


class Watcher(Protocol):
    """Told what the rank is at, so that someone can say where it was when it died."""

    def working(self, on: str) -> None:
        """The rank computes."""
        ...

    def waiting(self, on: str, peer: int | None) -> None:
        """The rank waits for another one."""
        ...


class Unwatched:
    """A watcher for programs that have their own way of noticing a hang."""

    def working(self, on: str) -> None:
        pass

    def waiting(self, on: str, peer: int | None) -> None:
        pass
