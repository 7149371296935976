"""The baseline of balanced parameters: DeepSpeed's `partition_method="parameters"` in words.

Among all ways to cut the graph into k stages, one whose largest stage has the fewest parameter
bytes; ties go to the stages that are filled first. It looks at neither time nor memory.
"""

from autopart.cuts import Cuts, partition_of
from autopart.solvers.chain import best_path
from autopart.stage_load import Partition


def solve(cuts: Cuts, num_stages: int) -> Partition:
    """Cut so that the largest stage's parameters are fewest."""
    found = best_path([cuts.loads.weight_bytes.astype(float)] * num_stages, cuts.nested)
    assert found is not None, "every stage may have any size"
    return partition_of(cuts, found.path)
