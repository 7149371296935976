"""Groups by the names under which graphs expect them, while a block runs."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Generic, TypeVar

from autopart.errors import RunError

T = TypeVar("T")


class Registry(Generic[T]):
    """Groups of one kind by name."""

    def __init__(self) -> None:
        self._groups: dict[str, T] = {}

    def named(self, name: str) -> T:
        """Return the registered group. Raises RunError where there is none."""
        if name not in self._groups:
            raise RunError(
                f"no group of ranks is registered as '{name}'; register it before the run"
            )
        return self._groups[name]

    @contextmanager
    def registered(self, name: str, group: T) -> Generator[None]:
        """In this block, graphs that name `name` exchange through `group`."""
        before = self._groups.get(name)
        self._groups[name] = group
        try:
            yield
        finally:
            del self._groups[name]
            if before is not None:
                self._groups[name] = before
