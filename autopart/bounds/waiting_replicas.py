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
x + d turn < m. With l microbatches on its rank behind the F_z of the last trip:

    step >= A(i, 0) + max(w_t f, f + beyond) + d C
            + max(l f + (l + w_t) b, beyond + (l + 1) b) + D(i, 0) + u                          (6)

The first trip starts with B_0 on t. It follows the rank's w_t forwards, and F_0 with its way down to
the last stage and back, `beyond` seconds. Behind the F_z of the last trip the rank has l more
forwards, and all backwards from B_y on. Or F_z goes down and back itself, and B_z with l more
backwards follows.
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
    beyond: Matrix
    """From the end of F to the start of B of one microbatch, down to the last stage and back."""
    usual: Matrix
    """F and B: the forwards and backwards ahead of cut i that the bounds on one stage count."""

    @staticmethod
    def of(path: MicrobatchPath[Matrix]) -> "SecondsOnRanks":
        """The seconds along a microbatch's path around every [i, j]."""
        shape = path.forward.shape
        ahead = path.compute_before + path.compute_after
        each = (path.receive, path.send_back, ahead)
        receive, send_back, usual = (np.broadcast_to(one, shape)[:, 0] for one in each)
        beyond = path.send + path.compute_beyond + path.sends_beyond + path.receive_back
        beyond = np.broadcast_to(beyond, shape)
        return SecondsOnRanks(path.forward, path.backward, receive, send_back, beyond, usual)


class Waiting(NamedTuple):
    """A and D behind some stages, in seconds, shape (N, R): cuts, and microbatches up to R."""

    arrival: Matrix
    """A(i, q); infinite where no stages end at cut i."""
    drain: Matrix
    """D(i, p)."""
    trips: tuple["Trips", ...] = ()
    """For each stage ahead, the trips that go back to it from cut i."""


class Trips(NamedTuple):
    """What a round trip back to one stage ahead takes; shape (N, P) each, one of P pairs applies."""

    work: Matrix
    """The least seconds of one microbatch from the stage to cut i, there and back."""
    window: npt.NDArray[np.int64]
    """r w: the microbatches in flight from the stage on, under 1F1B."""


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
    receive, send_back = seconds.receive[starts], seconds.send_back[starts]
    own = np.where(may, (seconds.forward + seconds.backward)[starts], np.inf)
    there_and_back = own + (receive + send_back)[:, None]
    trips = [
        Trips((one.work[starts] + there_and_back).min(axis=0)[:, None], one.window)
        for one in ahead.trips
    ]
    window = np.full((may.shape[1], 1), count * warmup(behind, count))
    arrival, drain = (np.full((may.shape[1], ahead.arrival.shape[1]), np.inf) for _ in range(2))
    at, ends = np.nonzero(may)
    for found, ready, send, each in (
        (arrival, ahead.arrival, receive, seconds.forward),
        (drain, ahead.drain, send_back, seconds.backward),
    ):
        first = starts[at]
        in_turns = turns_of(ready[first] + send[at, None], each[first, ends], count)
        np.minimum.at(found, ends, in_turns)
    return Waiting(arrival, drain, (*trips, Trips(own.min(axis=0)[:, None], window)))


def turns_of(ready: Matrix, seconds: Matrix, count: int) -> Matrix:
    """The recurrence for A or D of T stages on `count` ranks each, shape (T, R).

    `ready` has the seconds up to each action, shape (T, R), and `seconds` its own, shape (T,).
    """
    stages, width = ready.shape
    turns = -(-width // count)
    # Turn k ends at the largest of (ready at turn l) + (k - l + 1) seconds, l <= k.
    padded = np.full((stages, turns * count), -np.inf)
    padded[:, :width] = ready
    by_turn = padded.reshape(stages, turns, count)
    before = np.arange(turns)[None, :, None] * seconds[:, None, None]
    found = np.maximum.accumulate(by_turn - before, axis=1) + before + seconds[:, None, None]
    return found.reshape(stages, turns * count)[:, :width]


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
    ranks = slice(0, 1 if gpipe else last + 1)
    # Step 2: behind the last microbatch of rank q come last - q others.
    late = ahead.arrival[starts, ranks] + ahead.drain[starts, last::-1][:, ranks]
    return np.maximum(late.max(axis=1) - seconds.usual[starts], 0.0)[:, None]


def round_trips(
    ahead: Waiting,
    seconds: SecondsOnRanks,
    stages: tuple[Rows, Rows],
    count: int,
    behind: int,
    num_microbatches: int,
) -> npt.NDArray[np.float64]:
    """(6) without u for T stages on `count` ranks with `behind` ranks behind them.

    `stages` has their first and last cuts, shape (T,) each. Returns the largest over all stages ahead
    in seconds, shape (T,); 0 where no trip fits.
    """
    starts, _ = stages
    forward, backward = seconds.forward[stages][:, None], seconds.backward[stages][:, None]
    beyond = seconds.beyond[stages][:, None]
    kept, longest = warmup(behind, count), np.zeros(len(starts))
    first, latest = count * (kept - 1), num_microbatches - 1
    sends = (seconds.receive + seconds.send_back)[starts, None]
    around = (ahead.arrival[starts, 0] + ahead.drain[starts, 0])[:, None] + sends
    # Step 1: the warm-up of its rank, or the first microbatch's way down and back.
    around = around + np.maximum(kept * forward, forward + beyond)
    for one in ahead.trips:
        # Step 2: as many trips as microbatches allow.
        turn = one.window[starts] - first
        trips = np.maximum((latest - first) // turn, 0)
        way = around + trips * (one.work[starts] + sends + forward + backward)
        # Step 3: the actions on the rank of the last one, or its microbatch's way down and back.
        left = (latest - first - trips * turn) // count
        last_way = np.maximum(
            left * forward + (left + kept) * backward, beyond + (left + 1) * backward
        )
        every = np.where(trips > 0, way + last_way, 0.0).min(axis=1)
        np.maximum(longest, every, out=longest)
    return longest
