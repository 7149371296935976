"""A user's model that trains under a plan, in place: its own module, with this rank's parameters only.

The module keeps its class, its names and its order of parameters. Parameters of other ranks lie on the meta
device, without memory. So optimizers, learning rates, names and files of any trainer stay as they are.
Calling the module runs the pipeline: forward and backward in train mode, forwards alone in eval mode.
"""

import inspect
from collections import OrderedDict
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import distributed, nn
from torch.nn.modules.module import _IncompatibleKeys  # pyright: ignore[reportPrivateUsage]

from autopart.errors import ModelError, PlanError, UsageError
from autopart.records.plan import Plan, num_ranks
from autopart.records.plan_degrees import degrees_name, num_processes
from autopart.runtime.capture.capture import Captured
from autopart.runtime.capture.stage_modules import StageProgram
from autopart.runtime.checking.check import collect
from autopart.runtime.engine.batches import split_batch
from autopart.runtime.engine.evaluation import Evaluation, capture_for_evaluation
from autopart.runtime.engine.pipeline import make_pipeline
from autopart.runtime.models.model import Batch
from autopart.text import counted
from autopart.trainers.label_counts import Count, counter_for, padded, weights_of


class PipelineOutput(NamedTuple):
    """Result of a call: the batch's loss, equal on every rank. Its gradients are there already."""

    loss: torch.Tensor


