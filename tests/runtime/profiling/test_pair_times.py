"""Times of a forward beside a backward: what runs, and what the profile says."""

from collections.abc import Callable

import pytest
import torch

from autopart.records.layer_graph import has_pair_times, pair_saving
from autopart.runtime.measuring.stopwatch import Gradients, HostStopwatch, PendingTime
from autopart.runtime.profiling.op_costs import OpCost
from autopart.runtime.profiling.pair_times import measure_pairs
from autopart.runtime.profiling.profiled_model import ProfiledModel, prepare_model
from autopart.runtime.profiling.profiler import profile_model
from autopart.runtime.profiling.roofline import LAUNCH_TIME, pair_time, roofline_time
from tests.runtime.profiling.test_roofline import GPU


def cost(flops: int, moved_bytes: int) -> OpCost:
    return OpCost(flops, moved_bytes, torch.float32)


def test_memory_hides_beneath_compute_and_no_pair_is_faster_than_one_of_its_parts() -> None:
    computes, moves = [cost(10**9, 1)], [cost(1, 10**8)]
    # 2 s of arithmetic and 4 s of memory: the memory is left.
    assert pair_time(computes, moves, GPU, "float32") == pytest.approx(4.0, rel=1e-6)
    # The same on both sides hides nothing.
    assert pair_time(moves, moves, GPU, "float32") == pytest.approx(8.0, rel=1e-6)
    mixed = [*computes, *moves]
    alone = roofline_time(mixed, GPU, "float32")
    assert pair_time(mixed, [], GPU, "float32") == alone == pytest.approx(6.0)
    # Kernels that do little are launched one after the other all the same.
    small = [cost(0, 0)] * 3
    assert pair_time(small, small, GPU, "float32") == pytest.approx(6 * LAUNCH_TIME)


class Noting(HostStopwatch):
    """Notes what runs in pairs; each pair takes a second more than the one before."""

    def __init__(self) -> None:
        super().__init__(1)
        self.pairs = 0

    def measure_together(
        self, forward: Callable[[], object], backward: Callable[[], Gradients]
    ) -> tuple[Gradients, PendingTime]:
        gradients, _ = super().measure_together(forward, backward)
        self.pairs += 1
        seconds = float(self.pairs)
        return gradients, lambda: seconds


@pytest.fixture(scope="module")
def model() -> ProfiledModel:
    return prepare_model("zoo:mlp-tiny", 2, dtype=None, device="cpu", granularity="block")


def test_layers_with_a_backward_run_in_pairs_from_the_last_to_the_first(
    model: ProfiledModel,
) -> None:
    watch, places = Noting(), (0, 2, len(model.timed.layers) - 1)
    found = measure_pairs(model.timed, places, watch, repeats=2)
    assert found == {places[2]: (1.0, 4.0), 2: (2.0, 5.0), 0: (3.0, 6.0)}


@pytest.mark.slow
def test_a_profile_has_pair_times_where_they_are_asked_for() -> None:
    asked = {"device": "meta", "gpu": "h100-sxm", "microbatch_size": 2}
    plain = profile_model("zoo:mlp-tiny", **asked)  # pyright: ignore
    assert not has_pair_times(plain.graph)
    paired = profile_model("zoo:mlp-tiny", pairs=True, **asked)  # pyright: ignore
    assert all(isinstance(layer.pair_time, float) for layer in paired.graph.layers)
    for layer in paired.graph.layers:
        assert 0.0 <= pair_saving(layer) <= layer.forward_time
    # A CPU runs both in turn.
    measured = profile_model("zoo:mlp-tiny", pairs=True, warmup=0, repeats=1)
    assert has_pair_times(measured.graph)
