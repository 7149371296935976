"""The baseline of equal layer counts: what a hand-written layout does.

Stage s of k takes layers ceil(s n / k) … ceil((s + 1) n / k) - 1.
"""

import itertools

from autopart.stage_load import Partition


def solve(num_layers: int, num_stages: int) -> Partition:
    """Cut `num_layers` layers into `num_stages` stages whose sizes differ by at most one."""
    ends = [-(-stage * num_layers // num_stages) for stage in range(num_stages + 1)]
    return tuple(tuple(range(a, b)) for a, b in itertools.pairwise(ends))
