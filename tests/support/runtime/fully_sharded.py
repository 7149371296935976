"""The collectives of a step with zero3, beside those of torch's own `fully_shard` on the same layers."""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.debug import CommDebugMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from autopart.runtime.capture.capture import batch_leaves
from autopart.runtime.capture.stage_modules import split_stages
from autopart.runtime.engine.assembly import make_lone_executor
from autopart.runtime.engine.group_part import DataPart, GroupPart
from autopart.runtime.job.fake_neighbours import NEIGHBOURS
from autopart.runtime.models.model import build_training_model, example_batch
from autopart.runtime.models.model_file import load_model
from autopart.runtime.sharding.loss_of_samples import split_loss
from autopart.runtime.sharding.shard_groups import ProcessShards
from tests.support.runtime.captured_once import captured_once
from tests.support.runtime.plans import plan_for

Collectives = Mapping[tuple[str, int], int]
"""How often a collective of one kind ran, with so many bytes in its largest tensor."""


class Counts(NamedTuple):
    """Collectives by kind, as torch's debug mode counts them in one microbatch, and by bytes in all."""

    kinds: Mapping[str, int]
    bytes: Collectives


class _Collectives(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.found = Counter[tuple[str, int]]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        if name.startswith("c10d::"):
            tensors = [x for x in pytree.tree_leaves(args) if isinstance(x, torch.Tensor)]
            self.found[(name, max(x.nbytes for x in tensors))] += 1
        return func(*args, **(kwargs or {}))


def ours_and_fully_shards(rank: int, model: str, num_microbatches: int) -> tuple[Counts, Counts]:
    """The collectives of one step on this process, under a plan and under `fully_shard`."""
    source, size = load_model(model), distributed.get_world_size()
    batch = example_batch(source, 2, dtype="float32", seed=1)
    group = ProcessShards(distributed.new_group(list(range(size))))

    def ours(count: int) -> None:
        # An executor takes over the memory of the weights, so each has a model of its own.
        captured = captured_once(build_training_model(source, dtype="float32"), batch)
        leaves = batch_leaves(captured, batch)
        data = DataPart(group, "zero3", "microbatch", split_loss(captured, size))
        plan = plan_for(model, captured, (), ranks=[(0,)], num_microbatches=count)
        programs = split_stages(captured, [stage.layers for stage in plan.stages])
        executor = make_lone_executor(
            plan,
            0,
            programs,
            NEIGHBOURS,
            device=torch.device("cpu"),
            partner=NEIGHBOURS,
            group=GroupPart(data=data),
        )
        assert executor.shards is not None
        with executor.shards.exchanging():
            executor.step(dict.fromkeys(range(count), leaves))

    whole = build_training_model(source, dtype="float32")
    layers = [layer.name for layer in captured_once(whole, batch).layers if layer.parameters]
    mesh = init_device_mesh("cpu", (size,))
    for name in layers:
        fully_shard(whole.model.get_submodule(name), mesh=mesh, reshard_after_forward=True)
    fully_shard(whole.model, mesh=mesh, reshard_after_forward=True)

    def fully_shards(count: int) -> None:
        for _ in range(count):
            (whole(*batch) / count).backward()

    return _counts(ours, num_microbatches), _counts(fully_shards, num_microbatches)


def _counts(step: Callable[[int], None], num_microbatches: int) -> Counts:
    # Torch's debug mode loses its place where a forward follows a backward.
    with CommDebugMode() as kinds:
        step(1)
    with _Collectives() as of_step:
        step(num_microbatches)
    return Counts(
        {str(kind): count for kind, count in kinds.get_comm_counts().items()}, of_step.found
    )
