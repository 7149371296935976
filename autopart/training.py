"""How parameters are trained, as far as bytes and gradient syncs depend on it.

A trained element has, beside its weight and its gradient, the optimizer's state and, in mixed precision,
a float32 master copy that the optimizer steps in the weight's place (Micikevicius et al., Mixed
Precision Training, 2018). With ZeRO-1 the replicas of a stage share state and master copies out among
them (Rajbhandari et al., ZeRO, 2020).
"""

import msgspec

from autopart.errors import AutopartError

WIDTHS = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes of one element."""
HALF = ("bfloat16", "float16")
MASTER = "float32"
"""The dtype of master copies."""
MIXED = "-mixed"
"""What a precision with master copies ends with: `bfloat16-mixed`."""

MOMENTS = {"adamw": 2, "sgd-momentum": 1, "adafactor": 1, "sgd": 0}
"""Numbers that an optimizer keeps for each trained element, in the dtype that it steps. Adafactor keeps
one for an element of a vector, and far fewer for one of a matrix (a row's and a column's, Shazeer and
Stern 2018); profiles do not say which parameters are matrices, so all count as vectors."""


class Training(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The optimizer, the precisions, and what replicas share."""

    optimizer: str = "adamw"
    """A known one, or the bytes of its state for each trained element, "6"."""
    precision: str = "float32"
    """The dtype of the weights; with "-mixed" behind it the optimizer steps float32 master copies."""
    gradient_dtype: str = "float32"
    """In which gradients are summed over microbatches and replicas."""
    zero1: bool = False
    """Whether the replicas of a stage share out optimizer state and master copies."""


def make_training(
    dtype: str,
    optimizer: str = "adamw",
    precision: str | None = None,
    gradient_dtype: str | None = None,
    *,
    zero1: bool = False,
) -> Training:
    """The training of a model that was profiled in `dtype`: by default mixed where that has 16 bits,
    and with gradients in the weights' own dtype.

    Raises AutopartError on a word that is not known or does not agree with the profile.
    """
    if dtype not in WIDTHS:
        raise AutopartError(f"the profile's dtype '{dtype}' is none of {', '.join(WIDTHS)}")
    if optimizer not in MOMENTS and not optimizer.isdecimal():
        raise AutopartError(
            f"unknown optimizer '{optimizer}'; known: {', '.join(MOMENTS)}, or the bytes of its "
            "state for each trained element, such as 6"
        )
    precisions = [dtype, dtype + MIXED] if dtype in HALF else [dtype]
    asked = precisions[-1] if precision is None else precision
    if asked not in precisions:
        raise AutopartError(
            f"precision '{asked}' does not agree with the profile, which was taken in {dtype}: take "
            f"{' or '.join(precisions)}, or profile the model with --dtype {asked.removesuffix(MIXED)}"
        )
    gradients = list(dict.fromkeys((dtype, MASTER))) if dtype in HALF else [dtype]
    summed = gradients[0] if gradient_dtype is None else gradient_dtype
    if summed not in gradients:
        raise AutopartError(
            f"gradients in {summed} of weights in {dtype}: take {' or '.join(gradients)}"
        )
    return Training(optimizer=optimizer, precision=asked, gradient_dtype=summed, zero1=zero1)


def weight_dtype(training: Training) -> str:
    """The dtype of the weights."""
    return training.precision.removesuffix(MIXED)


def has_master_copies(training: Training) -> bool:
    """Whether the optimizer steps float32 copies of the weights."""
    return training.precision.endswith(MIXED)


def master_bytes(training: Training) -> int:
    """Bytes of the master copy of a trained element."""
    return WIDTHS[MASTER] if has_master_copies(training) else 0


def optimizer_bytes(training: Training) -> int:
    """Bytes of the optimizer's state for a trained element, without a master copy."""
    if training.optimizer.isdecimal():
        return int(training.optimizer)
    stepped = MASTER if has_master_copies(training) else weight_dtype(training)
    return MOMENTS[training.optimizer] * WIDTHS[stepped]


def state_bytes(training: Training) -> int:
    """Bytes of a trained element beside its weight and its gradient."""
    return master_bytes(training) + optimizer_bytes(training)
