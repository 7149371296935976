"""A model in training form: inputs and target go in, a scalar loss comes out."""

import math
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import nn
from torch.utils import _pytree as pytree

from autopart.errors import ModelError
from autopart.runtime.models.host_generators import HostGenerators
from autopart.runtime.models.lazy_parameters import give_shapes, has_lazy_parameters
from autopart.runtime.models.model_file import load_model
from autopart.runtime.models.precision import cast_model, cast_to, dtype_of
from autopart.runtime.models.shared_memory import check_apart
from autopart.runtime.models.tensor_plan import Style, weight_styles
from autopart.runtime.models.user_code import user_code
from autopart.zoo.source import ModelSource

__all__ = [
    "Batch",
    "Inputs",
    "ModelSource",
    "TrainingModel",
    "build_training_model",
    "check_model",
    "example_batch",
    "load_model",
]

Inputs = tuple[Any, ...] | dict[str, Any]
"""Positional or keyword arguments of the user's model."""

Batch = tuple[Inputs, Any]
"""Inputs and target of one microbatch. The target is None where the model returns its own loss."""


class TrainingModel(nn.Module):
    """The user's model together with its loss.

    Modules that are in eval mode stay so, such as frozen batch norms. A model whose modules are all
    in eval mode is put into train mode.
    """

    def __init__(self, model: nn.Module, loss_fn: Any = None, *, name: str = "model") -> None:
        super().__init__()
        self.model = model
        self.loss_fn = loss_fn
        self.name = name
        self.notes: tuple[str, ...] = ()
        """Notes for the user on changes to the model."""
        self.weight_styles: Mapping[str, Style] = {}
        """How the model wants its parameters sharded over a tensor group, by their first names."""
        if not any(module.training for module in model.modules()):
            model.train()
            self.notes = (
                "all modules were in eval mode, so all are put into train mode; to freeze some, "
                "call train() on the model, then eval() on these",
            )

    def forward(self, inputs: Inputs, target: Any = None) -> torch.Tensor:
        """Return the scalar loss of one microbatch. Raises ModelError where there is none."""
        return self.loss_of(self.run_model(inputs), target)

    def run_model(self, inputs: Inputs) -> Any:
        """Return the output of the user's model."""
        return self.model(**inputs) if isinstance(inputs, dict) else self.model(*inputs)

    def loss_of(self, output: Any, target: Any = None) -> torch.Tensor:
        """Return the loss that the model file's loss function, or the output itself, gives."""
        if self.loss_fn is None:
            return _own_loss(output, self.name)
        loss = self.loss_fn(output, target)
        if not isinstance(loss, torch.Tensor):
            raise ModelError(
                f"{self.name}: loss_fn returned {_describe(loss)}; return a scalar tensor"
            )
        return _scalar(loss, f"{self.name}: loss_fn returned")


def build_training_model(
    source: ModelSource, *, dtype: str | None = None, device: str = "cpu", seed: int = 0
) -> TrainingModel:
    """Build the model. Equal seeds give equal weights on every rank and device.

    With `dtype`, floating parameters and buffers are cast to it. On device "meta" the parameters
    have shapes but no memory. The caller's random state stays unchanged. One forward gives lazy
    parameters their shapes. Raises ModelError where the builder raises or returns no module, or
    where parameters share memory without being one.
    """
    on_meta = device == "meta"
    advice = "build it with --device cpu if it reads values while it is built" if on_meta else ""
    call = f"{source.name}: {getattr(source.build_model, '__name__', 'build_model')}()"
    with _seeded(seed), torch.device("meta" if on_meta else "cpu"), user_code(call, advice):
        built: Any = source.build_model()
    if not isinstance(built, nn.Module):
        raise ModelError(f"{call} returned {_describe(built)}; return a torch.nn.Module")
    if has_lazy_parameters(built):
        with _seeded(seed):
            batch = example_batch(source, 1, device="meta" if on_meta else "cpu", seed=seed)
            give_shapes(built, batch[0], source.name)
    check_apart(built, source.name)
    if on_meta:
        _empty_to_meta(built)
    training = TrainingModel(built, source.loss_fn, name=source.name)
    training.weight_styles = weight_styles(built, source.tp_plan, source.name)
    if dtype is not None:
        cast_model(training, dtype_of(dtype))
    return training.to(device=device)


