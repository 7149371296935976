"""Optimizer state placed by the plan, in runs that are checked against the plain model."""

from types import SimpleNamespace

import msgspec
import pytest
import torch
from torch import nn

from autopart.errors import UsageError
from autopart.records.plan import Plan
from autopart.records.training import make_training
from autopart.runtime.engine.rank_optimizer import rank_optimizer
from autopart.runtime.engine.run_settings import RunSettings
from tests.support.runtime.on_ranks import run, saved_and_resumed
from tests.support.runtime.plans import capture, plan_for
from tests.support.runtime.rank_pool import RankPool

MODEL = "zoo:mlp-tiny"


def planned(*cuts: float, replicas: int = 1, zero1: bool = False, on_host: bool = False) -> Plan:
    plan = plan_for(MODEL, capture(MODEL, 2, "float64"), cuts, replicas=replicas, dtype="float64")
    stages = tuple(msgspec.structs.replace(s, optimizer_on_host=on_host) for s in plan.stages)
    training = msgspec.structs.replace(plan.training, zero1=zero1)
    return msgspec.structs.replace(plan, stages=stages, training=training)


@pytest.mark.slow
@pytest.mark.parametrize(
    "plan",
    [planned(replicas=2, zero1=True), planned(0.5, on_host=True)],
    ids=["ZeRO shards", "on the host"],
)
def test_steps_equal_the_plain_model_s(two_ranks: RankPool, plan: Plan):
    settings = RunSettings(model=MODEL, check=True, steps=2, optimizer="sgd-momentum")
    result = two_ranks.call(run, plan, settings)[0]
    assert result.check is not None and result.check.parameters <= 1e-9


@pytest.mark.slow
def test_training_continues_under_another_plan_from_saved_state(two_ranks: RankPool):
    """ZeRO shards on two replicas, then two stages with state on the host, then neither."""
    plans = [planned(replicas=2, zero1=True), planned(0.5, on_host=True), planned(0.5)]
    for resumed, straight in two_ranks.call(saved_and_resumed, plans):
        assert resumed == pytest.approx(straight, rel=1e-12)


@pytest.mark.slow
def test_an_optimizer_that_needs_whole_matrices_cannot_have_shards():
    with pytest.raises(
        UsageError, match=r"adafactor needs whole matrices; .*solve without --zero1"
    ):
        rank_optimizer(planned(replicas=2, zero1=True), None, "adafactor", None)  # type: ignore[arg-type]


def test_of_stages_with_one_parameter_the_first_says_where_its_state_lies():
    def program(**parameters: nn.Parameter) -> SimpleNamespace:
        module = nn.ParameterDict(parameters)
        return SimpleNamespace(module=module, parameters=tuple(module))

    shared, own = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(5))
    plan = planned(0.3, 0.6)
    for hosted, elements in ((0, 5), (2, 3)):
        stages = tuple(
            msgspec.structs.replace(stage, optimizer_on_host=at == hosted)
            for at, stage in enumerate(plan.stages)
        )
        executor = SimpleNamespace(
            # The later stage comes first.
            programs={2: program(shared=shared, own=own), 0: program(shared=shared)},
            parameters={"shared": shared, "own": own},
            shared=(),
            device=torch.device("cpu"),
            written=lambda: None,
        )
        of = msgspec.structs.replace(plan, stages=stages)
        optimizer = rank_optimizer(of, executor, "sgd-momentum", None)  # type: ignore[arg-type]
        for each in (shared, own):
            each.grad = torch.ones_like(each)
        optimizer.step()
        assert sum(tensor.numel() for tensor in optimizer.state) == elements


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "copies"), [("bfloat16-mixed", 1), ("bfloat16", 0)])
def test_parameters_have_master_copies_if_the_plan_says_so(precision: str, copies: int):
    plan = planned(0.5)
    training = make_training("bfloat16", precision=precision)
    weight = nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
    executor = SimpleNamespace(
        programs={},
        parameters={"w": weight},
        shared=(),
        device=torch.device("cpu"),
        written=lambda: None,
    )
    of = msgspec.structs.replace(plan, training=training)
    optimizer = rank_optimizer(of, executor, "sgd", None)  # type: ignore[arg-type]
    assert [tensor.dtype for tensor in optimizer.state] == [torch.float32] * copies
