"""The cuts for stages with given tensor degrees whose largest bound is smallest.

Recurrence, with b the bound of a stage (autopart/stage_degrees/bounds.py) and s counted from the end:

    W(s)[i] = min over j of max(b(t_s)[i, j], W(s - 1)[j])

O(k N^2) for k stages between N cuts.
"""

from typing import NamedTuple

import numpy as np

from autopart.stage_degrees.bounds import DegreeBounds


class BestPath(NamedTuple):
    """A path over the cuts, and the largest bound of its stages."""

    bound: float
    path: tuple[int, ...]


def best_path(
    bounds: DegreeBounds, schedule: str, replicas: int, degrees: tuple[int, ...]
) -> BestPath | None:
    """The path whose largest bound is smallest, in seconds; None where no stages fit."""
    size = len(bounds.cuts[0].nested)
    values = np.where(np.arange(size) == size - 1, 0.0, np.inf)
    followers: list[np.ndarray] = []
    for behind, degree in enumerate(reversed(degrees)):
        own = bounds.stage(schedule, replicas, degree, behind).bound
        through = np.maximum(own, values[None, :])
        followers.append(through.argmin(axis=1))
        values = through.min(axis=1)
    if not np.isfinite(values[0]):
        return None
    path = [0]
    for follower in reversed(followers):
        path.append(int(follower[path[-1]]))
    return BestPath(float(values[0]), tuple(path))
