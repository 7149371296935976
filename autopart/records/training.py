"""Training: the optimizer and the precisions, on which bytes and syncs depend.

A trained element has a weight, a gradient and optimizer state. In mixed precision it also has a float32
master copy, which the optimizer steps in the weight's place (Micikevicius et al., Mixed Precision
Training, 2018). With ZeRO-1 each replica keeps one shard of the optimizer state and master copies
(Rajbhandari et al., ZeRO, 2020).
"""

from typing import Literal

import msgspec

from autopart.errors import AutopartError
from autopart.text import counted, known_names
from autopart.units import PositiveCount

Sync = Literal["end", "overlap", "megatron", "ddp", "fsdp2", "deepspeed"]
SYNCS: tuple[Sync, ...] = ("end", "overlap", "megatron", "ddp", "fsdp2", "deepspeed")
"""Whose gradient sync a step has: the executor's after all actions or beside backwards, or a framework's."""
DEFAULT_SYNC: Sync = "end"
"""The executor's own."""

WIDTHS = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes per element."""
HALF = ("bfloat16", "float16")
"""The dtypes with 16 bits."""
MASTER = "float32"
"""The dtype that master copies have."""
MIXED = "-mixed"
"""The ending for precisions with master copies, as in `bfloat16-mixed`."""

MOMENTS = {"adamw": 2, "sgd-momentum": 1, "adafactor": 1, "sgd": 0}
"""Numbers that an optimizer keeps for each trained element, in the dtype that it steps.

Adafactor keeps one number per vector element. For a matrix it keeps far fewer: one per row and one per
column (Shazeer and Stern 2018). Profiles do not say which parameters are matrices, so all count as
vectors."""


class Training(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The optimizer, the precisions, and the ZeRO sharding."""

    optimizer: str = "adamw"
    """A known optimizer, or its state bytes for each trained element, such as "6"."""
    precision: str = "float32"
    """The weights' dtype. With the ending "-mixed" the optimizer steps float32 master copies."""
    gradient_dtype: str = "float32"
    """The dtype in which gradients are summed over microbatches and replicas."""
    zero1: bool = False
    """Whether each replica keeps one ZeRO shard of optimizer state and master copies."""
    sync: Sync = "end"
    """Whose gradient sync a step has; it says which part of the sync hides behind compute."""
    bucket_bytes: PositiveCount | None = None
    """Bytes of the buckets in which gradients are summed; null for the default of `sync`."""


def make_training(
    dtype: str,
    optimizer: str = "adamw",
    precision: str | None = None,
    gradient_dtype: str | None = None,
    *,
    zero1: bool = False,
    sync: str = DEFAULT_SYNC,
    bucket_bytes: int | None = None,
) -> Training:
    """The training for a model that was profiled in `dtype`.

    By default a dtype with 16 bits gives mixed precision, and gradients have the weights' dtype.
    Raises AutopartError where a word is unknown or contradicts the profile.
    """
    if dtype not in WIDTHS:
        raise AutopartError(f"the profile's dtype '{dtype}' is none of {', '.join(WIDTHS)}")
    if optimizer not in MOMENTS and not optimizer.isdecimal():
        raise AutopartError(
            f"unknown optimizer '{optimizer}'; {known_names(optimizer, MOMENTS)}, or its state bytes "
            "for each trained element, such as 6"
        )
    precisions = [dtype, dtype + MIXED] if dtype in HALF else [dtype]
    asked = precisions[-1] if precision is None else precision
    if asked not in precisions:
        raise AutopartError(
            f"precision '{asked}' does not agree with the profile, which was taken in {dtype}: use "
            f"{' or '.join(precisions)}, or profile the model with --dtype {asked.removesuffix(MIXED)}"
        )
    gradients = list(dict.fromkeys((dtype, MASTER))) if dtype in HALF else [dtype]
    summed = gradients[0] if gradient_dtype is None else gradient_dtype
    if summed not in gradients:
        raise AutopartError(
            f"gradients in {summed} do not agree with weights in {dtype}: "
            f"use {' or '.join(gradients)}"
        )
    known = _known_sync(sync)
    if bucket_bytes is not None and (bucket_bytes < 1 or known == "end"):
        raise AutopartError(
            f"buckets of {counted(bucket_bytes, 'byte')}: give a size of at least 1, and another "
            "--sync than end"
        )
    return Training(
        optimizer=optimizer,
        precision=asked,
        gradient_dtype=summed,
        zero1=zero1,
        sync=known,
        bucket_bytes=bucket_bytes,
    )


def _known_sync(word: str) -> Sync:
    for one in SYNCS:
        if word == one:
            return one
    raise AutopartError(f"unknown sync '{word}'; known: {', '.join(SYNCS)}")


def makes_gradients(training: Training) -> bool:
    """Whether a step's first backward makes the gradients, as the executor's does, and its update frees them.

    Frameworks with a sync of their own, or with sums in another dtype, keep room for gradients all the time.
    """
    own = training.sync in ("end", "overlap")
    return own and training.gradient_dtype == weight_dtype(training)


def weight_dtype(training: Training) -> str:
    """The weights' dtype."""
    return training.precision.removesuffix(MIXED)


def has_master_copies(training: Training) -> bool:
    """Whether the optimizer steps float32 master copies."""
    return training.precision.endswith(MIXED)


def master_bytes(training: Training) -> int:
    """Master-copy bytes per trained element; 0 without master copies."""
    return WIDTHS[MASTER] if has_master_copies(training) else 0


def optimizer_bytes(training: Training) -> int:
    """Optimizer-state bytes per trained element, without the master copy."""
    if training.optimizer.isdecimal():
        return int(training.optimizer)
    stepped = MASTER if has_master_copies(training) else weight_dtype(training)
    return MOMENTS[training.optimizer] * WIDTHS[stepped]


def state_bytes(training: Training) -> int:
    """Bytes per trained element besides its weight and its gradient."""
    return master_bytes(training) + optimizer_bytes(training)
