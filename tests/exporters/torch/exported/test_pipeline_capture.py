"""Models that take their shapes from a first forward are captured and checked like others."""

from pathlib import Path
from typing import Any

import pytest
import torch

from autopart.exporters.targets import export_plan
from autopart.exporters.torch.self_check import check_export
from autopart.records.plan import Plan
from tests.support.exporters.exported import import_export
from tests.support.exporters.one_process import run_stages
from tests.support.exporters.plans import make_plan

LAZY = """\
import torch
from torch import nn

def build_model():
    return nn.Sequential(nn.LazyLinear(6), nn.LazyBatchNorm1d(), nn.LazyLinear(3))

def partly_reached():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.other = nn.LazyLinear(6), nn.LazyLinear(6)

        def forward(self, x):
            return self.first(x)

    return Net()

def example_inputs(microbatch_size):
    return torch.randn(microbatch_size, 5)

def example_target(microbatch_size):
    return torch.randn(microbatch_size, 3)

def loss_fn(output, target):
    return nn.functional.mse_loss(output, target)
"""
NAMES = [["0", "1"], ["2", "loss"]]


def plan() -> Plan:
    return make_plan(NAMES, [(0,), (1,)], 2, microbatch_size=4)


@pytest.mark.slow
def test_lazy_parameters_get_their_shapes_and_values_from_the_seed_alone() -> None:
    written: dict[str, Any] = {}
    exec(LAZY, written)
    build, loss_fn = written["build_model"], written["loss_fn"]
    pipeline = import_export(plan())
    batch = ((torch.randn(4, 5),), torch.randn(4, 3))
    torch.manual_seed(3)
    twin = build()
    twin(*batch[0])  # draws the first values
    twin[1].reset_running_stats()
    model = build()
    torch.manual_seed(3)
    torch.randn(7)  # a rank may have drawn anything since
    before = torch.get_rng_state()
    stages = pipeline.cut_model(model, loss_fn, batch, torch.device("cpu"))

    assert torch.equal(torch.get_rng_state(), before)
    assert model.training and model[1].num_batches_tracked == 0
    loss, expected = run_stages(stages, batch), loss_fn(twin(*batch[0]), batch[1])
    expected.backward()
    torch.testing.assert_close(loss, expected)
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_a_lazy_parameter_that_the_forward_does_not_reach_is_refused() -> None:
    written: dict[str, Any] = {}
    exec(LAZY, written)
    pipeline = import_export(plan())
    batch = ((torch.randn(4, 5),), torch.randn(4, 3))
    with pytest.raises(ValueError, match=r"^the lazy parameter 'other\.weight' has no shape"):
        pipeline.cut_model(written["partly_reached"](), written["loss_fn"], batch, "cpu")


@pytest.mark.slow
def test_an_export_of_a_lazy_model_is_equal_to_the_plain_model(tmp_path: Path) -> None:
    for name, text in export_plan(plan(), "torch").files.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "lazy.py").write_text(LAZY)
    said = check_export(tmp_path / "pipeline.py", tmp_path / "lazy.py")
    assert said.startswith("equal to the plain model: loss ") and "6 gradients" in said
