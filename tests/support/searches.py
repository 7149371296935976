"""The planner's search for one problem."""

from autopart.records.problem import Problem
from autopart.search.incumbent import Outcome
from autopart.search.microbatch_sizes import search_sizes
from autopart.stopping.time_limit import deadline_in


def searched(problem: Problem, seconds: float = 60.0) -> Outcome:
    """The outcome of a search; raises InfeasibleError where the demands leave no shape."""
    return search_sizes([problem], "auto", deadline_in(seconds)).outcomes[0]
