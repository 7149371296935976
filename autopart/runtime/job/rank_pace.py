"""The machine's pace on the ranks of a run, sampled before, between and after its steps.

On one machine the ranks take turns, as the profile's process was alone. So ranks that slow each other down
do not count as a slower machine: `compute_slowdown` in the cluster predicts them.
"""

# pyright: reportPrivateImportUsage=false

import torch
from torch import distributed

from autopart.records.pace import Pace
from autopart.runtime.job.status_board import StatusBoard
from autopart.runtime.measuring.pace import PaceMeter, pace_of

MOST_TURNS = 8
"""Turns in which all ranks sample; with more ranks, several share one."""
_GAPS = 20
"""Gaps between steps, at most, in which one turn samples."""


class RankPace:
    """Samples one rank's pace. All ranks must make the same calls, one after the other."""

    def __init__(self, device: torch.device, steps: int, status_board: StatusBoard) -> None:
        self._device, self._status_board = device, status_board
        self._meter = PaceMeter(device)
        self._turns = min(distributed.get_world_size(), MOST_TURNS)
        self._every = max(1, steps // _GAPS)

    def all_turns(self) -> None:
        """Sample on each rank, before the first step or after the last."""
        for turn in range(self._turns):
            self._sample(turn)

    def between(self, step: int) -> None:
        """Sample on the ranks whose turn it is in the gap after `step`, counted from 0."""
        if step % self._every == 0:
            self._sample(step // self._every % self._turns)

    def pace(self) -> Pace | None:
        """The pace over all samples."""
        return pace_of(self._meter.samples, self._device)

    def _sample(self, turn: int) -> None:
        self._status_board.waiting("the others' turn to sample the pace", None)
        distributed.barrier()
        if distributed.get_rank() % self._turns == turn:
            self._status_board.working("a sample of the machine's pace")
            self._meter.sample()
