from collections import Counter

import msgspec
import pytest

from autopart.cost.crossings import crossings_of
from tests.support.samples import MIB, sample_plan


@pytest.mark.parametrize("microbatches", [2, 10, 16])
def test_what_crosses_is_the_sum_over_all_microbatches(microbatches: int) -> None:
    plan = sample_plan(3, 2, microbatches)
    # Other ranks than the planner's: stages with 2 and 3 replicas take all turns of them.
    ranks = ((0,), (1, 2), (3, 4, 5))
    stages = tuple(
        msgspec.structs.replace(stage, ranks=own)
        for stage, own in zip(plan.stages, ranks, strict=True)
    )
    plan = msgspec.structs.replace(plan, stages=stages)
    expected: Counter[tuple[int, int]] = Counter()
    between = [0, 0]
    per_node = plan.cluster.gpus_per_node
    for cut in range(2):
        for microbatch in range(plan.num_microbatches):
            one = ranks[cut][microbatch % len(ranks[cut])] // per_node
            other = ranks[cut + 1][microbatch % len(ranks[cut + 1])] // per_node
            expected[min(one, other), max(one, other)] += 2 * MIB
            between[cut] += one != other
    found = crossings_of(plan)
    assert found.nodes == expected
    assert [cut.between_nodes for cut in found.cuts] == between
    assert all(cut.forward_bytes == cut.backward_bytes == MIB for cut in found.cuts)
    assert all(cut.between_nodes + cut.within_nodes == plan.num_microbatches for cut in found.cuts)


def test_messages_that_stay_on_their_rank_cross_nothing() -> None:
    plan = sample_plan(2)
    stages = tuple(msgspec.structs.replace(stage, ranks=(0,)) for stage in plan.stages)
    found = crossings_of(msgspec.structs.replace(plan, stages=stages))
    assert found.nodes == {}
    assert (found.cuts[0].between_nodes, found.cuts[0].within_nodes) == (0, 0)
