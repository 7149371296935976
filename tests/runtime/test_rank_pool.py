import operator
import os
import random
import warnings
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.runtime.rank_pool import RankPool


@pytest.mark.slow
def test_a_failed_pool_starts_again_for_the_next_test():
    pool = RankPool(1)
    try:
        with pytest.raises(AssertionError, match=r"(?s)rank 0:.*ZeroDivisionError"):
            pool.call(operator.truediv, 0)
        assert pool.call(operator.add, 5) == [5]
    finally:
        pool.close()


def state_of_process(rank: int, changes: bool) -> list[Any]:
    found = [
        random.random(), float(np.random.rand()), float(torch.rand(())), warnings.filters[:],
        dict(os.environ), os.getcwd(),
    ]  # fmt: skip
    if changes:
        warnings.simplefilter("error")
        os.environ["AUTOPART_TEST"] = "1"
        os.chdir("/")
    return found


def test_no_function_changes_the_process_for_the_next_one(two_ranks: RankPool):
    first = two_ranks.call(state_of_process, True)
    assert two_ranks.call(state_of_process, False) == first
