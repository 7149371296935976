"""The list with all built-in models. A model's file, and torch with it, is imported on demand."""

import importlib

from autopart.errors import ModelError
from autopart.text import known_names
from autopart.zoo.source import ModelSource

__all__ = ["ModelSource", "zoo_names", "zoo_source"]

_SIZES = {
    "gpt2": ("tiny", "124m", "350m", "774m", "1.3b"),
    "llama": ("tiny", "1b", "8b", "70b", "405b"),
    "resnet": ("tiny", "50"),
    "unet": ("tiny", "base"),
    "encdec": ("tiny", "base"),
    "moe": ("tiny", "small"),
    "mlp": ("tiny", "64"),
}
"""The sizes for each model. The key is its file, and the first part in its name."""


def zoo_names() -> tuple[str, ...]:
    """The built-in models' names: `gpt2-tiny`, `gpt2-124m`, …"""
    return tuple(f"{model}-{size}" for model, sizes in _SIZES.items() for size in sizes)


def zoo_source(name: str) -> ModelSource:
    """The built-in model `name`, given without ``zoo:``; raises ModelError with the known names."""
    if name not in zoo_names():
        raise ModelError(f"there is no example model '{name}'; {known_names(name, zoo_names())}")
    model, _, size = name.partition("-")
    return importlib.import_module(f"autopart.zoo.{model}").source(f"zoo:{name}", size)
