"""Mutated files: each is refused on one line, or accepted and then valid.

`python scripts/fuzz_files.py 0 100000` runs more of them, and shows the bytes of one.
"""

import gc
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.fuzz import session
from tests.support.fuzz.session import FAULTS, Outcome, run_inputs
from tests.support.seeds import seeds

PER_SEED = 2000
"""Inputs for one seed."""


@pytest.mark.parametrize("seed", seeds(1, 50, slow=5))
def test_no_mutated_file_escapes_or_is_wrongly_accepted(seed: int, tmp_path: Path):
    counts = run_inputs(seed, 0, PER_SEED, tmp_path)
    told = [f"seed {seed}: {dict(counts.outcomes)}", *map(str, counts.faults)]
    assert not [kind for kind in FAULTS if counts.outcomes[kind]], "\n".join(told)
    # The mutants are neither all broken nor all harmless.
    assert counts.outcomes["refused"] > PER_SEED // 3, told
    assert counts.outcomes["accepted"] > PER_SEED // 20, told
    assert counts.verbs > PER_SEED // 200, told


class Leaving:
    """Garbage of an earlier test, which warns when it is collected."""

    def __init__(self) -> None:
        self.itself = self

    def __del__(self) -> None:
        warnings.warn("left open", ResourceWarning, stacklevel=1)


@pytest.mark.slow
def test_garbage_of_earlier_tests_is_not_collected_among_the_inputs(tmp_path: Path):
    told: list[object] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "unraisablehook", told.append)
        gc.disable()
        Leaving()
        gc.enable()
        patch.setattr(session.Session, "run", collecting(session.Session.run))
        run_inputs(49, 0, 3, tmp_path)
        assert not told
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            gc.collect()


def collecting(run: Callable[..., Outcome]) -> Callable[..., Outcome]:
    def collected(*given: Any) -> Outcome:
        gc.collect()
        return run(*given)

    return collected


def test_a_fault_says_all_that_repeats_it():
    said = str(Outcome(7, "plan", "slow", "show plan.json", "over 10 s", 49))
    assert said.startswith("input 7 of seed 49, a plan, in `show plan.json`: slow: over 10 s")
    assert "fuzz_files.py 49 1 --first 7 --show" in said
