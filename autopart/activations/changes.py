"""Changes that activation policies make to stage totals."""

from typing import Any, Generic, NamedTuple

import numpy as np

from autopart.cost.stage_totals import StageTotals
from autopart.units import Q


class PolicyChanges(NamedTuple, Generic[Q]):
    """Seconds and bytes that the chosen policies change in a stage, or in several stages side by side."""

    extra_time: Q
    """Seconds added to each microbatch, forward and backward together."""
    forward_wait: Q
    """Seconds in `extra_time` that the forward waits for copies to the host."""
    freed_bytes: Q
    """Stash freed for each microbatch in flight."""
    workspace_bytes: Q
    """The stage's workspace under the chosen policies."""
    input_grad_workspace_bytes: Q
    """Its workspace in I under the chosen policies; 0 where backwards are whole."""
    first_backward_bytes: Q
    """Its workspace in the first backward, with gradients made so far; 0 where it does not count."""
    host_bytes: Q
    """Stash in host memory for each microbatch in flight."""


CHANGED_FIELDS = (
    "forward_time",
    "backward_time",
    "stash_bytes",
    "inner_stash_bytes",
    "workspace_bytes",
    "input_grad_workspace_bytes",
    "first_backward_bytes",
    "host_bytes",
)
"""Fields in `StageTotals` that `apply_changes` replaces."""


def apply_changes(totals: StageTotals[Q], changes: PolicyChanges[Q]) -> StageTotals[Q]:
    """A stage's totals under the chosen policies, as numbers or arrays."""
    changed = apply_linear_changes(totals, changes)
    sizes: list[Any] = [totals.inner_stash_bytes, changed.stash_bytes]
    inner: Any = np.minimum(*sizes)
    return changed._replace(
        inner_stash_bytes=inner,
        input_grad_workspace_bytes=_if_any(
            changes.input_grad_workspace_bytes, totals.input_grad_workspace_bytes
        ),
        first_backward_bytes=_if_any(changes.first_backward_bytes, totals.first_backward_bytes),
    )


def _if_any(own: Any, plain: Any) -> Any:
    """Bytes under the chosen policies, or the plain ones where they were not counted."""
    # Plain numbers stay plain: a plan's file has them.
    return np.where(own > 0, own, plain) if isinstance(plain, np.ndarray) else own or plain


def apply_linear_changes(totals: StageTotals[Q], changes: PolicyChanges[Q]) -> StageTotals[Q]:
    """`apply_changes` without `inner_stash_bytes` and the workspaces in I and in the first backward.

    No affine expression gives these.
    """
    return totals._replace(
        forward_time=totals.forward_time + changes.forward_wait,
        backward_time=totals.backward_time + changes.extra_time - changes.forward_wait,
        stash_bytes=totals.stash_bytes - changes.freed_bytes,
        workspace_bytes=changes.workspace_bytes,
        host_bytes=changes.host_bytes,
    )
