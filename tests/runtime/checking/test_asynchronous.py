"""Runs without flushes, checked against the plain model trained with the same older weights."""

import msgspec
import pytest
import torch
from torch import nn

from autopart.records.plan import Plan
from autopart.records.run_result import CheckResult
from autopart.runtime.checking.plain_optimizer import PlainOptimizer
from autopart.runtime.checking.reference_run import run_reference
from autopart.runtime.checking.weight_history import WeightHistory
from autopart.runtime.engine.run_settings import RunSettings
from tests.runtime.engine.test_asynchronous import LINE
from tests.runtime.engine.test_placements import plan
from tests.support.long_tests import long_tests
from tests.support.runtime.on_ranks import run, run_with_still_older_weights
from tests.support.runtime.rank_pool import RankPool

PIPEDREAM, TWO_BUFFERED = "pipedream", "pipedream-2bw"


class Shifted(nn.Module):
    """Two weights with separate losses (w - x)^2 / 2, whose gradient is w - x."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (nn.Parameter(torch.ones((), dtype=torch.float64)) for _ in "12")

    def forward(self, inputs: tuple[torch.Tensor], target: torch.Tensor) -> torch.Tensor:
        (x,) = inputs
        return ((self.first - x) ** 2 + (self.second - x) ** 2) / 2


def test_the_plain_model_runs_with_older_weights():
    """Each weight follows w(u + 1) = w(u) - lr mean over m of (w(version) - m)."""
    delays, lr, n = {"first": 2, "second": 0}, 0.1, 2
    reference = run_reference(
        Shifted(),  # type: ignore[arg-type]
        lambda step, m: ((torch.tensor(float(step * n + m)),), torch.zeros(())),
        steps=4,
        num_microbatches=n,
        optimizer=lambda parameters: PlainOptimizer("sgd", parameters, lr, has_masters=False),
        note=lambda text: None,
        history=lambda parameters, _: WeightHistory(
            parameters, lambda name, m: max(0, m // n - delays[name])
        ),
    )
    for name, delay in delays.items():
        w = [1.0]
        for u in range(4):
            older = w[max(0, u - delay)]
            w.append(w[u] - lr * sum((older - (u * n + m)) / n for m in range(n)))
        assert reference.last[name].item() == pytest.approx(w[-1], rel=1e-14)
        assert reference.first[name].item() == pytest.approx(w[1], rel=1e-14)


def checked(pool: RankPool, of: Plan, name: str, **options: object) -> CheckResult:
    """The check after three batches; it raises if anything differs."""
    asked = RunSettings(model=of.origin.model, check=True, steps=3, asynchronous=name, **options)
    result = pool.call(run, of, asked)[0]
    assert result.check is not None and result.check.notes[0] == (
        "the plain model was trained with the same older weights"
    )
    return result.check


@pytest.mark.slow
@pytest.mark.parametrize("name", [PIPEDREAM, TWO_BUFFERED])
def test_a_run_without_flushes_equals_the_plain_model_with_the_same_delays(
    two_ranks: RankPool, name: str
):
    check = checked(two_ranks, plan("zoo:mlp-tiny", LINE[2]), name)
    assert max(check.losses, check.gradients, check.parameters) <= 1e-11
    assert check.first_update is not None and check.first_update <= 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("name", [PIPEDREAM, TWO_BUFFERED])
def test_the_check_notices_another_weight_version(two_ranks: RankPool, name: str):
    of = plan("zoo:mlp-tiny", LINE[2])
    asked = RunSettings(model=of.origin.model, check=True, steps=3, asynchronous=name)
    complaint, _ = two_ranks.call(run_with_still_older_weights, of, asked)
    assert complaint.startswith("the pipeline differs from the plain model with the same older")
    assert "after the last update parameter" in complaint


def with_state(of: Plan, *, zero1: bool = False, on_host: bool = False) -> Plan:
    stages = tuple(msgspec.structs.replace(s, optimizer_on_host=on_host) for s in of.stages)
    training = msgspec.structs.replace(of.training, zero1=zero1)
    return msgspec.structs.replace(of, stages=stages, training=training)


@pytest.mark.slow
@pytest.mark.parametrize("on_host", [False, True], ids=["on the device", "on the host"])
def test_zero_shards_step_weights_that_move(two_ranks: RankPool, on_host: bool):
    """2BW moves parameters to new memory before each update, also those divided into shards."""
    model = "tests/support/models/awkward.py:data_dependent"
    of = with_state(plan(model, [[0, 1]]), zero1=True, on_host=on_host)
    check = checked(two_ranks, of, TWO_BUFFERED, optimizer="sgd-momentum")
    assert max(check.losses, check.parameters) <= 1e-11


@pytest.mark.slow
def test_state_on_the_host_steps_each_weight_version(two_ranks: RankPool):
    of = with_state(plan("zoo:mlp-tiny", LINE[2]), on_host=True)
    assert checked(two_ranks, of, PIPEDREAM, optimizer="adamw").parameters <= 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", [*long_tests("sgd"), "adamw"])
def test_buffers_and_tied_weights_in_float32_are_compared(two_ranks: RankPool, optimizer: str):
    """AdamW turns noise into full steps, so the check compares distances from the start."""
    for model, buffers in [("zoo:resnet-tiny", True), ("zoo:gpt2-tiny", False)]:
        of = plan(model, LINE[2], dtype="float32")
        check = checked(two_ranks, of, TWO_BUFFERED, optimizer=optimizer)
        assert check.gradients <= 1e-5 and (check.num_buffers > 0) == buffers
        assert (check.first_update is None) == (optimizer == "adamw")
