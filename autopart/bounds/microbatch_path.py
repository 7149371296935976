"""One microbatch's path through the pipeline and back, seen from one stage.

The path starts with the microbatch's F on stage 0 and ends with its backward there:

    before, receive, forward, send, beyond, receive_back, backward, send_back, after

    before        forwards and sends on the stages ahead
    receive       activations over the cut ahead
    forward       F on the stage
    send          activations over the cut behind
    beyond        forwards, backwards and sends on the stages behind
    receive_back  gradients over the cut behind
    backward      B on the stage; I alone where backwards are split
    send_back     gradients over the cut ahead
    after         backwards and sends on the stages ahead

Each action has its fixed cost. The stage itself and its two cuts are exact. Elsewhere the path
takes the fewest seconds that any partition allows. Layers run as fast as the fastest stage on their
side. Each other cut sends as little as the cheapest cut. So no microbatch is faster than its path.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from autopart.cost.cuts import Cuts
from autopart.cost.links import link_across
from autopart.cost.stage_times import links_around, traffic_times
from autopart.cost.stage_totals import Array, StageTotals, Traffic
from autopart.records.cluster import Cluster, Link, fastest_speed, slowest_speed
from autopart.records.layouts import Layout
from autopart.records.problem import Problem
from autopart.schedules.actions import rank_of

Matrix = npt.NDArray[np.float64]
"""Floats for every stage [i, j] between two of N cuts.

The shape is (N, N), or one that broadcasts to it.
"""

Mask = npt.NDArray[np.bool_]
"""Booleans for every stage [i, j], with the same shapes."""

Amount = TypeVar("Amount", float, Matrix)
"""The float for one stage, or the floats for every [i, j]."""


class MicrobatchPath(NamedTuple, Generic[Amount]):
    """Seconds for each part of a path; the head of the file draws it."""

    forward: Amount
    backward: Amount
    receive: Amount
    send: Amount
    receive_back: Amount
    send_back: Amount
    compute_before: Amount
    """Forwards on the stages ahead, with their fixed costs."""
    compute_beyond: Amount
    """Forwards and backwards on the stages behind, with their fixed costs."""
    compute_after: Amount
    """Backwards on the stages ahead, with their fixed costs."""
    sends_before: float
    """Activations over the cuts ahead, except the stage's own."""
    sends_beyond: float
    """Activations and gradients over the cuts behind, except the stage's own."""
    sends_after: float
    """Gradients over the cuts ahead, except the stage's own."""

    @property
    def compute(self) -> Amount:
        """Seconds that the microbatch computes on all stages."""
        ahead = self.compute_before + self.compute_after
        return ahead + self.forward + self.backward + self.compute_beyond

    def with_sends(self, compute: Amount) -> Amount:
        """Seconds along the whole path: `compute` seconds on all stages, and every send."""
        farther = compute + self.sends_before + self.sends_after + self.sends_beyond
        return farther + self.receive + self.send_back + self.send + self.receive_back

    def busy(self, *, sends_overlap: bool) -> tuple[Amount, Amount]:
        """Seconds that the microbatch occupies the stage's rank in forward and in backward.

        Sends that do not overlap compute occupy the rank too.
        """
        if sends_overlap:
            return self.forward, self.backward
        forward = self.forward + self.receive + self.send
        return forward, self.backward + self.receive_back + self.send_back

    def fill(self, *, sends_overlap: bool) -> Amount:
        """Seconds from the step's start until the microbatch occupies the stage's rank."""
        before = self.compute_before + self.sends_before
        return before + self.receive if sends_overlap else before

    def drain(self, *, sends_overlap: bool) -> Amount:
        """Seconds from the end of the rank's busy time until the backward on stage 0 ends."""
        after = self.compute_after + self.sends_after
        return after + self.send_back if sends_overlap else after


