"""A refusal whose reason stands in the profile's warnings points to them."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager

from autopart.errors import InfeasibleError
from autopart.records.profile import Profile


@contextmanager
def reasons_from(profiles: Sequence[Profile]) -> Generator[None]:
    """Add the profile's warning where a model has too few layers for the plan that was asked for.

    A part that cannot be captured is one layer, and the profile warns of it.
    """
    try:
        yield
    except InfeasibleError as error:
        about = (text for one in profiles for text in one.warnings if "layer" in text)
        warning = next(about, None)
        if not error.too_few_layers or warning is None:
            raise
        raise InfeasibleError(
            f"{error}; the profile warns why they are so few: {warning}"
        ) from None
