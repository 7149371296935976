import itertools

import msgspec
import pytest
import torch
from torch import fx, nn

from autopart.errors import ModelError, PlanError
from autopart.records.plan import Plan
from autopart.records.training import make_training
from autopart.runtime.capture.capture import capture_model
from autopart.runtime.engine.plan_match import capture_for_plan, check_can_run, place_on
from autopart.runtime.models.model import TrainingModel
from tests.support.runtime.plans import plan_for

BATCH = ((torch.zeros(2, 8),), None)


def model(count: int = 3, width: int = 8) -> TrainingModel:
    layers = [nn.Linear(8, width), *(nn.Linear(width, width) for _ in range(count - 1))]
    return TrainingModel(nn.Sequential(*layers), lambda y, _: y.sum(), name="model.py")


def plan(of: TrainingModel, granularity: str = "block") -> Plan:
    return plan_for("model.py", capture_model(of, BATCH, granularity=granularity), [0.5])


def test_a_plan_s_own_model_is_captured_in_its_layers():
    captured = capture_for_plan(plan(model()), model(), BATCH)
    assert [layer.name for layer in captured.layers] == ["0", "1", "2", "loss"]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(self.up(x).relu())


@pytest.mark.slow
@pytest.mark.parametrize("granularity", ["block", "module"])
def test_the_model_is_captured_in_the_plan_s_layers(granularity: str):
    blocks = TrainingModel(nn.Sequential(Block(), Block()), lambda y, _: y.sum(), name="m")
    of = plan(blocks, granularity)
    captured = capture_for_plan(of, blocks, BATCH)
    planned = [name for stage in of.stages for name in stage.layers]
    assert [layer.name for layer in captured.layers] == planned


@pytest.mark.slow
def test_a_plan_for_a_longer_model_names_the_missing_layers():
    with pytest.raises(PlanError, match=r"the plan has '2', which the model lacks") as raised:
        capture_for_plan(plan(model(3)), model(2), BATCH)
    assert "model.py" in str(raised.value)


@pytest.mark.slow
def test_a_plan_for_a_shorter_model_names_the_new_layers():
    with pytest.raises(PlanError, match=r"the model has '3', '4', '5', '6' and 2 more"):
        capture_for_plan(plan(model(3)), model(9), BATCH)


@pytest.mark.slow
def test_a_plan_for_other_shapes_says_that_the_layers_are_the_same():
    with pytest.raises(PlanError, match=r"same layers, but its operations or shapes differ"):
        capture_for_plan(plan(model()), model(width=16), BATCH)


@pytest.mark.slow
def test_a_model_that_changes_from_call_to_call_is_the_reason_why_a_plan_does_not_match():
    calls = itertools.count(1)

    class Changing(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * next(calls)

    changing = TrainingModel(Changing(nn.Linear(8, 8), nn.Linear(8, 8)), lambda y, _: y.sum())
    with pytest.raises(ModelError, match=r"two captures of the forward differ .*at random"):
        capture_for_plan(plan(changing), changing, BATCH)


@pytest.mark.slow
def test_layers_that_no_granularity_has_are_named():
    of = plan(model())
    first, second = of.stages
    renamed = msgspec.structs.replace(second, layers=("elsewhere", *second.layers[1:]))
    with pytest.raises(PlanError, match=r"the plan has 'elsewhere', which the model lacks"):
        capture_for_plan(msgspec.structs.replace(of, stages=(first, renamed)), model(), BATCH)


def test_gradients_in_another_dtype_than_the_weights_are_refused():
    of, training = plan(model()), make_training("bfloat16", gradient_dtype="float32")
    origin = msgspec.structs.replace(of.origin, dtype="bfloat16")
    with pytest.raises(PlanError, match=r"sums gradients in float32, and a run .* in bfloat16"):
        check_can_run(msgspec.structs.replace(of, training=training, origin=origin))


class WithPositions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.register_buffer("scale", torch.ones(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x) * self.scale + torch.arange(8, device=x.device)


def test_tensors_that_the_graph_creates_move_with_its_stage():
    training = TrainingModel(WithPositions(), lambda y, _: y.sum(), name="m")
    module = capture_model(training, BATCH).module
    burned_in = [n for n in module.graph.nodes if "cpu" in f"{n.args}{n.kwargs}"]
    assert burned_in, "the graph names the device that it was captured on"
    place_on(module, torch.device("meta"))
    assert isinstance(module, fx.GraphModule) and module(torch.zeros(2, 8, device="meta")).is_meta
