"""How late replicas of a stage start and end, by the replicas of the stages ahead of it.

Microbatch q reaches a stage only after the stages ahead have run it. A stage ahead with fewer ranks
runs it in a later turn: F_q follows F_{q - r} on its rank, and B_q follows B_{q - r}. Let the stages
ahead of cut i have known replicas, and take any cuts between them. Two sums along such a path:

    A(i, q)   seconds from the step's start until F_q has run on all layers ahead of cut i
    D(i, p)   seconds from the gradient of microbatch m - 1 - p over cut i until the step's end

    A(0, q) = 0,   A(j, q) = min over i of  max( A(i, q) + receive, A(j, q - r) ) + f[i, j]
    D(0, p) = 0,   D(j, p) = min over i of  max( D(i, p) + send back, D(j, p - r) ) + b[i, j]

for a stage [i, j] on r ranks. The min is over all i that may precede j, entry by entry.

Rank q of a stage [i, j] on r ranks runs microbatches q, q + r, .... So its first F starts no earlier
than A(i, q), and D(i, p) follows its last B, where p microbatches come after its last one. The bounds
on one stage (autopart/bounds/uneven_replicas.py) count the forwards F ahead and the backwards B
ahead. A rank with as many microbatches as the first one therefore takes at least

    its bound + A(i, q) - F + D(i, p) - B                                                       (5)

GPipe's bound (3) joins two ranks, so only the end of its first rank counts there (q = 0).

Under 1F1B a stage s on r_s ranks has w_s = ceil(ranks behind / r_s) + 1 forwards in its warm-up. For
stage s ahead of stage t, one round trip goes like this:

    F_x on t;  next on its rank  B_y,  y = x - r_t (w_t - 1);  B_y on t - 1, ..., s;
    next on its rank on s        F_z,  z = y + r_s w_s;        F_z on s + 1, ..., t

So z = x + turn, turn = r_s w_s - r_t (w_t - 1). A trip takes C seconds, all work of stages s to t with
the sends between them. From x = r_t (w_t - 1), the last of t's warm-up, d trips fit while
x + d turn < m. With a the number of F_x on its rank after d trips, from 0, and n microbatches there:

    step >= A(i, 0) + w_t f + d C + (n - 1 - a) f + (n - 1 - a + w_t) b + D(i, 0) + u             (6)

The rank of stage t runs w_t forwards, then B_y, and the trip ends with F_z. Behind the last trip it
has n - 1 - a more forwards, and all backwards from B_y on.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from autopart.bounds.microbatch_path import Mask, Matrix, MicrobatchPath
from autopart.schedules.named.one_f_one_b import warmup

Rows = npt.NDArray[np.int64]
"""Cuts at which a stage may start."""


class SecondsOnRanks(NamedTuple):
    """Seconds of every stage [i, j] on some ranks for one microbatch, each action with its fixed cost."""

    forward: Matrix
    """Shape (N, N)."""
    backward: Matrix
    receive: Matrix
    """Activations over cut i, shape (N,)."""
    send_back: Matrix
    """Gradients over cut i."""
    usual: Matrix
    """F and B: the forwards and backwards ahead of cut i that the bounds on one stage count."""

    @staticmethod
    def of(path: MicrobatchPath[Matrix]) -> "SecondsOnRanks":
        """The seconds along a microbatch's path around every [i, j]."""
        shape = path.forward.shape
        ahead = path.compute_before + path.compute_after
        each = (path.receive, path.send_back, ahead)
        columns = [np.broadcast_to(one, shape)[:, 0] for one in each]
        return SecondsOnRanks(path.forward, path.backward, *columns)


class Waiting(NamedTuple):
    """A and D behind some stages, in seconds, shape (N, R): cuts, and microbatches up to R."""

    arrival: Matrix
    """A(i, q); infinite where no stages end at cut i."""
    drain: Matrix
    """D(i, p)."""
    work: tuple[Matrix, ...] = ()
    """For each stage ahead the least seconds of one microbatch from it to cut i, there and back."""
    windows: tuple[int, ...] = ()
    """For each stage ahead r w: the microbatches in flight from it on, under 1F1B."""


