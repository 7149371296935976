import itertools

import pytest

from autopart.schedules.placements import wave
from autopart.solvers.orders.building_blocks import PERIOD, blocks, is_wave, order_of_block
from autopart.solvers.orders.order_times import OrderTimes
from autopart.solvers.orders.weight_filling import fill
from tests.solvers.orders.test_optimizer import equal_stages


@pytest.mark.parametrize("k", [1, 2, 3, 4, 8])
def test_blocks_keep_each_rank_s_actions_and_each_microbatch_s_way_apart(k: int):
    found = list(blocks(k))
    assert found and len(set(found)) == len(found)
    for block in found:
        assert all(len({slot % PERIOD for slot in own}) == 4 for own in block.slots)
        ways = list(zip(*block.slots, strict=True))
        way = [*ways[0], *reversed(ways[1]), *ways[2], *reversed(ways[3])]
        assert all(a < b for a, b in itertools.pairwise(way))


def test_blocks_keep_between_a_third_and_all_of_1f1b_s_stash():
    """1F1B keeps 2 k of a V's stages on its first rank, for 6 slots each."""
    stays = [block.stay / (2 * 8 * PERIOD) for block in blocks(8)]
    assert min(stays) < 0.4
    assert 1.0 <= max(stays) < 1.3


@pytest.mark.parametrize("k", [2, 4])
def test_every_block_runs_on_a_v_without_a_memory_limit(k: int):
    task = equal_stages(2 * k, 0.1, num_microbatches=6, split=True)._replace(
        stage_ranks=tuple((rank,) for rank in wave(k, 2))
    )
    assert is_wave(task)
    times = OrderTimes(task)
    for block in blocks(k):
        filled = fill(times, order_of_block(block, 6), 0.0)
        assert filled is not None
        assert times.take(filled, [False] * times.size)


def test_a_row_and_a_loop_are_no_wave():
    row = equal_stages(4, 0.0)
    assert not is_wave(row)
    assert not is_wave(row._replace(stage_ranks=((0,), (1,), (0,), (1,))))
    assert is_wave(row._replace(stage_ranks=((0,), (1,), (1,), (0,))))
    assert not is_wave(row._replace(stage_ranks=((0, 1), (2,), (2,), (0, 1))))
