"""The leanest partition where the stages of a rank peak together: the fewest bytes on the fullest rank.

Symbols   i_0 < i_1 < ..   the cuts along a path; stage s is [i_s, i_(s+1)]
          peak_r           bytes on rank r over all its stages together (autopart/cost/memory_limits.py)

The stages of one rank peak together, so no stage has a number of bytes of its own. Beginnings
(i_0 .. i_s) grow stage by stage, all side by side. A beginning's peak_r counts its stages alone.
Each further stage only adds bytes, so this is a lower bound. Beginnings that need as much as a known
path are dropped. Past `MOST_BEGINNINGS` only the leanest are followed, and the answer may not be the
best. Small graphs stay below that.

Where policies free stash, peak_r counts the least stash that they leave, and the workspace without them
(`freest_totals`). So it is a lower bound again. Whole paths are then looked at in the order of these bounds, each with
the policies that leave its ranks the fewest bytes, until no bound is below the best one.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from autopart.activations.policies import chooses_by_rank
from autopart.activations.shared_ranks import SharedRanks
from autopart.activations.shared_totals import freest_totals
from autopart.bounds.microbatch_path import Mask
from autopart.cost.cuts import Cuts, allowed, totals_at
from autopart.cost.memory_limits import most_missing, most_missing_on_host
from autopart.cost.repeated_ties import without_repeats
from autopart.cost.stage_totals import Array, StageTotals, Traffic
from autopart.cost.tied_syncs import tied_copies
from autopart.records.layouts import Layout
from autopart.records.problem import Problem
from autopart.solvers import cuts_dp
from autopart.stopping.time_limit import check_time

MOST_BEGINNINGS = 4096
BEYOND = 1 << 50
"""Bytes that no rank lacks on the device."""
AT_ONCE = 64
"""Whole paths whose policies are chosen before their bounds are compared again."""

Paths = npt.NDArray[np.int64]
"""Beginnings of paths over the cuts, shape (beginnings, cuts so far)."""


def leanest_path(problem: Problem, layout: Layout, cuts: Cuts) -> tuple[int, ...] | None:
    """The path whose fullest rank lacks the fewest bytes, or has the most left; None where pins allow none."""
    known = cuts_dp.least_memory(problem, layout, cuts)
    if known is None:
        return None
    best, least = known.path, int(_exact_missing(problem, layout, cuts, np.array([known.path]))[0])
    stages = len(layout.stage_ranks)
    may = [allowed(cuts, problem.graph, problem.demands, stage) for stage in range(stages)]
    # Step 1: from the last cut on, the cuts from which later stages can go to the end.
    ends: list[Mask] = [np.zeros(len(cuts.nested), dtype=bool) for _ in range(stages + 1)]
    ends[-1][-1] = True
    for stage in reversed(range(stages)):
        ends[stage] = np.logical_or.reduce(may[stage] & ends[stage + 1][None, :], axis=1)
    paths = np.zeros((1, 1), dtype=np.int64)
    for stage in range(stages):
        check_time()
        # Step 2: put one more stage behind each beginning.
        which, end = np.nonzero((may[stage] & ends[stage + 1][None, :])[paths[:, -1]])
        paths = np.hstack([paths[which], end[:, None]])
        # Step 3: keep those that may need less than the known path, the leanest first.
        missing = _missing(problem, layout, cuts, paths)
        order = np.argsort(missing, kind="stable")
        order = order[missing[order] < least][:MOST_BEGINNINGS]
        paths = paths[order]
        if not len(paths):
            return best
    # Step 4: whole paths with the policies that need the fewest bytes.
    bounds = _missing(problem, layout, cuts, paths)
    for start in range(0, len(paths), AT_ONCE):
        check_time()
        if bounds[start] >= least:
            break
        some = paths[start : start + AT_ONCE]
        missing = _exact_missing(problem, layout, cuts, some)
        at = int(np.argmin(missing))
        if missing[at] < least:
            best, least = tuple(int(cut) for cut in some[at]), int(missing[at])
    return best


def _exact_missing(
    problem: Problem, layout: Layout, cuts: Cuts, paths: Paths
) -> npt.NDArray[np.int64]:
    """Bytes that the fullest rank lacks with the policies that need the fewest, and what it lacks on the host."""
    if not chooses_by_rank(problem, layout):
        return _missing(problem, layout, cuts, paths)
    roomless = SharedRanks(problem, layout, cuts, fewest_bytes=True)
    totals = _once(problem, layout, cuts, paths, roomless.totals(paths))
    missing = most_missing(problem, layout, totals)
    on_host = most_missing_on_host(problem, layout, totals)
    # A path without room on the host must not count as the leanest one.
    return missing if on_host is None else missing + BEYOND * (on_host > 0)


def _missing(problem: Problem, layout: Layout, cuts: Cuts, paths: Paths) -> npt.NDArray[np.int64]:
    """Bytes that the fullest rank lacks with the stages along each beginning."""
    known, freest = paths.shape[1] - 1, freest_totals(problem, layout, cuts)
    totals = [
        totals_at(freest, paths[:, stage], paths[:, stage + 1])
        if stage < known
        else _no_layers(len(paths))
        for stage in range(len(layout.stage_ranks))
    ]
    return most_missing(problem, layout, _once(problem, layout, cuts, paths, totals))


def _once(
    problem: Problem,
    layout: Layout,
    cuts: Cuts,
    paths: Paths,
    totals: Sequence[StageTotals[Array]],
) -> list[StageTotals[Array]]:
    """The totals with the tied parameters of each rank once; stages that are not known yet have none."""
    known = tied_copies(problem, cuts, paths)
    later = ((0, 0), (0, 0), (0, len(layout.stage_ranks) - known.shape[-1]))
    return without_repeats(problem, layout.stage_ranks, totals, np.pad(known, later))


def _no_layers(count: int) -> StageTotals[Array]:
    """The totals for stages that are not known yet."""
    none = np.zeros(count, dtype=np.int64)
    fields: dict[str, Any] = dict.fromkeys(StageTotals._fields, none)
    fields["received"] = fields["sent"] = Traffic(none, none, none, none)
    return StageTotals(**fields)
