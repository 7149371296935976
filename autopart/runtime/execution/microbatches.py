"""The data of a run: example batches, the same for the same seed, step and microbatch everywhere.

Every rank makes the microbatches that it was dealt itself and keeps the tensors that its stage
reads, as each rank of a training job reads from its own data loader.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import fx

from autopart.plan import Plan
from autopart.runtime.capture.capture import Captured, batch_leaves
from autopart.runtime.execution.stage import Leaves
from autopart.runtime.models.model import Batch, ModelSource, example_batch


class Microbatches:
    """Microbatch m of step s (both from 0) of one run."""

    def __init__(self, plan: Plan, source: ModelSource, captured: Captured, seed: int) -> None:
        self._plan = plan
        self._source = source
        # Only the names and shapes of the batch are needed; the weights need not live for them.
        self._captured = replace(captured, module=fx.GraphModule({}, fx.Graph()))
        self._seed = seed

    def batch(self, step: int, microbatch: int, device: str = "cpu") -> Batch:
        """One microbatch as the user's model takes it."""
        number = 1 + step * self._plan.num_microbatches + microbatch
        return example_batch(
            self._source,
            self._plan.microbatch_size,
            dtype=self._plan.origin.dtype,
            device=device,
            seed=self._seed + number,
        )

    def of_step(
        self, step: int, mine: Sequence[int], inputs: Sequence[str], device: torch.device
    ) -> dict[int, Leaves]:
        """For each microbatch of `mine` the tensors called `inputs`, on `device`."""
        return {m: self._leaves(step, m, inputs, device) for m in mine}

    def _leaves(
        self, step: int, microbatch: int, inputs: Sequence[str], device: torch.device
    ) -> Leaves:
        leaves = batch_leaves(self._captured, self.batch(step, microbatch))
        return {name: leaves[name].to(device) for name in inputs}
