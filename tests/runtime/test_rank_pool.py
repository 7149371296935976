import operator

import pytest

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
