"""Mutated files: each is refused on one line, or accepted and then valid.

`python scripts/fuzz_files.py 0 100000` runs more of them, and shows the bytes of one.
"""

from pathlib import Path

import pytest

from tests.support.fuzz.session import FAULTS, run_inputs
from tests.support.seeds import seeds

PER_SEED = 2000
"""Inputs for one seed."""


@pytest.mark.parametrize("seed", seeds(1, 50))
def test_no_mutated_file_escapes_or_is_wrongly_accepted(seed: int, tmp_path: Path):
    counts = run_inputs(seed, 0, PER_SEED, tmp_path)
    assert counts.faults == [], counts.outcomes
    assert not [kind for kind in FAULTS if counts.outcomes[kind]]
    # The mutants are neither all broken nor all harmless.
    assert counts.outcomes["refused"] > PER_SEED // 3
    assert counts.outcomes["accepted"] > PER_SEED // 20
    assert counts.verbs > PER_SEED // 200
