"""Long runs of numbered layers and ranks, said shortly."""

import re
from collections.abc import Callable, Sequence
from itertools import pairwise

_NUMBER = re.compile(r"([0-9]+)")


def sibling_runs(
    names: Sequence[str], alike: Callable[[int, int], bool] = lambda one, next: True
) -> list[range]:
    """Split `names` into runs whose neighbours differ by one number that grows by 1.

        embed h.0 h.1 h.2 head   ->   [embed] [h.0 h.1 h.2] [head]

    `alike` may keep two neighbours (by position) apart all the same.
    """
    runs: list[range] = []
    for place in range(len(names)):
        if runs and _continues(names, runs[-1]) and alike(place - 1, place):
            runs[-1] = range(runs[-1].start, place + 1)
        else:
            runs.append(range(place, place + 1))
    return runs


def _continues(names: Sequence[str], run: range) -> bool:
    """Whether the name after `run` counts on where the run counts."""
    places = {_step(one, other) for one, other in pairwise(names[run.start : run.stop + 1])}
    return len(places) == 1 and None not in places


def _step(name: str, other: str) -> int | None:
    """The piece of `name` that is one more in `other`; None where anything else differs."""
    pieces, others = _NUMBER.split(name), _NUMBER.split(other)
    if len(pieces) != len(others):
        return None
    changed = [i for i, (one, two) in enumerate(zip(pieces, others, strict=True)) if one != two]
    if len(changed) != 1 or changed[0] % 2 == 0:  # even pieces are the text between the numbers
        return None
    place = changed[0]
    return place if int(others[place]) == int(pieces[place]) + 1 else None


def run_label(names: Sequence[str], run: range) -> str:
    """`h.0`, `h.0, h.1`, or `h.0 … h.11 (x12)` for a run of more."""
    if len(run) <= 2:
        return ", ".join(names[place] for place in run)
    return f"{names[run.start]} … {names[run[-1]]} (x{len(run)})"


def layers_label(names: Sequence[str], most_runs: int = 4) -> str:
    """The layers of a stage on one line, runs folded; only the ends where there are many runs."""
    runs = sibling_runs(names)
    if len(runs) > most_runs:
        return f"{names[0]} … {names[-1]} ({len(names)} layers)"
    return ", ".join(run_label(names, run) for run in runs)


def ranks_label(ranks: Sequence[int]) -> str:
    """`0`, `0-3` or `0,4`."""
    ordered = sorted(ranks)
    if len(ordered) > 2 and ordered == list(range(ordered[0], ordered[-1] + 1)):
        return f"{ordered[0]}-{ordered[-1]}"
    return ",".join(map(str, ordered))
