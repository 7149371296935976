"""Classes of cuts for tests: fewer of them than the package takes, and the class of a cut."""

import contextlib
from collections.abc import Iterator
from unittest import mock

import numpy as np
import numpy.typing as npt

from autopart.cost.cut_classes import class_cuts
from autopart.cost.cuts import Cuts


@contextlib.contextmanager
def few_classes(most: int) -> Iterator[None]:
    """At most so many classes, besides the empty downset and the whole graph."""
    class_cuts.cache_clear()
    with mock.patch("autopart.cost.cut_classes.MOST_CLASSES", most):
        yield
    class_cuts.cache_clear()


def class_of(classes: Cuts, ahead: npt.NDArray[np.bool_]) -> int:
    """The place of a downset's class: the largest whose sure layers all lie in the downset."""
    if not ahead.any():
        return 0
    if ahead.all():
        return len(classes.ahead) - 1
    inside = ~(classes.ahead & ~ahead).any(axis=1)
    inside[-1] = False
    sizes = np.where(inside, classes.ahead.sum(axis=1), -1)
    return int(np.flatnonzero(sizes == sizes.max())[-1])