def example_batch(
    source: ModelSource,
    microbatch_size: int,
    *,
    dtype: str | None = None,
    device: str = "cpu",
    seed: int = 0,
) -> Batch:
    """Return the inputs and target of one microbatch. Equal seeds give equal batches.

    With `dtype`, floating tensors are cast to it. Raises ModelError where an example function raises, or
    where `example_inputs` returns neither tensors nor a tuple or dict with tensors.
    """
    call = f"{source.name}: example_inputs({microbatch_size})"
    with _seeded(seed):
        with user_code(call):
            raw = source.example_inputs(microbatch_size)
        inputs = _as_inputs(raw, call)
        target = None
        if source.example_target is not None:
            with user_code(f"{source.name}: example_target({microbatch_size})"):
                target = source.example_target(microbatch_size)

    def place(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        if leaf.layout != torch.strided:
            layout = str(leaf.layout).removeprefix("torch.")
            raise ModelError(
                f"{source.name}: the batch has a tensor of layout {layout}; give it as plain "
                "tensors, and convert them in the model"
            )
        moved = leaf.to(device=device)
        return moved if dtype is None else cast_to(moved, dtype_of(dtype))

    return cast(Batch, pytree.tree_map(place, (inputs, target)))


def check_model(model: TrainingModel, batch: Batch, cast: str = "") -> tuple[str, ...]:
    """Run one forward and return notes on numbers that are not finite. Raise ModelError unless it gives a scalar loss that can be trained.

    `cast` says which tensors were cast, for the advice beside an error in forward. Buffers and random state stay unchanged. On meta the forward is not run.
    """
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ModelError(f"{model.name}: the model has no parameter that requires a gradient")
    for name, part in model.model.named_modules():
        if isinstance(part, nn.Embedding | nn.EmbeddingBag) and part.sparse:
            raise ModelError(
                f"{model.name}: '{name}' has sparse gradients, which autopart cannot sum over "
                "microbatches; build it with sparse=False"
            )
    if any(parameter.is_meta for parameter in model.parameters()):
        return ()
    inputs, target = batch
    with _seeded(0), _buffers_kept(model):
        advice = "check that example_inputs fits the model's forward"
        if cast:
            advice = f"{cast}; leave --dtype out, so that all tensors keep their own dtypes"
        with user_code(f"{model.name}: the model's forward", advice):
            output = model.run_model(inputs)
        with user_code(f"{model.name}: loss_fn"):
            loss = model.loss_of(output, target)
    if not loss.requires_grad:
        raise ModelError(f"{model.name}: the loss depends on no parameter that requires a gradient")
    return _notes_on_numbers(model, loss.item())


def not_a_number(model: TrainingModel) -> str | None:
    """Return a line on the first parameter that contains NaN, None without one."""
    for name, parameter in model.model.named_parameters():
        if not parameter.is_meta and bool(parameter.detach().isnan().any()):
            return f"parameter '{name}' contains NaN before any step; give it a start value"
    return None


def _notes_on_numbers(model: TrainingModel, loss: float) -> tuple[str, ...]:
    """Say where a parameter or the loss is not finite; times and bytes are as with other numbers."""
    found = not_a_number(model)
    if found is not None:
        return (found,)
    if math.isfinite(loss):
        return ()
    return (
        f"the loss is {loss} on the example batch, though no parameter is NaN; run the model on it",
    )


def _own_loss(output: Any, name: str) -> torch.Tensor:
    """Find the loss in the output of a model that computes it itself."""
    loss = getattr(output, "loss", None)
    if loss is None and isinstance(output, Mapping):
        loss = cast(Mapping[str, Any], output).get("loss")
    if isinstance(loss, torch.Tensor):
        return _scalar(loss, f"{name}: the model's own loss is")
    first = output[0] if isinstance(output, list | tuple) and output else output
    if isinstance(first, torch.Tensor) and first.ndim == 0:
        return _scalar(first, f"{name}: the model returned")
    raise ModelError(
        f"{name}: the model returns {_describe(output)}, which carries no loss; define "
        "loss_fn(output, target) and example_target(microbatch_size), or give the model the "
        "inputs from which it computes a loss (labels)"
    )


def _scalar(loss: torch.Tensor, source: str) -> torch.Tensor:
    if loss.ndim == 0 and loss.is_floating_point():
        return loss
    advice = "return its mean" if loss.is_floating_point() else "return a floating loss"
    raise ModelError(f"{source} {_describe(loss)}, not a floating scalar; {advice}")


def _as_inputs(raw: Any, call: str) -> Inputs:
    if isinstance(raw, torch.Tensor):
        return (raw,)
    inputs: Inputs | None = None
    if isinstance(raw, Mapping):
        inputs = dict(cast(Mapping[str, Any], raw))
    elif isinstance(raw, list | tuple):
        inputs = tuple(cast("list[Any]", raw))
    if inputs is None or (isinstance(inputs, dict) and not _all_text(inputs)):
        raise ModelError(
            f"{call} returned {_describe(raw)}; return a tuple of tensors (positional) or a dict of "
            "tensors by argument name"
        )
    if not any(isinstance(leaf, torch.Tensor) for leaf in pytree.tree_leaves(inputs)):
        raise ModelError(f"{call} returned {_describe(raw)}, which contains no tensor")
    return inputs


def _all_text(keys: Iterable[object]) -> bool:
    return all(isinstance(key, str) for key in keys)


def _describe(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        dtype = str(value.dtype).removeprefix("torch.")
        return f"a tensor of shape {tuple(value.shape)} and type {dtype}"
    if value is None:
        return "None"
    if isinstance(value, list | tuple):
        kinds = ", ".join(type(item).__name__ for item in cast("list[Any]", value)[:4])
        return f"a {type(value).__name__} of ({kinds})"
    return f"a value of type {type(value).__name__}"


def _empty_to_meta(model: nn.Module) -> None:
    """Move tensors to meta that the builder placed on another device.

    ``.to("meta")`` would give each tied parameter its own copy, so that ties would be lost.
    """
    moved: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if not parameter.is_meta:
                empty = nn.Parameter(parameter.data.to("meta"), parameter.requires_grad)
                setattr(module, name, moved.setdefault(id(parameter), empty))
        for name, buffer in list(module.named_buffers(recurse=False)):
            if not buffer.is_meta:
                setattr(module, name, buffer.to("meta"))


@contextmanager
def _seeded(seed: int) -> Generator[None]:
    """Seed torch, numpy and random inside the block, then restore the caller's states."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    generators = HostGenerators()
    with generators.restored(), torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        generators.seed(seed % 2**32)
        yield


@contextmanager
def _buffers_kept(model: nn.Module) -> Generator[None]:
    """Restore all buffers after the block: BatchNorm counts a trial forward as a step."""
    kept = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        for buffer, before in kept:
            buffer.copy_(before)
