"""News of a search for a listener: each plan that is better than all before it."""

import contextvars
from collections.abc import Callable, Generator
from contextlib import contextmanager

Listener = Callable[[float], None]
"""Takes the seconds that the problem minimises, for a plan that was just found."""

_listener = contextvars.ContextVar[Listener | None]("listener", default=None)


def tell(seconds: float) -> None:
    """Tell the listener about a plan that was found."""
    listener = _listener.get()
    if listener is not None:
        listener(seconds)


@contextmanager
def told_to(listener: Listener) -> Generator[None]:
    """Tell a listener about the plans that searches inside find.

    Searches over several sizes and over fewer choices each tell their own plans, so the listener
    keeps the best.
    """
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)
