"""What is named to try where nothing fits would do, and what is not named would not."""

import random
import time

import msgspec
import pytest

from autopart.errors import InfeasibleError
from autopart.layouts import shapes
from autopart.problem import Demands, Problem
from autopart.search import search
from autopart.shortage import why_infeasible
from autopart.training import Training
from tests.seeds import seeds
from tests.test_frontier import drawn

OPTIONS = {
    "--zero1": {"training": {"zero1": True}},
    "--recompute auto": {"demands": {"recompute": "auto"}},
    "--offload auto": {"demands": {"offload": "auto"}},
    "--offload-optimizer auto": {"demands": {"offload_optimizer": "auto"}},
}


def allowing(asked: Problem, *options: str) -> Problem:
    for option in options:
        for field, changes in OPTIONS[option].items():
            changed = msgspec.structs.replace(getattr(asked, field), **changes)
            asked = msgspec.structs.replace(asked, **{field: changed})
    return asked


def can_be_solved(asked: Problem) -> bool:
    return search(asked, "auto", time.perf_counter() + 60).best is not None


def starved(seed: int) -> Problem | None:
    """A problem into whose memory nothing fits; None where the draw has no shape."""
    rng = random.Random(seed)
    asked = drawn(seed, demands=Demands())
    training = Training(precision="bfloat16-mixed", gradient_dtype="bfloat16")
    asked = msgspec.structs.replace(asked, training=training)
    try:
        shapes(asked)
    except InfeasibleError:
        return None
    for _ in range(20):
        if not can_be_solved(asked):
            return asked
        smaller = int(asked.cluster.memory_bytes * rng.uniform(0.6, 0.95))
        machine = msgspec.structs.replace(asked.cluster, memory_bytes=max(1, smaller))
        asked = msgspec.structs.replace(asked, cluster=machine)
    return None


@pytest.mark.parametrize("block", seeds(2, 10))
def test_what_is_named_would_do_and_what_is_not_named_would_not(block: int) -> None:
    alone, together = 0, 0
    for seed in range(10 * block, 10 * block + 10):
        asked = starved(seed)
        if asked is None:
            continue
        said = str(why_infeasible(asked, "auto"))
        named = [option for option in OPTIONS if option in said]
        would_do = [option for option in OPTIONS if can_be_solved(allowing(asked, option))]
        if would_do:
            assert named == would_do, (seed, said)
            alone += 1
        elif named:
            assert "together they would do" in said
            assert can_be_solved(allowing(asked, *named)), (seed, said)
            for option in named:
                fewer = [other for other in named if other != option]
                assert not can_be_solved(allowing(asked, *fewer)), (seed, said)
            together += 1
        else:
            assert not can_be_solved(allowing(asked, *OPTIONS)), (seed, said)
            assert "try more memory" in said
    assert alone or together