class LayoutPaths:
    """Paths around the stages in one layout, for every [i, j] in each stage's place."""

    def __init__(
        self,
        problem: Problem,
        layout: Layout,
        cuts: Cuts,
        links: Sequence[Link | None],
        *,
        split: bool = False,
    ) -> None:
        """`links` holds one link for each cut, None where no send is certain.

        `split` leaves W out.
        """
        self.k, self.overhead = len(layout.stage_ranks), problem.cluster.action_overhead
        self.cuts, self.layers, self.links, self.split = cuts, cuts.totals, links, split
        self.speeds = [slowest_speed(problem.cluster, ranks) for ranks in layout.stage_ranks]
        of_link = {link: _cheapest_sends(cuts.totals, link) for link in set(links)}
        self.cheapest = [of_link[link] for link in links]

    def around(self, stage: int, totals: StageTotals[Array]) -> MicrobatchPath[Matrix]:
        """The path around a stage, whose `totals` are on its ranks already."""
        (before, behind), farther_ahead, farther_behind = self.sends_around(stage)
        return _path(
            totals,
            self.layers,
            (traffic_times(totals.received, before), traffic_times(totals.sent, behind)),
            _Side.of(self.speeds[:stage], farther_ahead, self.overhead),
            _Side.of(self.speeds[stage + 1 :], farther_behind, self.overhead),
            self.overhead,
            split=self.split,
        )

    def sends_around(self, stage: int) -> "SendsAround":
        """All sends of a microbatch, as the path around a stage counts them."""
        return SendsAround(
            links_around(self.links, stage),
            _sum_both(self.cheapest[: max(0, stage - 1)]),
            _sum_both(self.cheapest[stage + 1 :]),
        )

    def compute_of_all(self) -> float:
        """Seconds that one microbatch computes on all stages, where all have the same speed."""
        forward, backward = self.layers.forward_time[0, -1], self.layers.backward_time[0, -1]
        return (forward + backward) / self.speeds[0] + 2 * self.k * self.overhead


def path_on_any_ranks(
    problem: Problem, cuts: Cuts, totals: StageTotals[Array]
) -> MicrobatchPath[Matrix]:
    """The path around every [i, j], with its place in the pipeline and all other ranks left open.

    `totals` are on the stage's ranks already. Its sends take the better link, and other layers run
    on the fastest GPU. There is at least one stage ahead where layers are, and at least one behind.
    """
    cluster, speed = problem.cluster, fastest_speed(problem.cluster)
    overhead = cluster.action_overhead
    # One stage at least runs the layers on each side, where there are any.
    fixed = np.where(np.arange(len(cuts.nested)) > 0, overhead, 0.0)
    traffic = _best_times(cluster, cuts.totals.received), _best_times(cluster, cuts.totals.sent)
    ahead, behind = _Side(speed, fixed[:, None]), _Side(speed, fixed[None, ::-1])
    return _path(totals, cuts.totals, traffic, ahead, behind, overhead, split=False)


def paths_along(
    forward: Sequence[float],
    backward: Sequence[float],
    sends: Sequence[float],
    sends_back: Sequence[float],
) -> list[MicrobatchPath[float]]:
    """The path around each stage in one partition, where everything is exact.

    `forward` and `backward` are seconds of each stage with fixed costs. `sends` and `sends_back`
    are seconds for activations and gradients over each cut.
    """
    k = len(forward)
    into, out = (0.0, *sends), (*sends, 0.0)
    back_into, back_out = (*sends_back, 0.0), (0.0, *sends_back)
    ahead = [_sums_ahead(each) for each in (forward, backward, sends, sends_back)]
    behind = [_sums_behind(each) for each in (forward, backward, sends, sends_back)]

    def path(stage: int) -> MicrobatchPath[float]:
        # The cuts ahead end before the stage's own, those behind start after it.
        cuts_ahead, cuts_behind = max(0, stage - 1), min(stage + 1, k - 1)
        return MicrobatchPath(
            forward=forward[stage],
            backward=backward[stage],
            receive=into[stage],
            send=out[stage],
            receive_back=back_into[stage],
            send_back=back_out[stage],
            compute_before=ahead[0][stage],
            compute_beyond=behind[0][stage + 1] + behind[1][stage + 1],
            compute_after=ahead[1][stage],
            sends_before=ahead[2][cuts_ahead],
            sends_beyond=behind[2][cuts_behind] + behind[3][cuts_behind],
            sends_after=ahead[3][cuts_ahead],
        )

    return [path(stage) for stage in range(k)]


def always_sent(here: Sequence[int], there: Sequence[int], num_microbatches: int) -> bool:
    """Whether every microbatch changes its rank between stages on the ranks `here` and `there`."""
    # Replicas take microbatches in turn, so all pairs of ranks come up within one common multiple.
    turns = min(math.lcm(len(here), len(there)), num_microbatches)
    return all(rank_of(here, m) != rank_of(there, m) for m in range(turns))


