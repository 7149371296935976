"""Input data for a run: example batches that depend only on seed, step and microbatch.

Each rank makes its own microbatches and keeps the tensors that its stages read. A training job does
the same with one data loader per rank.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import fx

from autopart.records.plan import Plan, cast_of
from autopart.runtime.capture.capture import Captured, batch_leaves
from autopart.runtime.engine.batches import own_samples, samples_of_place
from autopart.runtime.engine.stage import Leaves
from autopart.runtime.models.model import Batch, example_batch
from autopart.zoo.source import ModelSource


class Microbatches:
    """The microbatches of one run, by step and microbatch number; both count from 0."""

    def __init__(
        self, plan: Plan, source: ModelSource, captured: Captured, seed: int, place: int = 0
    ) -> None:
        """`place` is the process's in its rank group, which may share the samples of a microbatch."""
        self._plan = plan
        self._part = samples_of_place(plan, place)
        self._source = source
        # Only the batch's names and shapes are needed. An empty module lets the weights be freed.
        self._captured = replace(captured, module=fx.GraphModule({}, fx.Graph()))
        self._seed = seed

    def batch(self, step: int, microbatch: int, device: str = "cpu") -> Batch:
        """One microbatch, in the form that the user's model takes."""
        number = 1 + step * self._plan.num_microbatches + microbatch
        return example_batch(
            self._source,
            self._plan.microbatch_size,
            dtype=cast_of(self._plan),
            device=device,
            seed=self._seed + number,
        )

    def of_step(
        self, step: int, mine: Sequence[int], inputs: Sequence[str], device: torch.device
    ) -> dict[int, Leaves]:
        """For each microbatch in `mine`, the tensors named in `inputs`, on `device`."""
        return {m: self._leaves(step, m, inputs, device) for m in mine}

    def _leaves(
        self, step: int, microbatch: int, inputs: Sequence[str], device: torch.device
    ) -> Leaves:
        batch = self.batch(step, microbatch)
        if self._part is not None:
            batch = own_samples(batch, self._plan.microbatch_size, self._part)
        leaves = batch_leaves(self._captured, batch)
        return {name: leaves[name].to(device) for name in inputs}
