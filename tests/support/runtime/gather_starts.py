"""When the gathers of a step start, between the starts and ends of its actions."""

# pyright: reportPrivateUsage=false

from typing import Any

import torch
from torch import distributed

from autopart.runtime.capture.capture import batch_leaves
from autopart.runtime.capture.stage_modules import split_stages
from autopart.runtime.engine.assembly import make_lone_executor
from autopart.runtime.engine.group_part import DataPart, GroupPart
from autopart.runtime.engine.stage import TorchStage
from autopart.runtime.job.fake_neighbours import NEIGHBOURS
from autopart.runtime.models.model import build_training_model, example_batch
from autopart.runtime.models.model_file import load_model
from autopart.runtime.sharding.loss_of_samples import split_loss
from autopart.runtime.sharding.shard_groups import ProcessShards
from autopart.runtime.update.state_units import StateUnit
from autopart.schedules.actions import parse_order
from tests.support.runtime.captured_once import captured_once
from tests.support.runtime.plans import plan_for


def gather_starts(_: int, model: str, order: str) -> list[str]:
    """Run a step of two stages on one rank, whose processes share weights.

    Gives `0F0(` and `)0F0` around each action, and in between the layers whose gathers start.
    """
    source, size = load_model(model), distributed.get_world_size()
    batch = example_batch(source, 2, dtype="float32", seed=1)
    captured = captured_once(build_training_model(source, dtype="float32"), batch)
    world: Any = distributed.new_group(list(range(size)))
    group = ProcessShards(world)
    data = DataPart(group, "zero3", "microbatch", split_loss(captured, size))
    actions = parse_order(order)
    count = 1 + max(action.microbatch for action in actions)
    words: dict[str, Any] = {"ranks": [(0,), (0,)], "num_microbatches": count, "orders": (actions,)}
    plan = plan_for(model, captured, (0.5,), **words)
    programs = split_stages(captured, [stage.layers for stage in plan.stages])
    found: list[str] = []
    plain = StateUnit.start_gather, TorchStage.forward, TorchStage.backward

    def start_gather(self: StateUnit) -> None:
        if not self._is_here:
            found.append(next(iter(self.parameters)).partition(".")[0])
        plain[0](self)

    def surrounded(op: str, run: Any) -> Any:
        def told(stage: TorchStage, microbatch: int, *given: Any, **words: Any) -> Any:
            name = f"{stage.stage_index}{op}{microbatch}"
            found.append(f"{name}(")
            result = run(stage, microbatch, *given, **words)
            found.append(f"){name}")
            return result

        return told

    StateUnit.start_gather = start_gather
    TorchStage.forward, TorchStage.backward = surrounded("F", plain[1]), surrounded("B", plain[2])
    try:
        executor = make_lone_executor(
            plan, 0, programs, NEIGHBOURS, device=torch.device("cpu"), partner=NEIGHBOURS,
            group=GroupPart(data=data),
        )  # fmt: skip
        assert executor.shards is not None
        with executor.shards.exchanging():
            executor.step(dict.fromkeys(range(count), batch_leaves(captured, batch)))
    finally:
        StateUnit.start_gather, TorchStage.forward, TorchStage.backward = plain
    return found
