"""States: how the local value of a graph node relates to the whole value."""

from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["replicated", "sharded", "sequence", "partial"]


@dataclass(frozen=True, slots=True)
class ShardState:
    """How each rank's local value relates to the whole one.

    - replicated: equal to it.
    - sharded: the rank's slice along `dim`, of each part in `parts`.
    - sequence: the rank's slice along `dim`; readers that need more gather it.
    - partial: the ranks' sum is the whole value.
    """

    kind: Kind
    dim: int = 0
    parts: tuple[int, ...] = ()
    """Whole sizes of the parts along `dim`, each of which is sharded; () where it is one part."""
    copies: int = 1
    """Consecutive ranks that hold the same slice: key-value heads that are fewer than the ranks."""

    @property
    def cut(self) -> tuple[int, tuple[int, ...], int]:
        """The slice as plain values, which an argument in a graph may be."""
        return self.dim, self.parts, self.copies


REPLICATED = ShardState("replicated")
PARTIAL = ShardState("partial")


def sharded(dim: int, parts: tuple[int, ...] = (), copies: int = 1) -> ShardState:
    """Return the state of a value that is sharded along `dim`."""
    return ShardState("sharded", dim, parts, copies)


def sequence(dim: int) -> ShardState:
    """Return the state of a value that is sharded along its sequence."""
    return ShardState("sequence", dim)


@dataclass(frozen=True, slots=True)
class ParameterShard:
    """How one parameter is sharded: each rank has its slice, of each part, along `dim`."""

    dim: int
    parts: tuple[int, ...] = ()
    """Whole sizes of the parts along `dim`; () where it is one part."""
    copies: int = 1
    """Consecutive ranks that hold the same slice. Their gradients are summed."""


@dataclass(slots=True)
class Choices:
    """What earlier attempts have learnt. Seeds are operations that split a weight by columns."""

    banned: dict[str, str] = field(default_factory=dict[str, str])
    """Seeds that stay whole, each with its reason."""
    parts: dict[str, tuple[int, ...]] = field(default_factory=dict[str, tuple[int, ...]])
    """Seeds whose columns are several parts, such as query, key and value."""
    copies: dict[str, int] = field(default_factory=dict[str, int])
    """Seeds whose slices several ranks hold."""


class Refused(Exception):
    """A rule cannot go on. The seed to blame is banned, or its dimension divided into parts."""

    def __init__(
        self, seed: str, reason: str, parts: tuple[int, ...] = (), copies: int = 1
    ) -> None:
        super().__init__(reason)
        self.seed = seed
        self.reason = reason
        self.parts = parts
        self.copies = copies
