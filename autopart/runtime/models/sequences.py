"""Example batches with sequences of another length: whole numbers, such as token ids, are cut off or repeated."""

from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from autopart.errors import ModelError
from autopart.runtime.models.user_code import user_code
from autopart.zoo.source import ModelSource


def with_length(source: ModelSource, microbatch_size: int, length: int) -> ModelSource:
    """The source whose example batches have sequences of `length` positions.

    A sequence is the second dimension of tensors with whole numbers; all of them in the inputs must have one length. Raises
    ModelError where there is none, or several.
    """
    with user_code(f"{source.name}: example_inputs({microbatch_size})"):
        inputs = source.example_inputs(microbatch_size)
    lengths = {t.shape[1] for t in _sequences(inputs, microbatch_size)}
    if len(lengths) != 1:
        found = f"its inputs have lengths {sorted(lengths)}" if lengths else "no input has one"
        raise ModelError(
            f"{source.name}: a sequence is a dimension of whole numbers behind the samples, and {found}"
        )
    (own,) = lengths

    def resized(batch: Any, size: int) -> Any:
        def leaf(value: Any) -> Any:
            if not _is_sequence(value, size) or value.shape[1] != own:
                return value
            times = (1, -(-length // own), *(1 for _ in value.shape[2:]))
            return value.repeat(times)[:, :length]

        return pytree.tree_map(leaf, batch)

    target = source.example_target

    def inputs_of(size: int) -> Any:
        return resized(source.example_inputs(size), size)

    def target_of(size: int) -> Any:
        return None if target is None else resized(target(size), size)

    return replace(
        source,
        build_model=lambda: _checked(source.build_model(), source.name, own, length),
        example_inputs=inputs_of,
        example_target=None if target is None else target_of,
    )


def _checked(model: nn.Module, name: str, own: int, length: int) -> nn.Module:
    """The model; raises ModelError where a table of positions ends before `length`: nothing would notice on meta."""
    for module_name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and module.num_embeddings == own < length:
            raise ModelError(
                f"{name}: table '{module_name}' has {own} positions, so sequences of {length} do not fit"
            )
    return model


def _sequences(batch: Any, size: int) -> list[torch.Tensor]:
    return [leaf for leaf in pytree.tree_leaves(batch) if _is_sequence(leaf, size)]


def _is_sequence(leaf: Any, size: int) -> bool:
    if not isinstance(leaf, torch.Tensor) or leaf.ndim < 2 or leaf.shape[0] != size:
        return False
    return not (leaf.is_floating_point() or leaf.is_complex() or leaf.dtype == torch.bool)
