"""The two baselines of a plan. They look at neither seconds nor memory.

Uniform layers: as many layers per stage as possible. Balanced parameters: the largest stage has the fewest parameter
bytes, as DeepSpeed's `partition_method="parameters"` does. Ties fill earlier stages first.
"""

import itertools

from autopart.cost.cuts import Cuts, partition_of
from autopart.records.layouts import Partition
from autopart.solvers.cuts_dp import best_path


def uniform_layers(num_layers: int, num_stages: int) -> Partition:
    """Cut `num_layers` layers into `num_stages` stages whose sizes differ by at most one."""
    ends = [-(-stage * num_layers // num_stages) for stage in range(num_stages + 1)]
    return tuple(tuple(range(a, b)) for a, b in itertools.pairwise(ends))


def balanced_parameters(cuts: Cuts, num_stages: int) -> Partition:
    """Cut so that the largest stage has the fewest parameter bytes."""
    found = best_path([cuts.totals.weight_bytes.astype(float)] * num_stages, cuts.nested)
    assert found is not None, "every stage may have any size"
    return partition_of(cuts, found.path)
