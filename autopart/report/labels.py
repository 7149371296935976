"""Short labels for numbered layers and ranks in long runs."""

import re
from collections.abc import Callable, Sequence
from itertools import pairwise

from autopart.text import counted

_NUMBER = re.compile(r"([0-9]{1,18})")  # Python reads no integer of 4,301 digits.


def sibling_runs(
    names: Sequence[str], alike: Callable[[int, int], bool] = lambda one, next: True
) -> list[range]:
    """Split `names` into runs. Neighbours in a run differ in one number, which grows by 1.

        embed h.0 h.1 h.2 head   ->   [embed] [h.0 h.1 h.2] [head]

    Two neighbours (by position) that `alike` refuses start separate runs.
    """
    runs: list[range] = []
    for place in range(len(names)):
        if runs and _continues(names, runs[-1]) and alike(place - 1, place):
            runs[-1] = range(runs[-1].start, place + 1)
        else:
            runs.append(range(place, place + 1))
    return runs


def _continues(names: Sequence[str], run: range) -> bool:
    """Whether the name after `run` continues the number that counts in `run`."""
    places = {_step(one, other) for one, other in pairwise(names[run.start : run.stop + 1])}
    return len(places) == 1 and None not in places


def _step(name: str, other: str) -> int | None:
    """The position whose number is one more in `other`; None where anything else differs.

    Positions count the parts that `_NUMBER` splits a name into: texts are even, numbers odd.
    """
    parts, others = _NUMBER.split(name), _NUMBER.split(other)
    if len(parts) != len(others):
        return None
    changed = [i for i, (one, two) in enumerate(zip(parts, others, strict=True)) if one != two]
    if len(changed) != 1 or changed[0] % 2 == 0:
        return None
    place = changed[0]
    return place if int(others[place]) == int(parts[place]) + 1 else None


def run_label(names: Sequence[str], run: range) -> str:
    """`h.0`, `h.0, h.1`, or `h.0 … h.11 (x12)` for a longer run."""
    if len(run) <= 2:
        return ", ".join(names[place] for place in run)
    return f"{names[run.start]} … {names[run[-1]]} (x{len(run)})"


MOST_RUNS = 4
"""Runs up to which each is named."""


def layers_label(names: Sequence[str]) -> str:
    """A stage's layers on one line: runs folded, or only the two ends where runs are many."""
    runs = sibling_runs(names)
    if len(runs) > MOST_RUNS:
        return f"{names[0]} … {names[-1]} ({counted(len(names), 'layer')})"
    return ", ".join(run_label(names, run) for run in runs)


def chosen_label(names: Sequence[str]) -> str:
    """Some layers on one line, with every name in it: `h.{0,3,6-8}, head`."""
    alike: dict[tuple[str, ...], list[str]] = {}
    for name in names:
        alike.setdefault(tuple(_NUMBER.split(name)[::2]), []).append(name)
    return ", ".join(_folded(group) for group in alike.values())


def _folded(names: Sequence[str]) -> str:
    """Names with equal text between their numbers, folded where only one number differs."""
    parts = [_NUMBER.split(name) for name in names]
    differing = [at for at, values in enumerate(zip(*parts, strict=True)) if len(set(values)) > 1]
    if len(differing) != 1:
        return ", ".join(names)
    at = differing[0]
    numbers = _ranges(sorted(int(own[at]) for own in parts))
    return "".join([*parts[0][:at], f"{{{numbers}}}", *parts[0][at + 1 :]])


def _ranges(numbers: Sequence[int]) -> str:
    """`0,3,6-8`: three or more consecutive numbers are written as their ends."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(
        f"{run[0]}-{run[-1]}" if len(run) > 2 else ",".join(map(str, run)) for run in runs
    )


def ranks_label(ranks: Sequence[int]) -> str:
    """`0`, `0-3` or `0,4,8-11`."""
    return _ranges(sorted(ranks))
