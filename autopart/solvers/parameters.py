"""The baseline of balanced parameters: DeepSpeed's `partition_method="parameters"` in words.

Among all cuts of the graph's order into k stages, one whose largest stage has the fewest parameter
bytes; ties go to the stages that are filled first. It looks at neither time nor memory.
"""

from autopart.cost import Number, Partition
from autopart.solvers.chain import cut_chain


def solve(weight_bytes: Number, num_stages: int) -> Partition:
    """Cut so that the largest stage's `weight_bytes` [i, j] is smallest."""
    found = cut_chain([weight_bytes.astype(float)] * num_stages)
    assert found is not None, "every stage may have any size"
    return found.partition
