"""Collectives that run again where a layer is recomputed, counted in real backwards."""

from collections import Counter
from collections.abc import Sequence

import pytest
import torch

from autopart.runtime.capture.stage_modules import split_layers
from autopart.runtime.sharding.counted import count_collectives
from autopart.runtime.sharding.group_graphs import GroupGraphs
from autopart.runtime.sharding.groups import LoneRank, registered
from autopart.runtime.sharding.local_graph import GROUP
from autopart.runtime.sharding.local_model import local_model
from autopart.runtime.transforms.layer_policies import (
    Policy,
    apply_policies,
    recomputing,
    selective,
)
from tests.support.runtime.sharded_models import Case, known_model

DEGREE, LAYER = 2, "blocks.2"
POLICIES = {"recompute": recomputing, "selective": selective}


class Counting(LoneRank):
    """One rank that counts its calls."""

    is_alone = False

    def __init__(self) -> None:
        super().__init__(DEGREE)
        self.calls: Counter[str] = Counter()

    def all_reduce(self, tensor: torch.Tensor, operation: str) -> torch.Tensor:
        self.calls["all_reduce"] += 1
        return super().all_reduce(tensor, operation)

    def all_gather(self, tensor: torch.Tensor) -> Sequence[torch.Tensor]:
        self.calls["all_gather"] += 1
        return super().all_gather(tensor)

    def reduce_scatter(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        self.calls["reduce_scatter"] += 1
        return super().reduce_scatter(parts)


def calls_in_backward(case: Case, policy: Policy | None, *, sequence: bool) -> Counter[str]:
    """Calls of one layer's backward, with the second forward that it may have."""
    local = local_model(case.sharded(DEGREE, sequence_parallel=sequence), 0)
    (stage,) = split_layers(local, [LAYER])
    apply_policies(stage, {LAYER: policy} if policy else {})
    leaves = dict(zip([leaf.name for leaf in local.inputs], case.leaves, strict=True))
    received = [
        torch.randn(meta.shape, dtype=meta.dtype, requires_grad=meta.requires_grad)
        for meta in stage.received_meta
    ]
    group = Counting()
    with registered(GROUP, group):
        outputs = stage.module(*received, *(leaves[name] for name in stage.inputs))
        group.calls.clear()
        torch.stack([output.sum() for output in outputs]).sum().backward()
    return group.calls


@pytest.mark.slow
@pytest.mark.parametrize("sequence", [False, True])
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("model", ["zoo:gpt2-tiny", "zoo:llama-tiny"])
def test_the_profile_lists_the_collectives_that_run_again(
    model: str, policy: str, sequence: bool
) -> None:
    case = known_model(model)
    sharded = case.sharded(DEGREE, sequence_parallel=sequence)
    listed = count_collectives(GroupGraphs(sharded.captured, sharded), local_model(sharded, 0))[
        LAYER
    ]
    again = calls_in_backward(case, POLICIES[policy], sequence=sequence)
    again -= calls_in_backward(case, None, sequence=sequence)
    assert again == Counter(one.kind for one in listed if one.recomputed)
    assert again