def at_first_cut(num_cuts: int, width: int) -> Waiting:
    """A and D ahead of the first stage, for at most `width` ranks on a stage."""
    start = np.full((num_cuts, width), np.inf)
    start[0] = 0.0
    return Waiting(start, start)


def behind_stage(
    ahead: Waiting, seconds: SecondsOnRanks, starts: Rows, may: Mask, count: int, behind: int
) -> Waiting:
    """A and D behind one more stage on `count` ranks, with `behind` ranks behind it.

    It may start at the cuts `starts`, and be [i, j] where `may`, shape (starts, N), says so.
    """
    receive, send_back = seconds.receive[starts, None], seconds.send_back[starts, None]
    forward, backward = (
        np.where(may, each[starts], np.inf) for each in (seconds.forward, seconds.backward)
    )
    own, sends = forward + backward, receive + send_back
    longer = [(each[starts, None] + sends + own).min(axis=0) for each in ahead.work]
    return Waiting(
        _in_turns(ahead.arrival[starts] + receive, forward, count),
        _in_turns(ahead.drain[starts] + send_back, backward, count),
        (*longer, own.min(axis=0)),
        (*ahead.windows, count * warmup(behind, count)),
    )


def _in_turns(ready: Matrix, seconds: Matrix, count: int) -> Matrix:
    """The recurrence for A or D: `ready` by [i, q], `seconds` by [i, j]; the result by [j, q]."""
    width = ready.shape[1]
    found = np.full((seconds.shape[1], width), np.inf)
    # The turn before counts at its least over i as well, entry by entry.
    for first in range(0, width, count):
        own = ready[:, None, first : first + count]
        if first:
            before = found[:, first - count : first][:, : own.shape[2]]
            own = np.maximum(own, before[None])
        found[:, first : first + count] = (own + seconds[:, :, None]).min(axis=0)
    return found


def lateness(
    ahead: Waiting,
    seconds: SecondsOnRanks,
    starts: Rows,
    count: int,
    num_microbatches: int,
    *,
    gpipe: bool,
) -> Matrix:
    """Seconds that (5) adds to the bound of a stage on `count` ranks, shape (starts, 1)."""
    # Step 1: the ranks that run as many microbatches as the first one.
    last = (num_microbatches - 1) % count
    ranks = np.arange(1 if gpipe else last + 1)
    # Step 2: behind the last microbatch of rank q come last - q others.
    arrival, drain = ahead.arrival[starts], ahead.drain[starts]
    late = (arrival[:, ranks] + drain[:, last - ranks]).max(axis=1)
    return np.maximum(late - seconds.usual[starts], 0.0)[:, None]


def round_trips(
    ahead: Waiting,
    seconds: SecondsOnRanks,
    starts: Rows,
    count: int,
    behind: int,
    num_microbatches: int,
) -> Matrix:
    """(6) without u for a stage on `count` ranks with `behind` ranks behind it.

    The largest over all stages ahead in seconds, shape (starts, N); 0 where no trip fits.
    """
    forward, backward = seconds.forward[starts], seconds.backward[starts]
    kept, longest = warmup(behind, count), np.zeros(forward.shape)
    first = count * (kept - 1)
    sends = seconds.receive[starts] + seconds.send_back[starts]
    around = ahead.arrival[starts, 0] + ahead.drain[starts, 0] + sends
    for work, window in zip(ahead.work, ahead.windows, strict=True):
        # Step 1: as many trips as microbatches allow.
        turn = window - first
        trips = (num_microbatches - 1 - first) // turn
        if trips < 1:
            continue
        # Step 2: the rank of the last one, and its actions behind it.
        turns, rank = divmod(first + trips * turn, count)
        left = (num_microbatches - 1 - rank) // count - turns
        fixed = around + trips * (work[starts] + sends)
        own = (kept + trips + left) * (forward + backward)
        np.maximum(longest, fixed[:, None] + own, out=longest)
    return longest
