"""Parameters that share memory without being one are refused: stages would train them apart."""

import pytest
import torch
from torch import nn

from autopart.errors import ModelError
from autopart.runtime.models.model import build_training_model
from autopart.runtime.models.shared_memory import check_apart
from autopart.zoo.source import ModelSource


class Pair(nn.Module):
    """Two linear layers, the second with a given weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)


def pair(kind: str) -> Pair:
    model = Pair()
    weight = model.first.weight
    whole = torch.zeros(4, 8)
    match kind:
        case "data":
            model.second.weight = nn.Parameter(weight.data)
        case "transposed":
            model.second.weight = nn.Parameter(weight.data.t())
        case "a part":
            model.second.bias = nn.Parameter(weight.data[2])
        case "a buffer":
            model.second.register_buffer("copy", weight.data)
        case "tied":
            model.second.weight = weight
        case "columns":
            model.first.weight = nn.Parameter(whole[:, :4])
            model.second.weight = nn.Parameter(whole[:, 4:])
        case "halves":
            model.first.weight = nn.Parameter(whole.view(8, 4)[:4])
            model.second.weight = nn.Parameter(whole.view(8, 4)[4:])
        case _:
            assert kind == "frozen"
            model.second.weight = nn.Parameter(weight.data)
            model.requires_grad_(False)
    return model


@pytest.mark.parametrize("kind", ["data", "transposed", "a part", "a buffer"])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_memory_that_two_parameters_share_is_refused(kind: str, device: str) -> None:
    source = ModelSource("pair", lambda: pair(kind), lambda count: torch.zeros(count, 4))
    with pytest.raises(
        ModelError, match=r"'first.weight' and 'second.* share memory, .*; "
    ) as said:
        build_training_model(source, device=device)
    assert "\n" not in str(said.value)


@pytest.mark.parametrize("kind", ["tied", "columns", "halves", "frozen"])
def test_one_parameter_and_disjoint_views_are_no_such_case(kind: str) -> None:
    check_apart(pair(kind), "pair")
