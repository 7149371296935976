"""Bounds under every order for many partitions of one layout side by side.

Each partition is a path over the cuts. All its stages are known, so each microbatch's path is exact.
The formulas (1)-(5) and (7)-(11) stand in autopart/bounds/any_order_formulas.py. They hold for any
stages in a row among the stages of a rank, as if the rank ran nothing else: a to z. So (1) to (5) are
taken for each of these rows, and the largest bound counts.

Memory is counted as in autopart/bounds/any_order_stages.py: bytes that last, one workspace in F, and
the least stash under any policies. A microbatch in flight on a stage keeps the stash of all earlier stages on the rank.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from autopart.activations.shared_totals import freest_totals
from autopart.bounds.any_order_formulas import (
    AnyOrderPath,
    Work,
    any_order_path,
    memory_bounds,
    work_bounds,
)
from autopart.bounds.microbatch_path import Matrix, MicrobatchPath, always_sent
from autopart.cost.cuts import Cuts
from autopart.cost.in_flight import one_in_flight
from autopart.cost.made_gradients import made_gradients
from autopart.cost.memory import memory, total
from autopart.cost.on_ranks import on_replicas
from autopart.cost.repeated_ties import is_behind, without_shared_state
from autopart.cost.stage_syncs import time_after_backward
from autopart.cost.stage_times import cut_links, traffic_times
from autopart.cost.sync_rules import RULES
from autopart.cost.syncs import sync_price
from autopart.cost.tied_syncs import without_shared_ties
from autopart.records.cluster import slowest_speed, smallest_memory
from autopart.records.layouts import Layout, StageRanks, own_microbatches
from autopart.records.problem import Problem

Paths = npt.NDArray[np.int64]
"""Cuts between stages, shape (partitions, stages + 1)."""


class _Stages(NamedTuple):
    """Seconds and bytes of each stage [i, j] on some ranks, shape (N, N)."""

    forward: Matrix
    gradient: Matrix
    weights: Matrix
    update: Matrix
    end: Matrix
    """Sync and update, where the rank runs no other stage."""
    stash: Matrix
    """The least bytes that a microbatch keeps."""
    lasting: Matrix
    """Bytes that do not change within a step."""
    workspace: Matrix
    """Transient bytes in F."""
    made: Matrix
    """Parameter gradients that the step makes."""


class PathBounds:
    """The bounds for partitions of a layout whose stages run on groups of ranks."""

    def __init__(self, problem: Problem, layout: Layout, cuts: Cuts, *, split: bool) -> None:
        self.problem, self.layout, self.cuts, self.split = problem, layout, cuts, split
        ranks = layout.stage_ranks
        made: dict[object, _Stages] = {}
        self.stages: list[_Stages] = []
        for stage, own in enumerate(ranks):
            price = sync_price(problem.cluster, own, problem.training)
            # The first stage may have other buckets than the rest.
            key = len(own), slowest_speed(problem.cluster, own), price, stage == 0
            if key not in made:
                made[key] = self._stages_on(own, stage)
            self.stages.append(made[key])
        self.groups = _groups(ranks)
        self.sends = [
            [
                np.broadcast_to(each, cuts.nested.shape)[0]
                for each in traffic_times(cuts.totals.sent, link)
            ]
            if always_sent(here, there, layout.num_microbatches)
            else [np.zeros(len(cuts.nested))] * 2
            for link, (here, there) in zip(
                cut_links(problem.cluster, ranks), itertools.pairwise(ranks), strict=True
            )
        ]

    def of_groups(self, paths: Paths) -> Matrix:
        """Seconds that no order beats, for each path and each group of ranks.

        Infinite where one microbatch does not fit.
        """
        found = self._gathered(paths)
        path, ends = self._paths(paths, found)
        bounds = [
            np.maximum(self._work(path, ends[at], own), self._memory(path, found, ends[at], own))
            for at, own in enumerate(self.groups)
        ]
        return np.stack(bounds, axis=1)

    def _stages_on(self, ranks: Sequence[int], stage: int) -> _Stages:
        problem, cuts = self.problem, self.cuts
        cluster, o = problem.cluster, problem.cluster.action_overhead
        totals = on_replicas(cuts.totals, problem, len(ranks), slowest_speed(cluster, ranks))
        weights = totals.weight_grad_time if self.split else 0.0 * totals.backward_time
        price = sync_price(cluster, ranks, problem.training)
        freest = freest_totals(problem, self.layout, cuts)
        once = without_shared_state(problem, self.layout, cuts, freest)
        use = memory(once, problem, len(ranks), one_in_flight())
        moving = use.stash + use.workspace + use.receives + use.sends + use.reserve
        stash = freest.stash_bytes
        if is_behind(self.layout.stage_ranks, stage):
            # The stage ahead may have all that comes in.
            stash = np.maximum(stash - freest.received.bytes, 0)
        if self.split:
            stash = np.minimum(stash, cuts.totals.waiting_bytes)
        unshared = without_shared_ties(problem, cuts, totals)
        shown = (
            totals.forward_time + o,
            totals.backward_time - weights + o,
            weights,
            totals.update_time,
            time_after_backward(
                problem, unshared, price, len(ranks), stage=stage, split=self.split
            ),
            stash,
            total(use) - moving,
            use.workspace,
            made_gradients(once, problem.training),
        )
        return _Stages(*(np.broadcast_to(each, cuts.nested.shape) for each in shown))

    def _gathered(self, paths: Paths) -> _Stages:
        """The stages along each path, shape (partitions, stages)."""
        columns = [
            [each[paths[:, s], paths[:, s + 1]] for each in stages]
            for s, stages in enumerate(self.stages)
        ]
        return _Stages(*(np.stack(field, axis=1) for field in zip(*columns, strict=True)))

    def _paths(self, paths: Paths, found: _Stages) -> tuple[AnyOrderPath[Matrix], list[Matrix]]:
        """The path around each stage, and E for each group."""
        ends = [self._end(found, own) for own in self.groups]
        nothing = np.zeros((len(paths), 1))
        there, back = (
            np.column_stack(
                [nothing[:, :0]]
                + [sends[way][paths[:, s + 1]] for s, sends in enumerate(self.sends)]
            )
            for way in (0, 1)
        )
        receive, send = np.hstack([nothing, there]), np.hstack([there, nothing])
        send_back, receive_back = np.hstack([nothing, back]), np.hstack([back, nothing])
        f, i = found.forward, found.gradient
        path = MicrobatchPath(
            forward=f,
            backward=i,
            receive=receive,
            send=send,
            receive_back=receive_back,
            send_back=send_back,
            compute_before=_before(f),
            compute_beyond=_beyond(f + i),
            compute_after=_before(i),
            sends_before=_before(receive),  # pyright: ignore[reportArgumentType]
            sends_beyond=_beyond(send + receive_back),  # pyright: ignore[reportArgumentType]
            sends_after=_before(send_back),  # pyright: ignore[reportArgumentType]
        )
        first = next(at for at, own in enumerate(self.groups) if 0 in own)
        end = (found.weights[:, 0] + ends[first])[:, None]
        overlap = self.problem.cluster.sends_overlap
        return any_order_path(path, found.weights, end, sends_overlap=overlap), ends

    def _end(self, found: _Stages, own: Sequence[int]) -> Matrix:
        """E for one group."""
        if not RULES[self.problem.training.sync].sums_early:
            return found.end[:, own].sum(axis=1)
        # All updates follow, and the sync of the stage that runs last: it may be any.
        update, end = found.update[:, own], found.end[:, own]
        return update.sum(axis=1) + (end - update).min(axis=1)

    def _end_from(self, end: Matrix, path: AnyOrderPath[Matrix], stage: int) -> Matrix:
        """E; for the period without the path to a stage, since the rank starts on its own."""
        return end - path.arrival[:, stage] if self.problem.objective == "period" else end

    def _work(self, path: AnyOrderPath[Matrix], end: Matrix, own: Sequence[int]) -> Matrix:
        """The largest of (1)-(5) over all rows of stages on a group."""
        n = own_microbatches(self.layout, own[0])
        bounds: list[Matrix] = []
        for a, z in itertools.combinations_with_replacement(range(len(own)), 2):
            row = list(own[a : z + 1])
            work = Work(
                forward=n * (path.forward + path.send)[:, row].sum(axis=1),
                gradient=n * (path.gradient + path.send_back)[:, row].sum(axis=1),
                weights=n * path.weights[:, row].sum(axis=1),
                end=self._end_from(end, path, own[a]),
            )
            bounds += work_bounds(_at(path, own[a]), _at(path, own[z]), work)
        return np.maximum.reduce(bounds)

    def _memory(
        self, path: AnyOrderPath[Matrix], found: _Stages, end: Matrix, own: Sequence[int]
    ) -> Matrix:
        """The largest of (7)-(11) over the stages on a group."""
        cluster, ranks = self.problem.cluster, self.layout.stage_ranks[own[0]]
        fewest = self.layout.num_microbatches // len(ranks)
        usable = smallest_memory(cluster, ranks) - cluster.reserve_bytes
        free = usable - found.lasting[:, list(own)].sum(axis=1)
        kept, worst = np.zeros(len(free)), np.zeros(len(free))
        for s in own:
            kept = kept + found.stash[:, s]
            room = free - found.workspace[:, s]
            most = np.where(kept > 0, room // np.maximum(kept, 1), fewest)
            fits = (room >= kept) & (most >= 1)
            if fewest:
                most = np.clip(most, 1, fewest).astype(np.float64)
                own_end = self._end_from(end, path, s)
                bounds = memory_bounds(_at(path, s), fewest, most, own_end, split=self.split)
                worst = np.maximum.reduce(np.broadcast_arrays(worst, *bounds))
            worst = np.where(fits, worst, np.inf)
        # At the end of the step all gradients are there.
        return np.where(free >= found.made[:, list(own)].sum(axis=1), worst, np.inf)


def _groups(stage_ranks: StageRanks) -> list[list[int]]:
    """The stages on each group of ranks."""
    found: dict[tuple[int, ...], list[int]] = {}
    for stage, ranks in enumerate(stage_ranks):
        found.setdefault(tuple(sorted(ranks)), []).append(stage)
    return list(found.values())


def _at(path: AnyOrderPath[Matrix], stage: int) -> AnyOrderPath[Matrix]:
    """The path around one stage, shape (partitions,)."""
    return AnyOrderPath(*(each[:, stage] for each in path))


def _before(seconds: Matrix) -> Matrix:
    """For each stage, the sum over the stages ahead."""
    return np.cumsum(seconds, axis=1) - seconds


def _beyond(seconds: Matrix) -> Matrix:
    """For each stage, the sum over the stages behind."""
    return np.cumsum(seconds[:, ::-1], axis=1)[:, ::-1] - seconds
