"""How uneven the loads of expert ranks are, as given or measured.

The load of an expert rank is its number of entries (token, expert) in one microbatch of one layer. The imbalance is the
load of the fullest rank divided by the mean load: 1 where all are equal, e where one rank of e gets every entry.
"""

from collections.abc import Sequence
from typing import Annotated, Literal, NamedTuple

import msgspec

from autopart.errors import AutopartError, ProfileError
from autopart.records.rank_group import MOST_DEGREE, Degree

Imbalance = Annotated[float, msgspec.Meta(ge=1.0, le=MOST_DEGREE)]


MEASURED = "measured"
"""The word for the imbalance that a profile has."""


class LayerLoad(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The imbalance of one layer's expert ranks, over one or more microbatches."""

    layer: str
    """The layer's name."""
    expert: Degree
    """The expert degree."""
    imbalance: Imbalance
    """The imbalance, as a mean over the microbatches. Seconds follow it."""
    largest: Imbalance
    """The largest imbalance of a microbatch. Bytes follow it."""


def check_load(load: LayerLoad, where: str) -> None:
    """Raise ProfileError where the fullest rank has less than the mean of a microbatch, or more than all entries."""
    if not load.imbalance <= load.largest <= load.expert:
        raise ProfileError(
            f"{where}: layer '{load.layer}' has an imbalance of {load.imbalance:g}, at most {load.largest:g}; with expert "
            f"degree {load.expert} both are from 1 to {load.expert}, the largest last"
        )


AssumedLoad = Imbalance | Literal["measured"] | tuple[LayerLoad, ...]
"""The imbalance that a problem assumes: one for all layers, the profile's measured ones, or those of a list."""


class Uneven(NamedTuple):
    """The imbalance of one layer at one expert degree."""

    of_seconds: float
    of_bytes: float


def uneven(assumed: AssumedLoad, layer: str, expert: int, measured: Sequence[LayerLoad]) -> Uneven:
    """The imbalance that a problem assumes for a layer, at most the expert degree; `measured` are the profile's.

    Raises AutopartError where a list has none for the layer at this degree.
    """
    if isinstance(assumed, float | int):
        both = min(float(assumed), float(expert))
        return Uneven(both, both)
    listed = measured if isinstance(assumed, str) else assumed
    for one in listed:
        if one.layer == layer and one.expert == expert:
            return Uneven(one.imbalance, one.largest)
    if isinstance(assumed, str):
        raise AutopartError(
            f"the profile has no measured imbalance for expert degree {expert}: models are run for it, and not on "
            "meta; profile on a device that runs the model, or give a number, such as --expert-imbalance 1.2"
        )
    known = sorted({one.expert for one in listed})
    raise AutopartError(
        f"the run measured no imbalance of layer '{layer}' for expert degree {expert}; it has degrees "
        f"{', '.join(map(str, known))}: take one of these, or give a number, such as --expert-imbalance 1.2"
    )


def load_in_words(assumed: AssumedLoad | msgspec.UnsetType) -> str:
    """The assumption in words, such as "an imbalance of 1.3"."""
    if assumed is msgspec.UNSET:
        return "balanced load"
    if isinstance(assumed, float | int):
        return f"an imbalance of {assumed:g}"
    if isinstance(assumed, str):
        return "the profile's measured imbalance"
    values = [one.imbalance for one in assumed]
    return f"a run's measured imbalance, {min(values):.3g} to {max(values):.3g}"
