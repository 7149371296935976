"""Resharding: sends over a cut between stages with different tensor degrees.

Symbols   t, t'   degrees of the sending and the receiving stage
          b'      bytes of a value on one rank of the receiving stage

A rank of the receiving group needs its own b' bytes. Without sequence parallelism that is the whole
value, and one sender has it. With sequence parallelism it is a slice, and each sender has a slice too.

    t < t'    each sender serves t' / t receivers: copies of the value, or parts of its slice
    t > t'    without sequence parallelism t' of the senders send, and the others are idle
              with it each receiver joins the slices of t / t' senders

The ranks of one side with the most to move set the seconds of a send:

    bytes     b' x max(1, t' / t)
    messages  max(1, t' / t); with sequence parallelism max(t' / t, t / t')

Where neither degree divides the other, t' / t is rounded up, and a slice goes to each rank that needs
part of it.

For whole values and t < t' these are t' / t copies. Slices are sent once: with t < t' the sender's
slice, with t > t' the receiver's. Gradients go back the same way, with the sides changed over. Where
the degrees are equal, this is an ordinary send.
"""

import functools
from collections import Counter

from autopart.cost.stage_totals import Traffic
from autopart.units import Q


def traffic_between(
    sent: Traffic[Q], received: Traffic[Q], degrees: tuple[int, int], *, split: bool
) -> Traffic[Q]:
    """Bytes and messages per microbatch over a cut, on the busiest rank in each direction.

    `sent` is what a rank of the stage ahead sends among equal degrees, and gets back as gradients.
    `received` is the same for the stage behind. `split` says whether there is sequence parallelism.
    """
    ahead, behind = degrees
    spread, joined = _ceil(behind, ahead), _ceil(ahead, behind)
    messages = _most_messages(ahead, behind)
    return Traffic(
        bytes=received.bytes * spread,
        tensors=received.tensors * (messages if split else spread),
        grad_bytes=sent.grad_bytes * joined,
        grad_tensors=sent.grad_tensors * (messages if split else joined),
    )


@functools.lru_cache(maxsize=256)
def _most_messages(ahead: int, behind: int) -> int:
    """Messages for one split value on the rank that sends or receives the most."""
    pairs = senders_and_receivers(0, ahead, 0, behind)
    ends = Counter((side, pair[side]) for pair in pairs for side in (0, 1))
    return max(ends.values())


def senders_and_receivers(
    first: int, degree: int, other_first: int, other_degree: int
) -> list[tuple[int, int]]:
    """The pairs of GPUs between which a group sends to another group, by their first GPUs and degrees."""
    return [
        (first + place, other_first + other)
        for other in range(other_degree)
        for place in range(
            other * degree // other_degree, _ceil((other + 1) * degree, other_degree)
        )
    ]


def _ceil(number: int, by: int) -> int:
    return -(-number // by)
