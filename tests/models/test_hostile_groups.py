"""The zoo of hostile models in rank groups of two: each trains as the plain model, or is refused in one line."""

import contextlib
import io
import warnings
from pathlib import Path

import pytest

from autopart.certificate.verify import verify
from autopart.errors import AutopartError
from autopart.records.cluster import cluster_of
from autopart.records.plan import Plan
from autopart.runtime.engine.run_settings import RunSettings
from autopart.runtime.profiling.profiler import profile_model
from autopart.search.planner import solve
from tests.models.test_hostile import TABLES
from tests.support.runtime.rank_pool import RankPool
from tests.support.runtime.tensor_runs import error_of_groups
from tests.support.tried.trial import model_file

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # some of these models warn

IN_CI = {
    ("zero3", "complex_weight"),
    ("zero3", "multinomial"),
    ("zero3", "routing_by_value"),
    ("zero3", "unique"),
    ("tensor", "complex_weight"),
    ("tensor", "lstm_with_dropout"),
    ("tensor", "uniform_noise"),
    ("tensor", "unique"),
}
"""Groups and models of slow tests. All others are long ones."""

SAMPLES_MEET = {
    "autocast_inside": "sums over samples in bfloat16",
    "averaging_buffer": "a mean over all samples in a buffer",
    "gradient_penalty": "a norm over the gradients of all samples",
    "loop_until_small": "a loop as long as all samples need",
    "no_grad_inside": "a mean over all samples",
    "nonzero": "a choice of rows over all samples",
    "own_generator": "one draw for all samples",
    "randomised_relu": "a draw that fills two tensors, which the check seeds in one of them",
    "replaced_buffer": "a mean over all samples in a buffer",
    "unique": "a count over all samples",
}
"""Models that compute something else where ranks divide samples. The check finds each."""

STEPS = {"loop_until_small": 8}
"""Steps until the difference shows: only then a process's own samples need fewer loops. Default: 2."""

MISJUDGED = {("tensor", "randomised_relu")}
"""Refused by the check of the shards, which seeds one of the two tensors that RReLU fills."""


def entries() -> list[object]:
    """Every kind of group with every model."""
    return [
        pytest.param(
            kind,
            table,
            name,
            id=f"{kind}, {name}",
            marks=() if (kind, name) in IN_CI else pytest.mark.long,
        )
        for kind in ("zero3", "tensor")
        for table, models in TABLES.items()
        for name in models
    ]


def planned(model: str, kind: str, dtype: str | None) -> Plan:
    """A plan of one stage for a group of two."""
    given = profile_model(
        model,
        microbatch_size=2,
        warmup=0,
        repeats=1,
        dtype=dtype,
        tensor=(2,) if kind == "tensor" else (),
    )
    plan = solve(
        given,
        cluster_of("cpu", gpus=2),
        num_stages=1,
        num_replicas=1,
        global_batch=8,
        tensor=2 if kind == "tensor" else 1,
        shard="zero3" if kind == "zero3" else "none",
    )
    assert all(check.passed for check in verify(plan, given))
    return plan


def quiet_error(process: int, plan: Plan, settings: RunSettings) -> str:
    """The error of a run as one process; "" without one. What the model prints and warns is not shown."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return error_of_groups(process, plan, settings)


@pytest.mark.parametrize(("kind", "table", "name"), entries())
def test_a_hostile_model_trains_as_the_plain_one_or_is_refused_in_one_line(
    two_ranks: RankPool, tmp_path: Path, kind: str, table: str, name: str
) -> None:
    model = model_file(table, name, tmp_path)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            plan = planned(model, kind, TABLES[table][name].dtype)
        asked = RunSettings(model=model, steps=STEPS.get(name, 2), check=True)
        said = two_ranks.call(quiet_error, plan, asked)
        line = next(filter(None, said), "")
    except AutopartError as error:
        line = str(error)
        wrong = (kind, name) in MISJUDGED
        assert ("a rule of the pass is wrong" in line) == wrong
    assert "\n" not in line
    differs = kind == "zero3" and name in SAMPLES_MEET
    assert differs == ("differs from the plain model" in line), line
    if differs:
        assert "a layer in which samples meet sees only its own" in line
    if (kind, name) in IN_CI and not differs:
        assert not line
