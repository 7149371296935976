"""Zero bubble's models as equal blocks."""

import pytest

from tests.support.scripts import load_script

SHAPE = {"layers": 22, "heads": 24, "hidden": 2304, "p": 8, "microbatch": 6}
TIMES = [18.522, 18.086, 9.337, 0.601]


@pytest.mark.parametrize("parts", [1, 2])
def test_the_blocks_of_a_stage_have_the_paper_s_seconds_and_bytes(parts: int):
    profile = load_script("measure_memory_limit").blocks(SHAPE, TIMES, parts, scores=True)
    layers = profile.graph.layers
    assert len(layers) == 24 * parts
    stage = layers[: 3 * parts]
    assert sum(la.forward_time for la in stage) == pytest.approx(0.018522)
    assert sum(la.weight_grad_time for la in stage) == pytest.approx(0.009337)
    assert sum(la.stash_bytes for la in stage) == 3 * 6 * 1024 * (34 * 2304 + 5 * 24 * 1024)
    assert layers[0].split_backward.waiting_bytes == 6 * 1024 * 32 * 2304 // parts
