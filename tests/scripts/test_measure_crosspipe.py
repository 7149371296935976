"""The simulator's sends against published steps under link latency."""

import pytest

from scripts.measure_crosspipe import MEASURED, cells, fitted_times, predicted

pytestmark = pytest.mark.skipif(
    not MEASURED.exists(), reason=f"no published steps in {MEASURED.parent}"
)

BARS = {"1F1B": 0.07, "ZBH1": 0.05, "ZBV": 0.08}


@pytest.mark.parametrize("name", BARS)
def test_rendezvous_sends_meet_the_measured_steps(name: str) -> None:
    own = [cell for cell in cells() if cell.schedule == name]
    assert len(own) == 5
    assert max(abs(cell.rendezvous / cell.measured - 1) for cell in own) <= BARS[name]


@pytest.mark.parametrize("name", ["ZBH1", "ZBV"])
def test_buffered_sends_miss_them(name: str) -> None:
    own = [cell for cell in cells() if cell.schedule == name]
    assert max(abs(cell.buffered / cell.measured - 1) for cell in own) > 2 * BARS[name]


def test_fitted_times_give_the_steps_without_delay() -> None:
    backward, weights = fitted_times(0.151, 0.133)
    for name, step in (("1F1B", 0.151), ("ZBH1", 0.133)):
        found = predicted(name, 0.0, backward, weights, rendezvous=True)
        assert found == pytest.approx(step, rel=1e-12)
