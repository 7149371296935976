"""What torchtitan makes of `autopart_titan.py`: a small Llama without data, cut by torchtitan's own
function, and the orders that torch makes of the schedule's name or file."""

import csv
import re
from pathlib import Path
from typing import Any

from autopart.exporters.shape import Shape
from autopart.proofs.rebuilt import Rebuilt, exported_module, framework_module, installed
from autopart.schedule import Action, Schedule, parse_action

_NAMES = {"tok_embeddings": "embedding", "lm_head": "head"}


def rebuild(folder: Path, shape: Shape) -> Rebuilt:
    """The modules that are left of a model on every stage, after the exported `apply`."""
    framework = installed("torchtitan", "0.3.0")
    exported = exported_module(folder / "autopart_titan.py")
    config = exported.apply(_debug_config(exported.NUM_LAYERS))
    parts = config.parallelism.module_fqns_per_model_part
    pipelining = framework_module("torchtitan.distributed.pipeline_parallel")
    torch = framework_module("torch")
    with torch.device("meta"):
        whole = config.model_spec.model.build()
    kept = [pipelining._split_module(whole, names) for names in parts]
    placed = _placed(pipelining, config, len(parts), shape.num_ranks)
    return Rebuilt(
        framework,
        tuple(tuple(_units(model)) for model in kept),
        frozenset(_wrapped(config, kept)),
        _orders(config, placed),
    )


def _debug_config(num_layers: int) -> Any:
    """torchtitan's own small Llama, with so many layers."""
    registry = framework_module("torchtitan.models.llama3.config_registry")
    config = registry.llama3_debugmodel()
    layers = config.model_spec.model.layers
    config.model_spec.model.layers = (layers * (1 + num_layers // len(layers)))[:num_layers]
    return config


def _units(model: Any) -> list[str]:
    """The children that are left, in the order of the model."""
    units: list[str] = []
    for name, child in model.named_children():
        if name == "layers":
            units += [f"layers.{index}" for index, _ in child.named_children()]
        elif child is not None:
            units.append(_NAMES.get(str(name), str(name)))
    return units


def _wrapped(config: Any, kept: list[Any]) -> list[str]:
    """The layers that the policy wraps, as torchtitan applies it."""
    if config.activation_checkpoint is None:
        return []
    policy = config.activation_checkpoint.build()
    found: list[str] = []
    for model in kept:
        for index, layer in model.get_submodule("layers").named_children():
            if policy._wrap_block(layer, base_fqn=f"layers.{index}") is not layer:
                found.append(f"layers.{index}")
    return found


def _placed(pipelining: Any, config: Any, num_stages: int, num_ranks: int) -> dict[int, int]:
    """The rank of each stage, as torchtitan chooses by the schedule's name."""
    where: dict[int, int] = {}
    for rank in range(num_ranks):
        for stage in pipelining._get_pp_rank_to_stage_indices_mapping(
            rank, num_ranks, config.parallelism.pipeline_parallel_schedule, num_stages
        ):
            where[stage] = rank
    return where


def _orders(config: Any, where: dict[int, int]) -> Schedule:
    path = config.parallelism.pipeline_parallel_schedule_csv
    if path:
        with Path(path).open(encoding="utf-8") as file:
            rows = [[parse_action(cell) for cell in row if cell] for row in csv.reader(file)]
        for rank, row in enumerate(rows):
            assert {where[action.stage] for action in row} == {rank}
        return tuple(map(tuple, rows))
    count = config.training.local_batch_size // config.parallelism.pipeline_parallel_microbatch_size
    return _named_orders(config.parallelism.pipeline_parallel_schedule, where, count)


def _named_orders(name: str, where: dict[int, int], count: int) -> Schedule:
    schedules = framework_module("torch.distributed.pipelining.schedules")
    kind = schedules.get_schedule_class(name)
    num_ranks = 1 + max(where.values())
    if issubclass(kind, schedules.PipelineScheduleSingle):
        return tuple(_run(kind, _Stage(stage, where, []), count) for stage in sorted(where))
    mine = [_Stage(stage, where, []) for stage, rank in sorted(where.items()) if rank == 0]
    made = kind(mine, count, loss_fn=_no_loss)
    orders: list[tuple[Action, ...]] = []
    for rank in range(num_ranks):
        flat = [a for act in made.pipeline_order[rank] if act for a in act.sub_actions or [act]]
        words = [str(a) for a in flat if re.fullmatch("[0-9]+[FBIW][0-9]+", str(a))]
        orders.append(tuple(map(parse_action, words)))
    return tuple(orders)


def _run(kind: Any, stage: "_Stage", count: int) -> tuple[Action, ...]:
    """What a schedule of one stage a rank runs, which it does not write down."""
    made = kind(stage, count, loss_fn=_no_loss)
    nothing = [()] * count
    made._step_microbatches(nothing, [{}] * count, nothing, None)
    return tuple(stage.ran)


class _Stage:
    """What torch's schedules read of a stage, which notes what it is told to run."""

    def __init__(self, index: int, where: dict[int, int], ran: list[Action]) -> None:
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
    """A loss that is never asked for."""


def _nothing(*_: Any, **__: Any) -> list[Any]:
    """What every other part of a stage does and gives."""
    return []
