"""What the pass refuses, what the check finds, and the tensors of ranks beside whole ones."""

import pytest
import torch
from torch import nn

from autopart.errors import ModelError
from autopart.runtime.sharding import local_graph
from autopart.runtime.sharding.check import check_shards
from autopart.runtime.sharding.local_model import local_model, local_tensor, whole_tensor
from autopart.runtime.sharding.states import ParameterShard
from tests.support.runtime.sharded_models import WIDTH, Attention, Gated, Parallel, small_model


class Scaled(nn.Module):
    """A scale for each position, and no product."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.scale


@pytest.mark.slow
def test_a_degree_that_shards_nothing_names_tensors_and_degrees() -> None:
    case = small_model(nn.Linear(WIDTH, 6))
    with pytest.raises(ModelError) as raised:
        case.sharded(4)
    line = str(raised.value)
    assert "'weight' (6x16)" in line and "multiple of 4" in line
    assert "degrees 2, 3, 6 would do" in line and "\n" not in line


@pytest.mark.slow
def test_a_model_without_products_has_no_degree() -> None:
    with pytest.raises(ModelError, match="its input is whole; no degree would do"):
        small_model(Scaled()).sharded(2)


@pytest.mark.slow
def test_a_parameter_with_a_gradient_hook_is_refused() -> None:
    model = Gated()
    model.scale.register_hook(lambda gradient: gradient)
    with pytest.raises(ModelError, match="'scale' has a gradient hook"):
        small_model(model).sharded(2)


@pytest.mark.slow
def test_the_check_finds_a_gradient_that_is_not_summed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_graph, "copy", lambda x, group: x)
    case = small_model(nn.Sequential(Parallel(), Parallel()))
    with pytest.raises(ModelError, match=r"the gradient of '1\.norm\.\w+' by .*a rule of"):
        check_shards(case.sharded(2), case.leaves)


@pytest.mark.slow
def test_the_check_finds_a_result_that_is_not_summed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_graph, "reduce", lambda x, group: x)
    case = small_model(Gated())
    with pytest.raises(ModelError, match="loss by"):
        check_shards(case.sharded(2), case.leaves)


@pytest.mark.slow
def test_a_local_model_has_the_captured_models_names_and_a_ranks_own_tensors() -> None:
    case = small_model(nn.Sequential(Parallel(), Attention("plain", 8, 2)))
    sharded = case.sharded(4)
    whole = dict(case.captured.module.named_parameters())
    ranks = [local_model(sharded, rank) for rank in range(4)]
    for local in ranks:
        assert [la.name for la in local.layers] == [la.name for la in case.captured.layers]
        assert [v.name for v in local.values] == [v.name for v in case.captured.values]
        assert {la.fingerprint for la in local.layers} == {la.fingerprint for la in ranks[0].layers}
    for name, _ in ranks[0].module.named_parameters():
        own = [local.module.get_parameter(name).detach() for local in ranks]
        assert torch.equal(whole_tensor(sharded, name, own), whole[name])


@pytest.mark.parametrize(
    "shard", [ParameterShard(0), ParameterShard(1, (6, 4, 2)), ParameterShard(0, (), 2)]
)
def test_slices_of_all_ranks_give_the_whole_tensor(shard: ParameterShard) -> None:
    whole = torch.arange(48.0).view(4, 12)
    degree = 2 * shard.copies
    slices = [local_tensor(whole, shard, degree, rank) for rank in range(degree)]
    assert all(one.numel() == 24 for one in slices)
    assert sum(float(one.sum()) for one in slices) == float(whole.sum()) * shard.copies
