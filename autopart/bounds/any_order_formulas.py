"""Formulas for bounds that hold under every order, on floats or on matrices over [i, j].

Symbols   f, i, w   a stage's forward, input-gradient and weight-gradient seconds, with fixed costs;
                    where backwards are whole, i is the whole backward and w = 0
          n         microbatches that one rank runs on a stage
          H         a microbatch's path before its F on a stage: all f and sends ahead
          U, D      its path from that F down to the last stage, and back up to its I (or B)
          R         its path from that I to stage 0, then w, syncs and update there
          a, z      first and last stage on a rank;  E its own syncs and updates

No rank starts before H(a), each microbatch takes each hop, and each rank runs one action at a time.
So no order beats these seconds, with any warm-up, any placement, whole or split backwards:

    all work on one rank, from the first arrival       H(a) + sum n (f + i + w) + E             (1)
    its input gradients, and the last one's path back  H(a) + sum n (f + i) + R(a)              (2)
    all its forwards, and the last one's round trip    H(a) + sum n f + (U + D + i + R)(z)      (3)
    the first gradient's arrival, and all backwards    (H + f + U + D)(z) + sum n (i + w) + E   (4)
                                                       (H + f + U + D)(z) + sum n i + R(a)      (5)
    a link with q sends, c seconds each: path to the first, path from the last  ... + sum q c + ... (6)

(3): the rank's last F belongs to some stage, and U + D + i + R is smallest on z. (4): no gradient
reaches the rank before one has come back to z.

Memory limits the microbatches on a stage between F and the end of W (or B). Let y = min(n,
floor(room / stash of the rank's stages up to this one)). Here stash is the least that a microbatch
keeps, before I or behind it. Then:

    the last F, behind n - y whole turns  H + n f + (n - y) (i + w) + U + D + i + R             (7)
    the first I, before n - y forwards    H + f + U + D + n (i + w) + (n - y) f + E             (8)
                                          H + f + U + D + n i + (n - y) f + R                   (9)
    turns with y microbatches,            H + r max(f, g) + (q + 1) (f + U + D + i + w) + E    (10)
        n - 1 = q y + r                   H + r f + (q + 1) (f + U + D + i + w) - w + R        (11)
    bytes x seconds on one rank           H(a) + sum n stash (f + U + D + i + w) / room + E    (12)

(10): number the F's by their starts and the backwards by their ends, each from 0. F number y + j
starts when j + 1 backwards have ended. Backward j ends one stay, f + U + D + i + w, after F j has
started. F's are f apart. Ends are g apart: g is i, or w where backwards are split. So a stay over y
is a memory-bound period.

Sends that do not overlap compute occupy their ranks. f and i then include the receive. A send keeps
its rank busy behind f or i, while its result moves on. All sends count in a sum over one rank, but
the last send does not count in its result's path.
"""

from typing import Generic, NamedTuple

from autopart.bounds.microbatch_path import Amount, MicrobatchPath


class AnyOrderPath(NamedTuple, Generic[Amount]):
    """Seconds along a microbatch's path around a stage, by the symbols above."""

    forward: Amount
    """f until its result is there."""
    gradient: Amount
    """i until its result is there."""
    weights: Amount
    """w."""
    send: Amount
    """Seconds that the send behind f keeps the rank busy."""
    send_back: Amount
    """Seconds that the send behind i keeps the rank busy."""
    arrival: Amount
    """H."""
    turnaround: Amount
    """U + D."""
    departure: Amount
    """R."""

    @property
    def stay(self) -> Amount:
        """The least seconds from the start of a microbatch's F to the end of its backward."""
        gradient = self.gradient + self.send_back
        return self.forward + self.turnaround + gradient + self.weights


def any_order_path(
    path: MicrobatchPath[Amount], weights: Amount, end: Amount, *, sends_overlap: bool
) -> AnyOrderPath[Amount]:
    """The symbols for a path: `weights` are w, `end` is w, syncs and update on stage 0."""
    before, after = path.compute_before + path.sends_before, path.compute_after + path.sends_after
    around = path.compute_beyond + path.sends_beyond + path.send
    departure = after + path.send_back + end
    nothing = 0.0 * path.forward
    if sends_overlap:
        return AnyOrderPath(
            forward=path.forward,
            gradient=path.backward,
            weights=weights,
            send=nothing,
            send_back=nothing,
            arrival=before + path.receive,
            turnaround=around + path.receive_back,
            departure=departure,
        )
    # The rank itself receives, as a part of its next action.
    return AnyOrderPath(
        forward=path.forward + path.receive,
        gradient=path.backward + path.receive_back,
        weights=weights,
        send=path.send,
        send_back=path.send_back,
        arrival=before,
        turnaround=around,
        departure=departure,
    )


class Work(NamedTuple, Generic[Amount]):
    """Seconds that one rank is busy in a step: sums over its stages and microbatches."""

    forward: Amount
    gradient: Amount
    weights: Amount
    end: Amount
    """E."""


def work_bounds(
    first: AnyOrderPath[Amount], last: AnyOrderPath[Amount], work: Work[Amount]
) -> tuple[Amount, ...]:
    """(1)-(5) for one rank, whose first stage is a and whose last stage is z."""
    departure = first.departure - first.send_back
    turn = last.arrival + last.forward + last.turnaround
    return (
        first.arrival + work.forward + work.gradient + work.weights + work.end,
        first.arrival + work.forward + work.gradient + departure,
        first.arrival + work.forward - last.send + last.turnaround + last.gradient + last.departure,
        turn + work.gradient + work.weights + work.end,
        turn + work.gradient + departure,
    )


def memory_bounds(
    path: AnyOrderPath[Amount], n: int, in_flight: Amount, end: Amount, *, split: bool
) -> tuple[Amount, ...]:
    """(7)-(11) for a stage that runs n microbatches, at most `in_flight` at a time."""
    forward, gradient = path.forward + path.send, path.gradient + path.send_back
    backward, departure = gradient + path.weights, path.departure - path.send_back
    turn = path.arrival + path.forward + path.turnaround
    # (7): n forwards, and the backwards that must end before the last of them.
    last = path.arrival + n * forward - path.send + (n - in_flight) * backward
    # (10), (11): q turns with y microbatches each, and r that are left.
    turns = (n - 1) // in_flight
    left = n - 1 - turns * in_flight
    turned = path.arrival + (turns + 1) * path.stay
    # (10) counts once with f and once with g: the larger one is max(f, g).
    apart = path.weights if split else gradient
    return (
        last + path.turnaround + path.gradient + path.departure,
        turn + n * backward + (n - in_flight) * forward + end,
        turn + n * gradient + (n - in_flight) * forward + departure,
        turned + left * forward + end,
        turned + left * apart + end,
        turned + left * forward - path.weights + departure,
    )
