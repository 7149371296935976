"""An export refuses layers that stand backwards, where their names alone show it."""

import msgspec
import pytest

from autopart.errors import PlanError
from autopart.exporters.layer_order import check_layer_order
from autopart.exporters.targets import TARGETS, export_plan
from autopart.records.plan import Plan, Stage
from tests.support.samples import sample_plan


def with_layers(*stages: str) -> Plan:
    plan = sample_plan()
    made = tuple(Stage(layers=tuple(names.split()), ranks=(0,)) for names in stages)
    return msgspec.structs.replace(plan, stages=made)


def backwards(plan: Plan) -> Plan:
    stages = tuple(
        msgspec.structs.replace(stage, layers=tuple(reversed(stage.layers)))
        for stage in plan.stages
    )
    return msgspec.structs.replace(plan, stages=stages)


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        (("h.1 h.0", "h.3 h.2"), r"stage 0 lists layer 'h.1' before 'h.0', and so backwards do"),
        (("4 3 2 1 0", "8 7 6 5", "9", "loss 12 11 10"), "stage 0 lists layer '4' before '3'"),
        (("h.9 embed", "h.11 h.10", "head norm h.13 h.12"), "stage 1 lists layer 'h.11' before"),
        (("a.0 a.1 b.1 b.0", "b.3 b.2 head"), "stage 0 lists layer 'b.1' before 'b.0'"),
        (("a@1 b a",), "stage 0 lists layer 'a' behind call 1 of the same module"),
        (("a@2", "b a@1"), "stage 1 lists layer 'a@1' behind call 2"),
    ],
)
def test_layers_that_stand_backwards_are_named(stages: tuple[str, ...], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        check_layer_order(with_layers(*stages))


@pytest.mark.parametrize(
    "stages",
    [
        ("h.0 h.1", "h.2 h.3"),
        ("up.3 up.2", "up.1 up.0"),
        ("up.3.b.1 up.3.b.0", "up.2.b.1 up.2.b.0"),
        ("s.2.branch.1 s.2.branch.0", "s.3.branch.1 s.3.branch.0"),
        ("b.1 b.0 b.2", "b.4 b.3"),
        ("h.1 h.0", "h.2", "h.3"),
        ("a a@1", "b a@2 loss"),
        ("encoder.1 encoder.0 decoder.0", "decoder.1"),
    ],
)
def test_a_model_may_count_its_layers_as_it_likes(stages: tuple[str, ...]) -> None:
    check_layer_order(with_layers(*stages))


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_refuses_a_plan_with_its_layers_backwards(target: str) -> None:
    plan = sample_plan()
    assert sum(len([la for la in s.layers if la.startswith("h.")]) > 1 for s in plan.stages) > 1
    with pytest.raises(PlanError, match="backwards"):
        export_plan(backwards(plan), target)