def step_ends(seconds_of: Callable[[int], Matrix], stage: int) -> tuple[Matrix, Matrix]:
    """Seconds from the last backward to the step's end: on the stage by [i, j], and on stage 0.

    `seconds_of` gives sync and update for every [i, j] in one stage's place. The seconds on stage 0
    are the fewest that are possible when `stage` starts at cut i.
    """
    own = seconds_of(stage)
    if stage == 0:
        return own, own
    # Row 0 has the stages that start at the first cut, as stage 0 does.
    first = seconds_of(0)[0]
    if stage == 1:
        return own, first[:, None]
    return own, np.full_like(first, first[1:].min())[:, None]


class SendsAround(NamedTuple):
    """Sends of a microbatch, seen from one stage."""

    own: tuple[Link | None, Link | None]
    """The links over the stage's own two cuts."""
    ahead: tuple[float, float]
    """Seconds for activations and for gradients over the other cuts ahead."""
    behind: tuple[float, float]
    """The same over the other cuts behind."""


class _Side(NamedTuple):
    """All stages on one side, in one direction."""

    speed: float
    """Speed of the fastest stage, relative to the profile's device."""
    fixed: float | Matrix
    """Fixed costs for their actions in seconds."""
    sends: float = 0.0
    """Activations over their cuts in seconds."""
    sends_back: float = 0.0
    """Gradients over their cuts in seconds."""

    @staticmethod
    def of(speeds: Sequence[float], sends: tuple[float, float], fixed: float) -> "_Side":
        """The side whose stages have these speeds, with sends over its cuts in both directions."""
        return _Side(max(speeds, default=1.0), len(speeds) * fixed, *sends)


def _path(
    totals: StageTotals[Array],
    layers: StageTotals[Array],
    traffic: tuple[tuple[Matrix, Matrix], tuple[Matrix, Matrix]],
    ahead: _Side,
    behind: _Side,
    overhead: float,
    *,
    split: bool,
) -> MicrobatchPath[Matrix]:
    """The path around every [i, j], with its traffic over the cut ahead and over the cut behind.

    `totals` are on the stage's ranks, `layers` at the speed of the profile's device.
    """
    (receive, send_back), (send, receive_back) = traffic
    # Row 0 of the totals has the sums over all layers ahead of each cut, the last column behind it.
    forward, backward = layers.forward_time, _backward(layers, split=split)
    rest = (forward[:, -1] + backward[:, -1])[None, :]
    return MicrobatchPath(
        forward=totals.forward_time + overhead,
        backward=_backward(totals, split=split) + overhead,
        receive=receive,
        send=send,
        receive_back=receive_back,
        send_back=send_back,
        compute_before=forward[0][:, None] / ahead.speed + ahead.fixed,
        compute_beyond=rest / behind.speed + 2 * behind.fixed,
        compute_after=backward[0][:, None] / ahead.speed + ahead.fixed,
        sends_before=ahead.sends,
        sends_beyond=behind.sends + behind.sends_back,
        sends_after=ahead.sends_back,
    )


def _backward(totals: StageTotals[Array], *, split: bool) -> Matrix:
    """Seconds of the backward without fixed cost, or of I alone."""
    return totals.backward_time - totals.weight_grad_time if split else totals.backward_time


def _sum_both(sends: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The sums over some cuts, in both directions."""
    there, back = map(sum, zip(*sends, strict=True)) if sends else (0.0, 0.0)
    return there, back


def _cheapest_sends(totals: StageTotals[Array], link: Link | None) -> tuple[float, float]:
    """Seconds for activations and for gradients over the cheapest inner cut, on `link`."""
    forward, backward = traffic_times(totals.sent, link)
    return float(forward[0, 1:-1].min()), float(backward[0, 1:-1].min())


def _best_times(cluster: Cluster, traffic: Traffic[Array]) -> tuple[Matrix, Matrix]:
    """Seconds for activations and for gradients over each cut, each on the better link."""
    forward, backward = traffic_times(traffic, cluster.intra_node)
    if cluster.num_nodes == 1:
        return forward, backward
    across = traffic_times(traffic, link_across(cluster))
    return np.minimum(forward, across[0]), np.minimum(backward, across[1])


def _sums_ahead(seconds: Sequence[float]) -> list[float]:
    """The sum over the first s entries, for s from 0 to all."""
    return list(itertools.accumulate(seconds, initial=0.0))


def _sums_behind(seconds: Sequence[float]) -> list[float]:
    """The sum over the entries from s on, for s from 0 to all."""
    return list(itertools.accumulate(reversed(seconds), initial=0.0))[::-1]