class PlannedModel:
    """One rank's part of `module` under a plan. Making it is collective over all ranks."""

    def __init__(
        self,
        plan: Plan,
        module: nn.Module,
        example: Mapping[str, Any],
        *,
        device: torch.device,
        autocast: torch.dtype | None = None,
        evaluates: bool = True,
    ) -> None:
        """`example` is a batch of at least one microbatch. With `evaluates`, eval mode works too."""
        check_trainable(plan)
        self.module, self._plan = module, plan
        self._count: Count = counter_for(module)
        module.train()
        one = _first_samples(example, plan.microbatch_size)
        self._evaluation: Evaluation | str = "the trainer has no eval_dataset"
        cut, fault = None, PlanError("the model has no inputs")
        for inputs in _in_all_orders(one, module):
            cut = self._cut_for_evaluation((inputs, None), autocast) if evaluates else None
            try:
                self.pipeline = make_pipeline(
                    plan, module, (inputs, None), device=device, autocast=autocast
                )
            except PlanError as error:
                fault = error
                continue
            self._names = tuple(inputs)
            break
        else:
            raise PlanError(f"{fault}; here the model is called with {', '.join(one)}") from fault
        if cut is not None:
            self._evaluation = Evaluation(plan, *cut, device)
        self._own = dict(self.pipeline.module.state_dict(keep_vars=True))
        self._elsewhere = _held_by(self._own) - self._own.keys()
        _leave_out(module, self._elsewhere)
        # The module is called as before, and loads what a whole model has saved.
        module.forward = self._called
        module.load_state_dict = self._load  # pyright: ignore[reportAttributeAccessIssue]
        self.scale, self.sync = 1.0, True
        """What multiplies the next call's gradients, and whether they are summed over ranks after it."""

    def _cut_for_evaluation(
        self, batch: Batch, autocast: torch.dtype | None
    ) -> tuple[Captured, tuple[StageProgram, ...]] | None:
        try:
            return capture_for_evaluation(self._plan, self.module, batch, autocast)
        except ModelError as error:
            self._evaluation = str(error)
            return None

    @property
    def batch_size(self) -> int:
        """Samples in a batch, over all microbatches and replicas."""
        return self._plan.microbatch_size * self._plan.num_microbatches

    def train_step(self, inputs: Mapping[str, Any], total: float | None = None) -> torch.Tensor:
        """Forward and backward of a batch. Its loss is the sum over labels by their number, or by `total`."""
        parts = self._parts(inputs)
        weights = weights_of([self._count(part) for part, _ in parts], total)
        empty = [m for m, weight in (weights or {}).items() if weight == 0.0]
        if empty:
            raise UsageError(
                f"microbatch {empty[0]} of the batch has no label that counts, so its loss is not a number; "
                "shuffle, or leave such samples out"
            )
        loss = self.pipeline.step(
            dict(enumerate(parts)), scale=self.scale, sync=self.sync, weights=weights
        )
        return loss.to(torch.get_default_dtype())

    def evaluate(self, inputs: Mapping[str, Any], total: float | None = None) -> torch.Tensor:
        """The loss of a batch in eval mode. Fewer samples than the plan's batch are padded."""
        if isinstance(self._evaluation, str):
            raise UsageError(f"no evaluation under the plan: {self._evaluation}")
        parts = self._parts(padded(inputs, self.batch_size))
        weights = weights_of([self._count(part) for part, _ in parts], total)
        equal = dict.fromkeys(range(len(parts)), 1.0)
        loss = self._evaluation.loss(dict(enumerate(parts)), weights or equal) / len(parts)
        return loss.to(torch.get_default_dtype())

    def whole_state(self) -> OrderedDict[str, torch.Tensor]:
        """The whole model's state dict, on the CPU of rank 0; empty on others. Collective."""
        found: dict[str, torch.Tensor] = {}
        for _, name, tensor in collect(self._first_of(self._own)):
            found.setdefault(name, tensor)
        if distributed.get_rank():
            return OrderedDict()
        state = nn.Module.state_dict(self.module, keep_vars=True)
        tensors: dict[str, torch.Tensor] = dict(state)
        first = {id(tensor): name for name, tensor in reversed(tensors.items())}
        # accelerate leaves out the further names of tied tensors only where the dict keeps an order.
        return OrderedDict(
            (name, found.get(first[id(tensor)], tensor.detach()))
            for name, tensor in tensors.items()
        )

    @contextmanager
    def holding(self, state: Mapping[str, torch.Tensor]) -> Generator[None]:
        """Inside, the module's `state_dict` gives `state`."""

        def held(*_: Any, **__: Any) -> Mapping[str, torch.Tensor]:
            return state

        self.module.state_dict = held  # pyright: ignore[reportAttributeAccessIssue]
        try:
            yield
        finally:
            del self.module.state_dict

    def _called(self, *args: Any, **inputs: Any) -> PipelineOutput:
        if args:
            raise UsageError("call the model with names: model(**batch)")
        if not self.module.training:
            return PipelineOutput(self.evaluate(inputs))
        total = inputs.pop("num_items_in_batch", None)
        return PipelineOutput(self.train_step(inputs, None if total is None else float(total)))

    def _parts(self, inputs: Mapping[str, Any]) -> list[tuple[dict[str, Any], None]]:
        size = self.batch_size
        rows = {x.shape[0] for x in inputs.values() if isinstance(x, torch.Tensor) and x.ndim}
        if rows != {size}:
            raise UsageError(
                f"the plan's batch has {counted(size, 'sample')} ({counted(self._plan.num_microbatches, 'microbatch')} "
                f"of {self._plan.microbatch_size}), and this one has {'/'.join(map(str, sorted(rows)))}; set the "
                "batch size and drop the last incomplete batch"
            )
        missing = [name for name in self._names if name not in inputs]
        if missing or len(inputs) > len(self._names):
            raise UsageError(
                f"the plan's batches have {', '.join(self._names)}, and this one has {', '.join(inputs)}"
            )
        named = {name: inputs[name] for name in self._names}
        parts = split_batch((named, None), self._plan.num_microbatches)
        return [(dict(part), None) for part, _ in parts if isinstance(part, dict)]

    def _load(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> _IncompatibleKeys:
        """This rank's tensors from a whole state, as the module's own `load_state_dict` does."""
        given, missing = dict(state_dict), list[str]()
        own = self._own | {
            name: tensor
            for name, tensor in nn.Module.state_dict(self.module, keep_vars=True).items()
            if not tensor.is_meta
        }
        ids = {id(own[name]): given[name] for name in own if name in given}
        for name, tensor in own.items():
            if name not in given:  # also where another name of a tied tensor is given, as in torch
                missing.append(name)
            if id(tensor) not in ids:
                continue
            if ids[id(tensor)].shape != tensor.shape:
                raise UsageError(
                    f"'{name}' has shape {tuple(ids[id(tensor)].shape)} in the state to load, and "
                    f"{tuple(tensor.shape)} in the model"
                )
            with torch.no_grad():
                tensor.copy_(ids[id(tensor)])
        unknown = [name for name in given if name not in own and name not in self._elsewhere]
        if strict and (missing or unknown):
            raise UsageError(f"the state to load has no '{(missing or unknown)[0]}' of the model")
        return _IncompatibleKeys(missing, unknown)

    def _first_of(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Each tensor once, under the first name that the whole module has for it."""
        state = nn.Module.state_dict(self.module, keep_vars=True)
        first = {id(tensor): name for name, tensor in reversed(state.items())}
        return {first[id(t)]: t for t in tensors.values() if id(t) in first}


def check_trainable(plan: Plan) -> None:
    """Raise PlanError for a plan whose state or ranks a trainer cannot handle, UsageError without ranks."""
    advice = "make_pipeline runs it in a loop of your own"
    if num_processes(plan) > num_ranks(plan):
        raise PlanError(f"the plan has {degrees_name(plan)}, which trainers do not know; {advice}")
    if plan.training.zero1:
        raise PlanError(
            "the plan shards optimizer state (ZeRO-1), and a trainer's optimizer keeps it whole; solve "
            f"without --zero1, or {advice}"
        )
    if any(stage.optimizer_on_host for stage in plan.stages):
        raise PlanError(
            "the plan keeps optimizer state on the host, and a trainer's optimizer keeps it beside the "
            f"weights; solve with --offload-optimizer never, or {advice}"
        )
    if not (distributed.is_available() and distributed.is_initialized()):
        count = num_ranks(plan)
        raise UsageError(
            f"the plan has {counted(count, 'rank')}, and this is one process; start the script with torchrun "
            f"--nproc-per-node {count}"
        )


def _first_samples(example: Any, size: int) -> dict[str, Any]:
    """The first microbatch of a batch."""

    def first(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor) or leaf.ndim == 0:
            return leaf
        if leaf.shape[0] < size:
            raise UsageError(
                f"the example has {counted(leaf.shape[0], 'sample')}, and the plan's microbatches have {size}; "
                "give more"
            )
        return leaf[:size]

    if not isinstance(example, Mapping):
        raise UsageError(
            "the example is no mapping of names to tensors, as the model is called with"
        )
    return {name: first(leaf) for name, leaf in example.items()}


def _in_all_orders(inputs: dict[str, Any], module: nn.Module) -> list[dict[str, Any]]:
    """The inputs in the order of the model's own parameters, and as given: a plan knows one of them."""
    known = list(inspect.signature(module.forward).parameters)
    listed = sorted(inputs, key=lambda name: known.index(name) if name in known else len(known))
    orders = [listed, list(inputs)] if listed != list(inputs) else [listed]
    return [{name: inputs[name] for name in names} for names in orders]


def _held_by(own: Mapping[str, torch.Tensor]) -> set[str]:
    """The names that some rank has. Collective."""
    every: list[list[str]] = [[]] * distributed.get_world_size()
    distributed.all_gather_object(every, list(own))
    return {name for names in every for name in names}


def _leave_out(module: nn.Module, names: set[str]) -> None:
    """Put the tensors under these names on the meta device. Tied ones stay tied."""
    replaced: dict[int, torch.Tensor] = {}
    kept: list[torch.Tensor] = []  # an id stays one tensor's while the tensor lives
    for name in sorted(names):
        path, _, last = name.rpartition(".")
        part = module.get_submodule(path)
        tensor = getattr(part, last)
        kept.append(tensor)
        if id(tensor) not in replaced:
            empty = tensor.detach().to("meta")
            is_parameter = isinstance(tensor, nn.Parameter)
            replaced[id(tensor)] = (
                nn.Parameter(empty, requires_grad=tensor.requires_grad) if is_parameter else empty
            )
        setattr(part, last, replaced[id(tensor)])
