"""One stage alone: what it keeps of its outputs between forward and backward."""

import gc
from collections.abc import Generator

import pytest
import torch
from torch import distributed, nn
from torch.multiprocessing.reductions import StorageWeakRef

from autopart.runtime.capture.capture import capture_model
from autopart.runtime.capture.stage_modules import StageProgram, split_stages
from autopart.runtime.engine.stage import TorchStage
from autopart.runtime.measuring.stash_meter import StashMeter
from autopart.runtime.models.model import TrainingModel

WIDTH = 8


class TwoLayers(nn.Module):
    """A layer with a product, whose result no backward of its own needs, or one that ends in a ReLU."""

    def __init__(self, *, keeps: bool) -> None:
        super().__init__()
        first = nn.Linear(WIDTH, WIDTH)
        self.first = nn.Sequential(first, nn.ReLU()) if keeps else first
        self.second = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x))


@pytest.fixture
def group() -> Generator[distributed.ProcessGroup]:
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    group = distributed.new_group([0])
    assert isinstance(group, distributed.ProcessGroup)
    yield group
    distributed.destroy_process_group()


def first_stage(*, keeps: bool) -> StageProgram:
    torch.manual_seed(0)
    model = TrainingModel(TwoLayers(keeps=keeps), nn.functional.mse_loss)
    batch = ((torch.randn(4, WIDTH),), torch.randn(4, WIDTH))
    captured = capture_model(model, batch, granularity="module")
    names = [layer.name for layer in captured.layers]
    at = names.index("second")
    return split_stages(captured, [names[:at], names[at:]])[0]


def stage_of(program: StageProgram, group: distributed.ProcessGroup) -> TorchStage:
    return TorchStage(program, 0, 2, 1, torch.device("cpu"), group)


@pytest.mark.parametrize("keeps", [False, True])
def test_an_output_is_freed_once_it_is_sent_unless_the_stages_own_backward_needs_it(
    group: distributed.ProcessGroup, keeps: bool
):
    program = first_stage(keeps=keeps)
    stage = stage_of(program, group)
    x = torch.randn(4, WIDTH)
    meter = StashMeter()
    with meter.forward(0, (), (x, *program.module.parameters())):
        results = stage.forward(0, (), dict.fromkeys(program.inputs, x))
    meter.take(0, results, is_last=False)
    output = StorageWeakRef(results[0].untyped_storage())
    size, gradient = results[0].nbytes, torch.ones_like(results[0])
    # "Sent": nobody but autograd may hold the tensor now.
    del results
    gc.collect()
    assert output.expired() is not keeps
    assert meter.most_bytes[0] == keeps * size
    stage.backward(0, (gradient,), 1.0)
    # The gradient is that of the plain layer.
    plain = first_stage(keeps=keeps).module
    plain(x)[0].backward(gradient)
    for mine, theirs in zip(program.module.parameters(), plain.parameters(), strict=True):
        assert mine.grad is not None and theirs.grad is not None
        assert torch.equal(mine.grad, theirs.grad)
    assert output.expired()


def test_a_held_output_stays_until_its_backward(group: distributed.ProcessGroup):
    program = first_stage(keeps=False)
    stage = stage_of(program, group)
    stage.held = program.outputs
    x = torch.randn(4, WIDTH)
    results = stage.forward(0, (), dict.fromkeys(program.inputs, x))
    output, gradient = StorageWeakRef(results[0].untyped_storage()), torch.ones_like(results[0])
    del results
    gc.collect()
    assert not output.expired()
    stage.backward(0, (gradient,), 1.0)
    assert output.expired()
