"""Stage seconds and stash as differences between downsets: arrays over the downsets."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from autopart.peers.pipedream.charges import stashed_minibatches
from autopart.solvers.fewest_ranks import DownsetStage, Floats, Ints


class ReplicaChoice(NamedTuple):
    """One replica count for a stage, its seconds as arrays over downsets."""

    machines: int
    """Machines that the stage takes."""
    key: Floats
    """Busy time up to each downset: a stage's busy time is the difference between its ends."""
    first: Floats
    """The key for first stages."""
    receive: Floats
    """Seconds that receiving takes for a stage from this downset on; first stages receive nothing.
    """
    send: Floats
    """Seconds that sending takes for a stage up to this downset, except for the first stage."""
    first_send: Floats
    """Seconds that sending takes for a first stage up to this downset."""


class StashMemory(NamedTuple):
    """Stash bytes per minibatch in flight, as a key over downsets, and the limit."""

    key: Floats
    """Bytes up to each downset: a stage stashes the difference between its ends."""
    limit: float
    """Bytes on one machine."""


@dataclass(frozen=True, slots=True)
class DownsetCosts:
    """Seconds and stash for the stages between downsets."""

    choices: Sequence[ReplicaChoice]
    work: Floats
    """Seconds up to each downset. A stage on q machines within T seconds has a difference up to q
    T."""
    memory: StashMemory | None = None

    @property
    def machines(self) -> Sequence[int]:
        """Machines that each choice takes."""
        return [choice.machines for choice in self.choices]

    @property
    def num_downsets(self) -> int:
        """N, the number of downsets."""
        return len(self.work)

    def seconds_of(self, stage: DownsetStage) -> float:
        """Seconds that one stage takes."""
        choice = self.choices[stage.choice]
        if stage.start == 0:
            key, around = choice.first, [choice.first_send[stage.end]]
        else:
            key, around = choice.key, [choice.receive[stage.start], choice.send[stage.end]]
        return float(max(key[stage.end] - key[stage.start], *around))

    def fits(self, stage: DownsetStage, later: int) -> bool:
        """Whether a stage fits into memory with `later` machines behind it."""
        if self.memory is None:
            return True
        stashes = stashed_minibatches(later, self.choices[stage.choice].machines)
        key = self.memory.key
        return bool(stashes * (key[stage.end] - key[stage.start]) <= self.memory.limit)

    def machines_ahead(self, limit: float) -> Ints:
        """For each downset the least number of machines that its layers need within `limit`
        seconds."""
        if limit <= 0:
            return np.zeros(len(self.work), dtype=np.int64)
        # Sums over thousands of times are wrong in their last digits; the slack keeps the count a
        # lower bound.
        return np.ceil(self.work / limit * (1 - 1e-12) - 1e-12).astype(np.int64)
