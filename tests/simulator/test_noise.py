"""Makespans with noise."""

import msgspec
import numpy as np
import pytest

from autopart.errors import UsageError
from autopart.schedules.catalogue import make_schedule
from autopart.simulator import noise
from autopart.simulator.compiled import runner_of
from autopart.simulator.noise import (
    IQR_OF_NORMAL,
    Draws,
    distribution,
    even_spread,
    measured_spreads,
    noisy_makespans,
)
from autopart.simulator.timeline import simulate
from tests.support.samples import sample_graph
from tests.support.steps import stage

LINE = [(0,), (1,), (2,)]
STAGES = [stage(1.0, 2.0, send_time=0.1, send_back_time=0.1)] * 3


def draw(share: float, seed: int = 0, overlap: bool = True, draws: int = 400) -> np.ndarray:
    schedule = make_schedule("1f1b", LINE, 8)
    return noisy_makespans(
        schedule,
        LINE,
        STAGES,
        (),
        even_spread(share, 3),
        action_overhead=0.0,
        runner=runner_of(sends_overlap=overlap, rendezvous=False),
        draws=Draws(draws, seed),
    )


@pytest.mark.parametrize("overlap", [True, False])
def test_without_noise_every_step_is_the_simulated_step(overlap: bool):
    plain = simulate(
        make_schedule("1f1b", LINE, 8), LINE, STAGES, (), action_overhead=0.0, sends_overlap=overlap
    )
    assert draw(0.0, overlap=overlap) == pytest.approx(plain.makespan, rel=1e-12)


def test_equal_seeds_draw_equal_steps_and_other_seeds_draw_others():
    assert (draw(0.05, seed=3) == draw(0.05, seed=3)).all()
    assert (draw(0.05, seed=3) != draw(0.05, seed=4)).any()


def test_noise_makes_steps_longer_on_average_and_more_noise_more_so():
    plain, little, much = (distribution(draw(share)) for share in (0.0, 0.05, 0.2))
    assert plain.mean < little.mean < much.mean
    assert little.deviation < much.deviation
    assert little.smallest <= little.percentile_5 <= little.median <= little.percentile_95
    assert little.percentile_95 <= little.largest


def test_one_rank_spreads_as_the_root_of_its_actions():
    """Eight forwards with 1 s and backwards with 2 s, each 10 %: the sum's deviation is known."""
    makespans = noisy_makespans(
        make_schedule("gpipe", [(0,)], 8),
        [(0,)],
        [stage(1.0, 2.0)],
        (),
        even_spread(0.1, 1),
        action_overhead=0.0,
        runner=runner_of(sends_overlap=True, rendezvous=False),
        draws=Draws(4000, seed=0),
    )
    assert makespans.mean() == pytest.approx(24.0, rel=0.002)
    assert makespans.std() == pytest.approx((8 * 0.1**2 + 8 * 0.2**2) ** 0.5, rel=0.05)


def test_a_profile_s_ranges_become_a_stage_s_spread():
    layers = [
        msgspec.structs.replace(layer, forward_spread=1.349e-3, weight_grad_spread=0.0)
        for layer in sample_graph().layers[1:5]
    ]
    (spread,) = measured_spreads([layers])
    assert IQR_OF_NORMAL == 1.349
    assert spread.forward == pytest.approx(2e-3 / sum(layer.forward_time for layer in layers))
    assert spread.backward == spread.send == 0.0


def test_draws_in_blocks_spread_as_draws_at_once(monkeypatch: pytest.MonkeyPatch):
    whole = draw(0.1, draws=400)
    monkeypatch.setattr(noise, "MOST_AT_ONCE", 48 * 7)  # seven draws of 48 actions
    blocks = draw(0.1, draws=400)
    assert blocks.shape == whole.shape and (blocks[:7] != blocks[7:14]).all()
    assert blocks.mean() == pytest.approx(whole.mean(), rel=0.02)


def test_more_draws_than_a_minute_can_make_are_refused_before_memory_is_taken():
    with pytest.raises(UsageError, match="1000000000 draws are too many for a step of 48 actions"):
        draw(0.1, draws=10**9)
