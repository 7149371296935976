"""A model as training sees it: inputs and target go in, a scalar loss comes out."""

import random
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from torch.utils import _pytree as pytree

from autopart.errors import ModelError
from autopart.runtime.models.model_file import load_model
from autopart.runtime.models.user_code import user_code
from autopart.zoo.source import ModelSource

__all__ = [
    "DTYPES",
    "Batch",
    "Inputs",
    "ModelSource",
    "TrainingModel",
    "build_training_model",
    "check_model",
    "dtype_of",
    "example_batch",
    "load_model",
]

Inputs = tuple[Any, ...] | dict[str, Any]
"""Positional or keyword arguments of the user's model."""

Batch = tuple[Inputs, Any]
"""The inputs and the target (None where the model returns its own loss) of one microbatch."""

DTYPES = ("float32", "bfloat16", "float16", "float64")


class TrainingModel(nn.Module):
    """The user's model together with its loss."""

    def __init__(self, model: nn.Module, loss_fn: Any = None, *, name: str = "model") -> None:
        super().__init__()
        self.model = model
        self.loss_fn = loss_fn
        self.name = name

    def forward(self, inputs: Inputs, target: Any = None) -> torch.Tensor:
        """The scalar loss of one microbatch; raises ModelError where there is none."""
        return self.loss_of(self.run_model(inputs), target)

    def run_model(self, inputs: Inputs) -> Any:
        """What the user's model returns."""
        return self.model(**inputs) if isinstance(inputs, dict) else self.model(*inputs)

    def loss_of(self, output: Any, target: Any = None) -> torch.Tensor:
        """The loss function of the model file, or the loss that the output carries."""
        if self.loss_fn is None:
            return _own_loss(output, self.name)
        loss = self.loss_fn(output, target)
        if not isinstance(loss, torch.Tensor):
            raise ModelError(
                f"{self.name}: loss_fn returned {_describe(loss)}; return a scalar tensor"
            )
        return _scalar(loss, f"{self.name}: loss_fn returned")


def build_training_model(
    source: ModelSource, *, dtype: str = "float32", device: str = "cpu", seed: int = 0
) -> TrainingModel:
    """Build the model in train mode; equal seeds give equal weights on every rank and device.

    With device "meta" the parameters have shapes but no memory. The caller's random state is left
    as it was. Raises ModelError where the builder raises or returns no module.
    """
    on_meta = device == "meta"
    advice = "build it with --device cpu if it reads values while it is built" if on_meta else ""
    call = f"{source.name}: {getattr(source.build_model, '__name__', 'build_model')}()"
    with _seeded(seed), torch.device("meta" if on_meta else "cpu"), user_code(call, advice):
        built: Any = source.build_model()
    if not isinstance(built, nn.Module):
        raise ModelError(f"{call} returned {_describe(built)}; return a torch.nn.Module")
    if on_meta:
        _empty_to_meta(built)
    training = TrainingModel(built, source.loss_fn, name=source.name)
    return training.to(dtype=dtype_of(dtype), device=device).train()


def example_batch(
    source: ModelSource,
    microbatch_size: int,
    *,
    dtype: str = "float32",
    device: str = "cpu",
    seed: int = 0,
) -> Batch:
    """The inputs and the target of one microbatch, the same for the same seed.

    Floating tensors are cast to `dtype`. Raises ModelError where the example functions raise or
    return something that is no inputs.
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
        floating = leaf.is_floating_point()
        return leaf.to(device=device, dtype=dtype_of(dtype) if floating else leaf.dtype)

    return cast(Batch, pytree.tree_map(place, (inputs, target)))


def check_model(model: TrainingModel, batch: Batch) -> None:
    """Run one forward and raise ModelError unless it gives a scalar loss that can be trained.

    Buffers and random state are left as they were. On meta nothing is run.
    """
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ModelError(f"{model.name}: the model has no parameter that requires a gradient")
    if any(parameter.is_meta for parameter in model.parameters()):
        return
    inputs, target = batch
    with _seeded(0), _buffers_kept(model):
        advice = "check that example_inputs fits the model's forward"
        with user_code(f"{model.name}: the model's forward", advice):
            output = model.run_model(inputs)
        with user_code(f"{model.name}: loss_fn"):
            loss = model.loss_of(output, target)
    if not loss.requires_grad:
        raise ModelError(
            f"{model.name}: no parameter that requires a gradient has a part in the loss"
        )


def dtype_of(name: str) -> torch.dtype:
    """The floating type called `name`; raises ModelError on any other than `DTYPES`."""
    if name not in DTYPES:
        raise ModelError(f"unknown dtype '{name}'; known: {', '.join(DTYPES)}")
    return cast(torch.dtype, getattr(torch, name))


def _own_loss(output: Any, name: str) -> torch.Tensor:
    """The loss in the output of a model that computes it itself."""
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
        "loss_fn(output, target) and example_target(microbatch_size), or give the model what it "
        "needs to return a loss (labels)"
    )


def _scalar(loss: torch.Tensor, what: str) -> torch.Tensor:
    if loss.ndim == 0 and loss.is_floating_point():
        return loss
    advice = "return its mean" if loss.is_floating_point() else "return a floating loss"
    raise ModelError(f"{what} {_describe(loss)}, not a floating scalar; {advice}")


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
        raise ModelError(f"{call} returned {_describe(raw)}, which holds no tensor")
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
    """Move tensors that the builder placed elsewhere; ``.to("meta")`` would untie tied ones."""
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
    """Seed torch, numpy and random for the block, and give the caller's states back after it."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)


@contextmanager
def _buffers_kept(model: nn.Module) -> Generator[None]:
    """BatchNorm counts a trial forward as a step; take that back."""
    kept = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        for buffer, before in kept:
            buffer.copy_(before)
