"""Rounds under stopwatches with known readings."""

from collections import Counter
from collections.abc import Iterator
from itertools import count, cycle

import pytest
import torch

from autopart.runtime.measuring.progress import StepCounter
from autopart.runtime.profiling.convergence import spread_of
from autopart.runtime.profiling.model_times import MAX_REPEATS, Effort, RunAgain, measure_times
from autopart.runtime.profiling.profiled_model import ProfiledModel, prepare_model
from autopart.runtime.profiling.rounds import measure_round
from autopart.runtime.profiling.update_time import measure_update
from autopart.runtime.profiling.whole_model import StepReadings, own_forward
from tests.support.places import MODELS
from tests.support.runtime.scripted_stopwatch import ScriptedStopwatch

PROFILED = MODELS / "profiled.py"


@pytest.fixture(scope="module")
def perceptron() -> ProfiledModel:
    return prepare_model(
        f"{PROFILED}:build_perceptron", 4, dtype="float32", device="cpu", granularity="module"
    )


def _whole() -> StepReadings:
    return StepReadings(lambda: 100.0, lambda: 200.0)


@pytest.mark.slow
def test_a_round_reads_whole_and_split_backwards_of_each_layer(
    perceptron: ProfiledModel,
) -> None:
    # Forwards 1-4 and backwards 5-8 of the layers 0, 1, 2 and the loss. Then forwards 9-12, I of
    # the loss (13), I and W of 2 (14, 15), I of 1 (16), and I and W of 0 (17, 18).
    stopwatch = ScriptedStopwatch(map(float, count(1)))
    measured = measure_round(perceptron.timed, perceptron.timed_split, _whole, stopwatch)
    assert [layer.forward for layer in measured.layers] == [1, 2, 3, 4]
    assert [layer.backward for layer in measured.layers] == [8, 7, 6, 5]
    split = [(la.split_forward, la.input_grad, la.weight_grad) for la in measured.layers]
    assert split[0] == (9, 17, 18)
    assert split[1] == (2, 7, 0), "a ReLU defers nothing: its plain times count"
    assert split[2:] == [(11, 14, 15), (4, 5, 0)]
    assert (measured.whole_forward, measured.whole_backward) == (100, 200)


def test_an_idle_layer_is_subtracted_where_the_host_is_timed(
    perceptron: ProfiledModel,
) -> None:
    constant = ScriptedStopwatch(cycle([5.0]), counts_host_work=True)
    measured = measure_round(perceptron.timed, perceptron.timed_split, _whole, constant)
    first, relu, linear, loss = map(tuple, measured.layers)
    assert relu == loss == (0.0, 0.0, 0.0, 0.0, 0.0)
    assert first == linear == (0.0, 0.0, 0.0, 0.0, 5.0), "W starts no autograd of its own"
    assert measured.whole_forward == 100


@pytest.mark.slow
def test_rounds_that_agree_are_not_repeated(perceptron: ProfiledModel) -> None:
    told: list[tuple[int, int]] = []
    steps = StepCounter(lambda done, total, name: told.append((done, total)), total=6)
    times = measure_times(
        perceptron,
        own_forward(perceptron),
        ScriptedStopwatch(cycle([1.0])),
        Effort(warmup=1, repeats=3),
        RunAgain(()),
        steps,
    )
    assert len(times.rounds) == 3
    assert spread_of(times.rounds) == 0.0
    assert times.waiting_share == 0.25
    assert times.updates == (1.0, 0.0, 1.0, 0.0), "only two layers have parameters"
    assert told == [(done, 6) for done in range(6)]


@pytest.mark.slow
def test_rounds_that_scatter_are_repeated_up_to_a_bound(perceptron: ProfiledModel) -> None:
    told: list[int] = []
    steps = StepCounter(lambda done, total, name: told.append(total), total=4)
    times = measure_times(
        perceptron,
        own_forward(perceptron),
        ScriptedStopwatch(2.0 ** (n // 18 % 3) for n in count()),
        Effort(warmup=0, repeats=2),
        RunAgain(()),
        steps,
    )
    assert len(times.rounds) == MAX_REPEATS * 2
    assert spread_of(times.rounds) > 0.1
    assert told[-1] == 4 + 4, "the total grows with the added rounds"


@pytest.mark.slow
def test_rounds_before_convergence_do_not_count(perceptron: ProfiledModel) -> None:
    times = measure_times(
        perceptron,
        own_forward(perceptron),
        ScriptedStopwatch(10.0 if n < 3 * 18 else 1.0 for n in count()),
        Effort(warmup=0, repeats=4),
        RunAgain(()),
        StepCounter(None, total=5),
    )
    assert len(times.all_rounds) == 3 + 4
    assert len(times.rounds) == 4
    assert spread_of(times.rounds) <= 0.1 < spread_of(times.all_rounds)


def test_measuring_the_optimizer_changes_neither_parameters_nor_gradients() -> None:
    weight = torch.nn.Parameter(torch.randn(4, 4))
    weight.grad = torch.randn(4, 4)
    before, gradient = weight.detach().clone(), weight.grad
    calls: Counter[str] = Counter()

    def seconds() -> Iterator[float]:
        for second in (50.0, 1.0, 2.0, 3.0):
            calls["read"] += 1
            yield second

    assert measure_update([weight], ScriptedStopwatch(seconds()), repeats=3) == 2.0
    assert calls["read"] == 4, "the first step makes the state and does not count"
    assert torch.equal(weight, before)
    assert weight.grad is gradient


def test_frozen_parameters_are_not_stepped() -> None:
    frozen = torch.nn.Parameter(torch.randn(4), requires_grad=False)
    assert measure_update([frozen], ScriptedStopwatch(iter([])), repeats=3) == 0.0
