"""Readback by DeepSpeed: the boundaries that the exported class sets, and DeepSpeed's own order."""

import json
import os
from itertools import chain
from pathlib import Path
from typing import Any

from autopart.exporters.pipeline_shape import Shape
from autopart.exporters.readback.rebuilt import Rebuilt, exported_module, framework_module
from autopart.schedules.actions import Action, Order


def rebuild(folder: Path, shape: Shape) -> Rebuilt:
    """The layers on every stage, from a module that is cut as its constructor does."""
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    exported = exported_module(folder / "autopart_deepspeed.py")
    config = json.loads((folder / "autopart_deepspeed.json").read_text(encoding="utf-8"))
    names = list(chain.from_iterable(exported.UNITS))
    units: list[tuple[str, ...]] = []
    chosen: set[str] = set()
    partly: set[str] = set()
    orders: list[Order] = []
    for stage in range(shape.num_ranks):
        own, recompute, selective = _cut(exported, config, names, stage, shape)
        units.append(own)
        chosen.update(recompute)
        partly.update(selective)
        orders.append(_order(stage, shape.num_ranks, config["gradient_accumulation_steps"]))
    return Rebuilt(tuple(units), frozenset(chosen), tuple(orders), selective=frozenset(partly))


def _cut(
    exported: Any, config: dict[str, Any], names: list[str], stage: int, shape: Shape
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """The layers on one stage, the recomputed ones, and those whose forward is wrapped.

    The real constructor needs connected processes; this function does its cutting part.
    """
    # Step 1: set the fields that the constructor would set before it cuts.
    topology = framework_module("deepspeed.runtime.pipe.topology")
    module = exported.PlannedPipeline.__new__(exported.PlannedPipeline)
    module._layer_specs = names
    module.num_stages = shape.num_ranks
    module._topo = topology.PipeDataParallelTopology(shape.num_ranks, shape.num_replicas)
    module.global_rank = module._topo.get_rank(pipe=stage, data=0)
    module.seed_layers, module.forward_funcs, module.parameters = False, [], tuple
    # Step 2: call the methods that the export overrides, and read their results.
    module._partition_layers()
    own = tuple(names[module._local_start : module._local_stop])
    module.activation_checkpoint_interval = config["pipeline"]["activation_checkpoint_interval"]
    module._precompute_checkpointable_values()
    flags = module.is_checkpointable_results
    # DeepSpeed takes a layer that is no module as it is. Here a layer is its name.
    module._build()
    wrapped = tuple(u for u, f in zip(own, module.forward_funcs, strict=True) if u is not f)
    return own, tuple(u for u, flag in zip(own, flags, strict=True) if flag), wrapped


def _order(stage: int, num_stages: int, num_microbatches: int) -> Order:
    schedule = framework_module("deepspeed.runtime.pipe.schedule")
    steps = schedule.TrainSchedule(num_microbatches, num_stages, stage).steps()
    # DeepSpeed's commands carry buffer numbers, not microbatches; microbatches come in rising order.
    done = {"F": 0, "B": 0}
    order: list[Action] = []
    for command in chain.from_iterable(steps):
        if isinstance(command, schedule.ForwardPass):
            order.append(Action(stage, "F", done["F"]))
            done["F"] += 1
        elif isinstance(command, schedule.BackwardPass):
            order.append(Action(stage, "B", done["B"]))
            done["B"] += 1
    return tuple(order)
