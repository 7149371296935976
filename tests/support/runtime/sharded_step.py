"""A step of one microbatch on one stage with sharded state, in this process."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager

import torch
from torch import distributed

from autopart.runtime.capture.capture import capture_model
from autopart.runtime.capture.stage_modules import split_stages
from autopart.runtime.engine.group_part import DataPart
from autopart.runtime.engine.sharded_state import ShardedState
from autopart.runtime.engine.stage import TorchStage
from autopart.runtime.models.model import TrainingModel
from autopart.runtime.transforms.split_backward import split_backwards


def sharded_step(
    model: TrainingModel,
    example: tuple[torch.Tensor, torch.Tensor],
    given: Sequence[torch.Tensor],
    part: DataPart,
    *,
    splits: bool = False,
    varies: bool = False,
) -> ShardedState:
    """The state after a step on `given`, of a model that is captured with `example`: the input and the target.

    With `splits`, an I and a W take the place of the backward.
    """
    captured = capture_model(model, ((example[0],), example[1]), granularity="module")
    programs = split_stages(captured, [[layer.name for layer in captured.layers]])
    if splits:
        assert split_backwards(programs[0].module)
    state = ShardedState({0: programs[0]}, programs, part, use_varies=varies)
    with lone_process() as alone:
        stage = TorchStage(programs[0], 0, 1, 1, torch.device("cpu"), alone)
        stage.state = state.stages[0]
        stage.forward(0, (), dict(zip(programs[0].inputs, given, strict=True)))
        stage.backward(0, (), 1.0, defers=splits)
        if splits:
            stage.weight_backward(0)
    state.end_step()
    return state


@contextmanager
def lone_process() -> Generator[distributed.ProcessGroup]:
    """A process group of this process alone."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        alone = distributed.new_group([0])
        assert isinstance(alone, distributed.ProcessGroup)
        yield alone
    finally:
        distributed.destroy_process_group()
