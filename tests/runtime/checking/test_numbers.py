"""NaN in a parameter or a loss is told as such, in profiles, runs and checks."""

import msgspec
import pytest
from rich.console import Console

from autopart.records.run_result import RunResult
from autopart.report.run_table import run_report
from autopart.runtime.engine.run_settings import RunSettings
from autopart.runtime.profiling.profiler import profile_model
from tests.support.places import MODELS
from tests.support.runtime.on_ranks import complaint_of, run
from tests.support.runtime.plans import capture, plan_for
from tests.support.runtime.rank_pool import RankPool

FILE = str(MODELS / "odd_forwards.py")
NAN_PARAMETER, NAN_LOSS = f"{FILE}:nan_parameter", f"{FILE}:log_of_negative"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "told"),
    [
        pytest.param(
            NAN_PARAMETER,
            "parameter 'blocks.1.bias' contains NaN before any step",
            marks=pytest.mark.long,
        ),
        (NAN_LOSS, "the loss is nan on the example batch"),
    ],
)
def test_a_profile_tells_nan(model: str, told: str):
    profile = profile_model(model, microbatch_size=2, repeats=1, warmup=0)
    assert [note for note in profile.warnings if told in note]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "check", "told"),
    [
        (NAN_PARAMETER, False, "parameter 'blocks.1.bias' contains NaN before any step"),
        (NAN_LOSS, True, "the plain model's own loss of step 1 is nan"),
    ],
)
def test_a_run_names_nan_as_the_cause(two_ranks: RankPool, model: str, check: bool, told: str):
    plan = plan_for(model, capture(model), [0.5])
    settings = RunSettings(model=model, steps=1, check=check)
    assert told in two_ranks.call(complaint_of, plan, settings)[0]


@pytest.mark.slow
def test_a_run_with_nan_losses_has_a_result_that_says_so(two_ranks: RankPool):
    plan = plan_for(NAN_LOSS, capture(NAN_LOSS), [0.5])
    result = two_ranks.call(run, plan, RunSettings(model=NAN_LOSS, steps=1))[0]
    assert isinstance(result, RunResult) and result.losses == (None,)
    # The launcher reads the result from a file.
    assert msgspec.json.decode(msgspec.json.encode(result), type=RunResult).losses == (None,)
    assert any("NaN or infinite from step 1 on" in note for note in result.notes)
    console = Console(width=200)
    with console.capture() as printed:
        console.print(run_report(result))
    assert "loss NaN or infinite" in printed.get()
