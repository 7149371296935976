"""The orders that torch makes from a schedule's name or file, and the stages' places on ranks."""

import re
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from autopart.exporters.readback.rebuilt import framework_module
from autopart.schedules.actions import Action, Schedule, parse_action


class Part(NamedTuple):
    """A stage as a framework passes it to torch."""

    module: Any
    stage: int


class RankMesh(NamedTuple):
    """The part in a device mesh that cutting functions read."""

    rank: int
    ranks: int

    def get_local_rank(self) -> int:
        """The rank to cut for."""
        return self.rank

    def size(self) -> int:
        """The ranks in the pipeline."""
        return self.ranks

    def get_group(self, *_: str) -> None:
        """Nothing to do: no processes are connected."""


@contextmanager
def parts_for_stages(cutting: Any) -> Generator[None]:
    """Make the module `cutting` return `Part`s where torch's stages would need processes."""

    def part(module: Any, stage: int, *_: Any, **__: Any) -> Part:
        return Part(module, stage)

    real = cutting.PipelineStage
    cutting.PipelineStage = part
    try:
        yield
    finally:
        cutting.PipelineStage = real


def torch_orders(name: str, file: Path | None, where: Mapping[int, int], count: int) -> Schedule:
    """The orders under the schedule `name`, or from `file`, for `count` microbatches.

    `where` has the rank for each stage.
    """
    schedules = framework_module("torch.distributed.pipelining.schedules")
    kind = schedules._PipelineScheduleRuntime if file else schedules.get_schedule_class(name)
    if issubclass(kind, schedules.PipelineScheduleSingle):
        return tuple(_run(kind, _Stage(stage, where, []), count) for stage in sorted(where))
    # Step 1: make the schedule on rank 0, which knows the orders on all ranks.
    mine = [_Stage(stage, where, []) for stage, rank in sorted(where.items()) if rank == 0]
    made = kind(mine, count, loss_fn=_no_loss)
    if file:
        made._load_csv(str(file))
        assert mine[0].stage_index_to_group_rank == where
    # Step 2: keep computing actions only. Torch may overlap two in one, and adds sends and receives.
    orders: list[tuple[Action, ...]] = []
    for rank in range(1 + max(where.values())):
        flat = [a for act in made.pipeline_order[rank] if act for a in act.sub_actions or [act]]
        words = [str(a) for a in flat if re.fullmatch("[0-9]+[FBIW][0-9]+", str(a))]
        orders.append(tuple(map(parse_action, words)))
    return tuple(orders)


def _run(kind: Any, stage: "_Stage", count: int) -> tuple[Action, ...]:
    """The order that a schedule with one stage per rank runs but does not write down."""
    made = kind(stage, count, loss_fn=_no_loss)
    nothing = [()] * count
    made._step_microbatches(nothing, [{}] * count, nothing, None)
    return tuple(stage.ran)


class _Stage:
    """A fake stage that notes the actions torch asks for."""

    def __init__(self, index: int, where: Mapping[int, int], ran: list[Action]) -> None:
        torch = framework_module("torch")
        self.stage_index, self.num_stages = index, len(where)
        self.group_size, self.group_rank = 1 + max(where.values()), where[index]
        self.stage_index_to_group_rank = where
        self.submod, self.device, self.group = torch.nn.Identity(), torch.device("cpu"), None
        self.is_first, self.is_last, self.has_backward = False, False, True
        self.ran = ran

    def forward_one_chunk(self, microbatch: int, *_: Any, **__: Any) -> None:
        self.ran.append(Action(self.stage_index, "F", microbatch))

    def backward_one_chunk(self, microbatch: int, **_: Any) -> None:
        self.ran.append(Action(self.stage_index, "B", microbatch))

    def __getattr__(self, name: str) -> Any:
        return _nothing


def _no_loss(*_: Any) -> None:
    """A fake loss, which nobody reads."""


def _nothing(*_: Any, **__: Any) -> list[Any]:
    """A fake result for every other stage method."""
    return []
