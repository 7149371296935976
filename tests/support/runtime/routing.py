"""How many tokens the plain model with a routing bias gives to each of its four experts."""

from functools import partial

import torch
from torch import nn

from autopart.runtime.models.model import Batch
from tests.support.places import MODELS

SKEWED = str(MODELS / "hf_skewed_deepseek_v3.py")
LAYERS = ("model.layers.1", "model.layers.2")
"""The layers with experts."""


def entries_by_hand(model: nn.Module, batches: list[Batch]) -> dict[str, list[list[int]]]:
    """For each layer and batch, how many entries each expert has."""
    found: dict[str, list[list[int]]] = {layer: [] for layer in LAYERS}

    def note(layer: str, gate: object, given: object, made: tuple[torch.Tensor, ...]) -> None:
        found[layer].append([int((made[2] == expert).sum()) for expert in range(4)])

    for layer in LAYERS:
        gate = model.get_submodule(f"{layer}.mlp.gate")
        gate.register_forward_hook(partial(note, layer))
    for inputs, _ in batches:
        assert isinstance(inputs, dict)
        model(**inputs)
    return found


def fullest_share(entries: list[int], expert: int) -> float:
    """The entries of the fullest of so many ranks, divided by their mean."""
    own = len(entries) // expert
    ranks = [sum(entries[first : first + own]) for first in range(0, len(entries), own)]
    return max(ranks) / (sum(ranks) / expert)
