"""Whether bounds leave any list of replicas open below a value, with the lists joined.

Lists of replicas grow from the first stage on (autopart/bounds/open_replicas.py), but there are too
many on many GPUs. A *beginning* is a list for the layers ahead of some cut. Beginnings that end at
the same cut, with as many ranks left, are joined. A joined beginning has the least A(i, q) and D(i,
p) of its members (autopart/bounds/waiting_replicas.py), entry by entry. For round trips back to the
last stage, the one before it, ... it has pairs of window and work. For each member some pair has a
window as large at least, and no more work.

The bounds (1) to (6) on the next stage grow with A, D and work, and shrink with the window. So no
member has a bound below that of the joined beginning. Where joined beginnings reach no last cut, no
list is open.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from autopart.bounds.open_stages import OpenStages
from autopart.bounds.waiting_replicas import Rows, Trips, Waiting, turns_of
from autopart.schedules.named.one_f_one_b import warmup
from autopart.stopping.time_limit import check_time

STAGES_BACK = 3
"""Stages ahead to which round trips are followed, from the last one on."""

MOST_PAIRS = 8
"""TripPairs of window and work that are kept for each of these stages."""

ANY_WINDOW = 1 << 40
"""A window into which all microbatches fit: no round trip follows from it."""

_Row = npt.NDArray[np.float64]


class TripPairs(NamedTuple):
    """Pairs of window and work for the round trips back to one stage, shape (P,)."""

    window: Rows
    work: _Row


class Joined:
    """All beginnings that end at one cut with as many ranks left."""

    def __init__(self, arrival: _Row, drain: _Row, back: tuple[TripPairs, ...]) -> None:
        self.arrival, self.drain = arrival, drain
        """A(i, q) and D(i, p), shape (R,)."""
        self.back: list[list[TripPairs]] = [[pairs] for pairs in back]
        """For each number of stages back."""

    def join(self, arrival: _Row, drain: _Row, back: tuple[TripPairs, ...]) -> None:
        """Join one beginning more."""
        np.minimum(self.arrival, arrival, out=self.arrival)
        np.minimum(self.drain, drain, out=self.drain)
        for kept, pairs in zip(self.back, back, strict=True):
            kept.append(pairs)


_State = dict[int, Joined]
"""The joined beginnings by their last cut."""

_NO_STAGE = TripPairs(np.array([ANY_WINDOW]), np.zeros(1))


def no_list_is_open(below: OpenStages) -> bool:
    """Whether bounds leave no list of replicas below the value; False where joining hides it."""
    width = below.bounds.counts[-1]
    start = np.zeros(width)
    states: dict[int, dict[int, _State]] = {
        used: {0: {0: Joined(start, start, (_NO_STAGE,) * STAGES_BACK)}}
        for used in below.ranks_in_all()
    }
    for left in range(max(states, default=0), 0, -1):
        check_time()
        for stages, state in states.pop(left, {}).items():
            if _reach_the_end(below, left, stages, state, width, states):
                return False
    return True


def _reach_the_end(
    below: OpenStages,
    left: int,
    stages: int,
    state: _State,
    width: int,
    states: dict[int, dict[int, _State]],
) -> bool:
    """Add one more stage to beginnings; whether it may be the last one."""
    ahead = _as_waiting(state, len(below.bounds.cuts.nested), width)
    reached = np.zeros(len(ahead.arrival), dtype=bool)
    reached[list(state)] = True
    # Without a demanded number of stages, the stages ahead need no count.
    more = stages + (below.num_stages is not None)
    for count in range(1, min(left, width) + 1):
        if not below.may_start(state, stages, count, left - count):
            continue
        may_end = below.behind_next(stages, left - count)
        starts, may = below.starting_at(reached, may_end, count, left - count, ahead)
        if not may.any():
            continue
        if may[:, -1].any():
            return True
        at, ends = np.nonzero(may)
        behind = states.setdefault(left - count, {}).setdefault(more, {})
        _join_behind(below, count, left - count, ahead, (starts[at], ends), behind)
    return False


def _join_behind(
    below: OpenStages,
    count: int,
    behind: int,
    ahead: Waiting,
    stages: tuple[Rows, Rows],
    state: _State,
) -> None:
    """Join what lies behind stages on `count` ranks to a state, by their first and last cuts."""
    seconds, (first, ends) = below.seconds(count), stages
    forward, backward = seconds.forward[stages], seconds.backward[stages]
    receive, send_back = seconds.receive[first], seconds.send_back[first]
    arrival = turns_of(ahead.arrival[first] + receive[:, None], forward, count)
    drain = turns_of(ahead.drain[first] + send_back[:, None], backward, count)
    own, window = forward + backward, np.array([count * warmup(behind, count)])
    more = own + receive + send_back
    for at, (i, j) in enumerate(zip(first.tolist(), ends.tolist(), strict=True)):
        farther = tuple(
            TripPairs(one.window[i], one.work[i] + more[at])
            for one in ahead.trips[: STAGES_BACK - 1]
        )
        back = (TripPairs(window, own[at : at + 1]), *farther)
        if j in state:
            state[j].join(arrival[at], drain[at], back)
        else:
            state[j] = Joined(arrival[at], drain[at], back)


def _as_waiting(state: _State, num_cuts: int, width: int) -> Waiting:
    """The joined beginnings as what lies ahead of the next stage."""
    arrival, drain = np.full((num_cuts, width), np.inf), np.full((num_cuts, width), np.inf)
    trips = [
        Trips(np.zeros((num_cuts, MOST_PAIRS)), np.full((num_cuts, MOST_PAIRS), ANY_WINDOW))
        for _ in range(STAGES_BACK)
    ]
    for cut, joined in state.items():
        arrival[cut], drain[cut] = joined.arrival, joined.drain
        for one, pairs in zip(trips, joined.back, strict=True):
            window, work = fewest_pairs(pairs)
            # The last pair fills the row.
            one.window[cut], one.work[cut] = window[-1], work[-1]
            one.window[cut, : len(window)], one.work[cut, : len(work)] = window, work
    return Waiting(arrival, drain, tuple(trips))


def fewest_pairs(pairs: list[TripPairs]) -> TripPairs:
    """At most `MOST_PAIRS` pairs: for each given one, some with no smaller window and no more work."""
    window = np.concatenate([one.window for one in pairs])
    work = np.concatenate([one.work for one in pairs])
    # Step 1: the largest windows first; a pair counts where it has less work than all before it.
    order = np.lexsort((work, -window))
    window, work = window[order], work[order]
    least = np.minimum.accumulate(work)
    kept = np.concatenate([[True], work[1:] < least[:-1]])
    window, work = window[kept], work[kept]
    # Step 2: where they are too many, neighbours become one.
    if len(window) <= MOST_PAIRS:
        return TripPairs(window, work)
    groups = np.array_split(np.arange(len(window)), MOST_PAIRS)
    return TripPairs(
        np.array([window[own[0]] for own in groups]), np.array([work[own[-1]] for own in groups])
    )
