"""Schedules that torch generates too, compared with torch's own, action by action."""

import re
from typing import Any, NamedTuple

import pytest
import torch
from torch.distributed.pipelining import schedules as pipelining
from torch.distributed.pipelining._utils import generate_stage_to_rank_mapping

from autopart.records.plan import orders_of
from autopart.schedules.actions import Action, Schedule, parse_order
from autopart.schedules.catalogue import KINDS
from autopart.schedules.pipeline import Pipeline


class Stage(NamedTuple):
    """A stage as torch's schedule constructors read it; it needs no process group."""

    stage_index: int
    num_stages: int
    group_size: int
    group_rank: int
    stage_index_to_group_rank: dict[int, int]
    submod: torch.nn.Module = torch.nn.Identity()
    is_first: bool = False
    is_last: bool = True
    has_backward: bool = True
    device: torch.device = torch.device("cpu")
    group: None = None


class MutableStage:
    """A stage whose attributes torch's V-shaped schedules may set."""

    def __init__(self, stage: Stage) -> None:
        self.__dict__.update(stage._asdict())


class Recorder(MutableStage):
    """A stage that notes the actions it must run, and does nothing else."""

    def __init__(self, stage: Stage) -> None:
        super().__init__(stage._replace(is_last=False))
        self.ran: list[Action] = []

    def forward_one_chunk(self, microbatch: int, *_: Any, **__: Any) -> None:
        self.ran.append(Action(self.stage_index, "F", microbatch))

    def backward_one_chunk(self, microbatch: int, **_: Any) -> None:
        self.ran.append(Action(self.stage_index, "B", microbatch))

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: []


def torch_orders(name: str, pipeline: Pipeline, style: str) -> Schedule:
    """The compute actions on each rank under torch's schedule `name`.

    With one stage per rank, these are the actions as torch runs them. The order in ScheduleSingle
    is off by one microbatch on 1F1B's last rank. With several stages per rank, torch's order
    counts.
    """
    k, num_stages = pipeline.num_ranks, pipeline.num_stages
    where = generate_stage_to_rank_mapping(k, num_stages, style=style)
    facts = [Stage(s, num_stages, k, where[s], where) for s in range(num_stages)]
    kind = getattr(pipelining, name)
    if issubclass(kind, pipelining.PipelineScheduleSingle):
        return tuple(_run(kind, stage, pipeline.microbatches_per_replica) for stage in facts)
    mine: list[Any] = [MutableStage(stage) for stage in facts if stage.group_rank == 0]
    made = kind(mine, pipeline.microbatches_per_replica, loss_fn=lambda *_: None)
    return tuple(
        parse_order(" ".join(map(str, _computing(made.pipeline_order[rank])))) for rank in range(k)
    )


def _run(kind: Any, stage: Stage, num_microbatches: int) -> tuple[Action, ...]:
    recorder: Any = Recorder(stage)
    made = kind(recorder, num_microbatches, loss_fn=lambda *_: None)
    nothing = [()] * num_microbatches
    made._step_microbatches(nothing, [{}] * num_microbatches, nothing, None)
    return tuple(recorder.ran)


def _computing(order: list[Any]) -> list[Any]:
    """The actions that compute, and the overlapped pairs."""
    return [a for a in order if a and re.fullmatch(r"[0-9]+[FBIW][0-9]+|\(.*\)\w+", str(a))]


CASES = {
    "gpipe": ("ScheduleGPipe", "loop", (1,)),
    "1f1b": ("Schedule1F1B", "loop", (1,)),
    "looped-bfs": ("ScheduleLoopedBFS", "loop", (1, 2, 3)),
    "interleaved-1f1b": ("ScheduleInterleaved1F1B", "loop", (1, 2, 3)),
    "interleaved-zb": ("ScheduleInterleavedZeroBubble", "loop", (1, 2, 3)),
    "zb-h1": ("ScheduleInterleavedZeroBubble", "loop", (1,)),
    "zbv": ("ScheduleZBVZeroBubble", "v", (2,)),
    "dualpipev": ("ScheduleDualPipeV", "v", (2,)),
    "paired-dualpipev": ("ScheduleDualPipeV", "v", (2,)),
}


def _torch_takes(name: str, pipeline: Pipeline) -> bool:
    m, k = pipeline.microbatches_per_replica, pipeline.num_ranks
    if "Interleaved" in name:
        return m % max(1, m // k) == 0
    return name != "Schedule1F1B" or m >= k  # its constructor refuses smaller numbers


@pytest.mark.parametrize("ours", CASES)
@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 6, 8])
def test_torch_gives_the_same_orders(ours: str, ranks: int):
    theirs, style, per_rank = CASES[ours]
    kind = KINDS[ours]
    compared = 0
    for v in per_rank:
        for microbatches in (1, 2, 3, 4, 5, 7, 8, 12, 16, 17, 24):
            pipeline = Pipeline(ranks, v, microbatches)
            if kind.takes(pipeline) and _torch_takes(theirs, pipeline):
                made = torch_orders(theirs, pipeline, style)
                assert kind.generate(pipeline) == made
                if kind.pairs:
                    assert orders_of(kind.generate(pipeline)) == orders_of(made)
                compared += 1
    assert compared >= 3
