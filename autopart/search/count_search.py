"""Plans and lower bounds for one GPU kind, over numbers of GPUs.

GPUs may stay idle. So every plan on n whole nodes is a plan on more of them, with the same step. The best step
thus never grows with the number of whole nodes, and a lower bound for one number holds for all smaller ones. Groups on several
nodes divide the nodes. Where they are searched, this holds for multiples of n alone. A part of a node has links and a share of its host's memory of its own. So parts are bounded one by one.
"""

import math
import time
from dataclasses import dataclass
from typing import NamedTuple

from autopart.errors import AutopartError, InfeasibleError
from autopart.pricing import Decision
from autopart.records.plan import Plan
from autopart.records.plan_degrees import gpus_of_ranks
from autopart.records.rank_group import group_size
from autopart.search.microbatch_sizes import SizeOutcomes, search_sizes, value_of
from autopart.search.options import SolveOptions
from autopart.search.planner import Question, all_sizes_tried, plan_of_outcomes, question_of
from autopart.search.size_options import GpuCount, PricedKind
from autopart.stopping.time_limit import OutOfTime, deadline_in, limited, passed

NOTHING = math.inf
"""The lower bound of a number of GPUs on which no plan fits."""


class FoundDecision(NamedTuple):
    """The best decision found on a number of GPUs. Its plan is written when it is asked for."""

    asked: Question
    outcomes: SizeOutcomes
    step: float
    """Seconds from step to step."""
    began: float
    """The reading of `time.perf_counter()` at which its search began."""

    def plan(self) -> Plan:
        """The plan with its certificate."""
        return plan_of_outcomes(self.asked, self.outcomes, self.began)

    @property
    def decision(self) -> Decision:
        """The decision itself."""
        assert self.outcomes.best is not None
        decision = self.outcomes.outcomes[self.outcomes.best].best
        assert decision is not None
        return decision

    @property
    def nodes_in_use(self) -> int:
        """Nodes on which some rank has a stage."""
        assert self.outcomes.best is not None
        own, ranks = self.decision, self.decision.layout.stage_ranks
        whole = group_size(self.asked.searched[self.outcomes.best].group)
        degrees = own.degrees or (whole,) * len(ranks)
        of_rank = [whole] * (1 + max(map(max, ranks)))
        for degree, stage in zip(degrees, ranks, strict=True):
            for rank in stage:
                of_rank[rank] = degree
        spans, each = gpus_of_ranks(of_rank), self.asked.cluster.gpus_per_node
        return len({gpu // each for stage in ranks for rank in stage for gpu in spans[rank]})


@dataclass(slots=True)
class CountState:
    """What is known about one number of GPUs."""

    bound: float = 0.0
    """Seconds from step to step that no plan on these GPUs beats, by their own bounds and searches."""
    found: FoundDecision | None = None
    """The best decision found."""
    error: AutopartError | None = None
    """Why the question cannot be asked of these GPUs; no proof."""

    def has_below(self, seconds: float) -> bool:
        """Whether a decision was found that takes less than so many seconds."""
        return self.found is not None and self.found.step < seconds


def _may_leave_nodes(options: SolveOptions) -> bool:
    """Whether rank groups on several nodes are searched."""
    words = {options.context, options.expert, options.shard}
    return not words <= {"1", "none", "zero1", "none,zero1"}


class KindSearch:
    """All numbers of GPUs of one kind."""

    def __init__(self, kind: PricedKind, options: SolveOptions) -> None:
        self.kind, self.options = kind, options
        self.states: dict[GpuCount, CountState] = {}

    def state(self, count: GpuCount) -> CountState:
        """What is known about a number of GPUs, without the proofs for others."""
        return self.states.setdefault(count, CountState())

    def bound(self, count: GpuCount) -> tuple[float, GpuCount]:
        """Seconds that no plan on a number of GPUs beats, and the number for which this was proven."""
        able = [other for other in self.states if self.holds_plans_of(other, count)]
        best = max(able, key=lambda other: self.states[other].bound, default=count)
        own = self.state(count).bound
        found = self.states[best].bound
        return (own, count) if own >= found else (found, best)

    def holds_plans_of(self, more: GpuCount, fewer: GpuCount) -> bool:
        """Whether each plan on `fewer` GPUs is one on `more`: both are whole nodes, which groups divide alike."""
        each = self.kind.node.gpus_per_node
        if more.gpus % each or fewer.gpus % each:
            return False
        if _may_leave_nodes(self.options):
            return more.gpus % fewer.gpus == 0
        return more.gpus >= fewer.gpus

    def search(self, count: GpuCount, beat: float, seconds: float) -> None:
        """Search for a plan on a number of GPUs that takes less than `beat` seconds, for so many seconds."""
        own = self.state(count)
        began, deadline = time.perf_counter(), deadline_in(seconds)
        try:
            with limited(deadline):
                asked = question_of(self.kind.profiles, count.of(self.kind.node), self.options)
            found = search_sizes(asked.problems, asked.solver, deadline, beat)
        except InfeasibleError:
            own.bound = NOTHING
            return
        except OutOfTime:
            return
        except AutopartError as error:
            own.error = error
            return
        bound = min(outcome.lower_bound for outcome in found.outcomes)
        if found.best is not None:
            step = value_of(asked.problems[found.best], found.outcomes[found.best])
            if step < beat and not own.has_below(step):
                own.found = FoundDecision(asked, found, step, began)
        elif beat == NOTHING and not passed(deadline) and all_sizes_tried(asked.searched, found):
            bound = NOTHING
        own.bound = max(own.bound, bound)

    def lacks_memory(self, count: GpuCount, seconds: float) -> bool:
        """Whether it is proven that no plan fits, after a search of so many seconds where this is open."""
        own = self.state(count)
        if self.bound(count)[0] < NOTHING and own.found is None:
            self.search(count, NOTHING, seconds)
        return self.bound(count)[0] == NOTHING
