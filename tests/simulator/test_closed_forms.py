"""The simulator against papers and arithmetic, on whole steps."""

import random

import pytest

from autopart.records.prediction import StagePrediction
from autopart.schedules.catalogue import KINDS, make_schedule
from autopart.simulator.timeline import simulate
from tests.support.pictures import place_stages
from tests.support.steps import stage


def makespan(name: str, microbatches: int, stages: list[StagePrediction], ranks: int = 0) -> float:
    num_ranks = ranks or len(stages)
    line = place_stages(KINDS[name], num_ranks, len(stages) // num_ranks)
    schedule = make_schedule(name, line, microbatches)
    return simulate(schedule, line, stages, (), action_overhead=0.0, sends_overlap=True).makespan


@pytest.mark.parametrize("seed", range(50))
def test_gpipe_s_forwards_are_a_flow_shop_and_its_backwards_another(seed: int):
    """Without sends, GPipe takes at most sum + (m - 1) x max over forwards, and again over
    backwards.

    On equal stages it takes exactly this.
    """
    rng = random.Random(seed)
    stages = [stage(rng.randint(1, 9), rng.randint(1, 9)) for _ in range(rng.randint(1, 6))]
    m = rng.randint(1, 12)
    forwards, backwards = [s.forward_time for s in stages], [s.backward_time for s in stages]
    expected = sum(forwards) + (m - 1) * max(forwards)
    expected += sum(backwards) + (m - 1) * max(backwards)
    assert makespan("gpipe", m, stages) <= expected
    equal = [stage(forwards[0], backwards[0])] * len(stages)
    total = forwards[0] + backwards[0]
    assert makespan("gpipe", m, equal) == (m + len(stages) - 1) * total


@pytest.mark.parametrize("ranks", [2, 3, 4, 8])
def test_zero_bubble_schedules_idle_as_in_their_paper(ranks: int):
    """Qi et al., Zero Bubble Pipeline Parallelism, ICLR 2024, with T_F = T_B = T_W = 1.

    The step takes m (T_F + T_B + T_W) and idle time on top:

        ZB-H1    (p - 1) (T_F + T_B - T_W)
        1F1B     (p - 1) (T_F + T_B + T_W)
    """
    equal, m = [stage(1.0, 2.0, weight_grad_time=1.0)] * ranks, 4 * ranks
    assert makespan("1f1b", m, equal) == 3 * m + 3 * (ranks - 1)
    assert makespan("zb-h1", m, equal) == 3 * m + (ranks - 1)


@pytest.mark.parametrize(("ranks", "each"), [(2, 2), (4, 2), (4, 3)])
def test_interleaving_divides_the_bubble_by_the_stages_per_rank(ranks: int, each: int):
    """Narayanan et al., Megatron-LM, SC 2021: (p - 1) (t_F + t_B) / v."""
    equal, m = [stage(1.0, 2.0)] * (ranks * each), 4 * ranks
    taken = makespan("interleaved-1f1b", m, equal, ranks)
    assert taken == 3 * each * m + 3 * (ranks - 1)


@pytest.mark.parametrize("seed", range(60))
def test_with_sends_the_slowest_circle_sets_the_period(seed: int):
    """A microbatch runs from stage s to the last stage and back, sends included.

    This must end before s starts the microbatch that is in-flight(s) later. So

        period >= (sum of times + 2 sends per cut) / in flight

    With two stages the period is the longest of these circles.
    """
    rng = random.Random(seed)
    k = rng.choice([2, 2, 3, 4])
    stages = [
        stage(
            rng.randint(1, 9),
            rng.randint(1, 9),
            send_time=rng.randint(0, 6) if s < k - 1 else 0,
            send_back_time=rng.randint(0, 6) if s else 0,
        )
        for s in range(k)
    ]
    steps = 60
    period = (makespan("1f1b", 40 + steps, stages) - makespan("1f1b", 40, stages)) / steps
    round_trips: list[float] = []
    for first in range(k):
        compute = sum(s.forward_time + s.backward_time for s in stages[first:])
        sends = sum(s.send_time for s in stages[first:]) + sum(
            s.send_back_time for s in stages[first + 1 :]
        )
        round_trips.append((compute + sends) / (k - first))
        round_trips.append(stages[first].forward_time + stages[first].backward_time)
    links = [t for s in stages for t in (s.send_time, s.send_back_time)]
    assert period >= max(round_trips) - 1e-9
    if k == 2:
        assert period == pytest.approx(max(*round_trips, *links))
