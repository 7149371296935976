"""Stages with sharded state: their collectives are torch's own, and their hooks are refused."""

from collections import Counter

import pytest
import torch
from torch import nn

from autopart.errors import ModelError
from autopart.runtime.capture.stage_modules import split_stages
from autopart.runtime.engine.group_part import DataPart
from autopart.runtime.engine.sharded_state import ShardedState
from autopart.runtime.models.model import TrainingModel
from autopart.runtime.sharding.shard_groups import LonePlace
from tests.support.runtime.fully_sharded import ours_and_fully_shards
from tests.support.runtime.lone_groups import LateGroup
from tests.support.runtime.plans import capture
from tests.support.runtime.rank_pool import RankPool
from tests.support.runtime.sharded_step import sharded_step

MLP, LLAMA = "zoo:mlp-tiny", "zoo:llama-tiny"
COUNT_BYTES = 8
"""A cross-entropy sums the number of rows with labels over the processes."""


@pytest.mark.slow
@pytest.mark.parametrize(("model", "layers"), [(MLP, 16), (LLAMA, 9)])
def test_a_zero3_step_has_the_collectives_of_fully_shard(
    two_ranks: RankPool, model: str, layers: int
) -> None:
    microbatches = 3
    for ours, theirs in two_ranks.call(ours_and_fully_shards, model, microbatches):
        counts = {key: n for key, n in ours.bytes.items() if key[0] == "c10d::allreduce_"}
        labels = microbatches if model == LLAMA else 0
        assert counts == ({("c10d::allreduce_", COUNT_BYTES): labels} if labels else {})
        assert Counter(ours.bytes) - Counter(counts) == Counter(theirs.bytes)
        assert sum(theirs.bytes.values()) == 3 * layers * microbatches
        kinds = {kind: n for kind, n in ours.kinds.items() if "allreduce" not in kind}
        assert kinds == theirs.kinds and sum(kinds.values()) == 3 * layers


class Passing(nn.Module):
    """A layer without dropout returns its input as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)
        self.nothing = nn.Dropout(0.0)
        self.third = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.third(self.nothing(self.second(self.first(x))))


@pytest.mark.parametrize("splits", [False, True])
def test_a_layer_that_returns_its_input_ends_no_other_layer(*, splits: bool) -> None:
    torch.manual_seed(0)
    x, target = torch.randn(2, 4), torch.randn(2, 4)
    model = TrainingModel(Passing(), nn.functional.mse_loss)
    nn.functional.mse_loss(model.model(x), target).backward()
    wanted = {
        name: p.grad.clone() for name, p in model.model.named_parameters() if p.grad is not None
    }
    model.model.zero_grad()
    part = DataPart(LateGroup(), "zero3", "microbatch", 1.0)
    state = sharded_step(model, (x, target), (x, target), part, splits=splits)
    assert wanted.keys() == state.parameters.keys()
    for name, parameter in state.parameters.items():
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad.view_as(wanted[name]), wanted[name])


def test_parameters_with_gradient_hooks_are_refused() -> None:
    captured = capture(MLP)
    programs = split_stages(captured, [[layer.name for layer in captured.layers]])
    next(programs[0].module.parameters()).register_hook(lambda gradient: gradient)
    with pytest.raises(ModelError, match="has a gradient hook"):
        ShardedState(
            dict(enumerate(programs)), programs, DataPart(LonePlace(2), "zero3", "microbatch", 0.5)
        )


@pytest.mark.slow
def test_a_tied_parameter_is_a_unit_of_its_own_on_each_rank() -> None:
    captured = capture("zoo:gpt2-tiny")
    names = [layer.name for layer in captured.layers]
    programs = split_stages(captured, [names[:3], names[3:]])
    part = DataPart(LonePlace(2), "zero2", "microbatch", 0.5)
    of_ranks = [ShardedState({index: programs[index]}, programs, part) for index in range(2)]
    units = [state.unit("tokens.weight") for state in of_ranks]
    assert [list(unit.parameters) for unit in units] == [["tokens.weight"]] * 2
    assert torch.equal(units[0].own, units[1].own)
