"""One model through profile, solve, verify and a checked run on two ranks."""

import contextlib
import io
import re
import warnings
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from torch import nn

from autopart.certificate.verify import verify
from autopart.errors import AutopartError, InfeasibleError
from autopart.records.cluster import cluster_of
from autopart.records.plan import Plan
from autopart.records.profile import Profile
from autopart.runtime.engine.run_settings import RunSettings
from autopart.runtime.profiling.profiler import profile_model
from autopart.search.planner import solve
from tests.support.runtime.on_ranks import run
from tests.support.runtime.rank_pool import RankPool

MICROBATCH = 2
STEPS = 2
SGD = RunSettings(model="", steps=STEPS, check=True)


@dataclass(frozen=True, kw_only=True)
class Tried:
    """A model with its batch, and the line that refuses it."""

    build: Callable[[], nn.Module]
    inputs: Callable[[int], Any]
    """Inputs of one microbatch."""
    target: Callable[[int], Any] | None = None
    loss_fn: Callable[[Any, Any], Any] | None = None
    refused: str = ""
    """Pattern of the line that refuses the model. Empty for a model that is profiled."""
    one_layer: str = ""
    """Pattern of the reason why the model cannot be cut. Empty for a model that can."""
    dtype: str | None = None
    """Precision of the trial. None: every tensor keeps its own."""


class Outcome(NamedTuple):
    """The end of a trial."""

    verdict: str
    """"passed", "cannot be cut", or "refused by" and the step that refused it."""
    line: str
    """The message; empty for a model that passed."""
    num_layers: int = 0
    warnings: tuple[str, ...] = ()


def model_file(table: str, name: str, folder: Path) -> str:
    """Write a model file for an entry of a table, and return its path."""
    path = folder / f"{name}.py"
    path.write_text(
        f"from {table} import MODELS\n"
        f"tried = MODELS[{name!r}]\n"
        "build_model, example_inputs = tried.build, tried.inputs\n"
        "example_target, loss_fn = tried.target, tried.loss_fn\n"
    )
    return str(path)


def trial(
    model: str, pool: RankPool, dtype: str | None = None, settings: RunSettings = SGD
) -> Outcome:
    """The outcome for the model that `model` names. An error without a line is raised as it is."""
    step, profile = "profile", None
    try:
        with contextlib.redirect_stdout(io.StringIO()), _users_warnings():
            profile = profile_model(
                model, microbatch_size=MICROBATCH, warmup=0, repeats=1, dtype=dtype
            )
        step, cluster = "solve", cluster_of("cpu", gpus=2)
        plan = solve(profile, cluster, num_stages=2, num_replicas=1, global_batch=2 * MICROBATCH)
    except AutopartError as error:
        return _refused(step, error, profile)
    for check in verify(plan, profile):
        assert check.passed, check
    lines = pool.call(line_of_run, plan, msgspec.structs.replace(settings, model=model))
    verdict = "refused by run" if any(lines) else "passed"
    return Outcome(verdict, next(filter(None, lines), ""), _layers(profile), profile.warnings)


def check(
    table: str,
    name: str,
    tried: Tried,
    folder: Path,
    pool: RankPool,
    settings: RunSettings = SGD,
) -> None:
    """Assert that a trial ends as its entry in the table says, in one line."""
    outcome = trial(model_file(table, name, folder), pool, tried.dtype, settings)
    assert "\n" not in outcome.line
    if tried.refused:
        assert outcome.verdict.startswith("refused"), outcome
        assert re.search(tried.refused, outcome.line), outcome
    elif tried.one_layer:
        assert outcome.verdict == "cannot be cut", outcome
        assert any(re.search(tried.one_layer, warning) for warning in outcome.warnings), outcome
    else:
        assert outcome.verdict == "passed", outcome


def counts(*tables: Mapping[str, Tried]) -> tuple[int, int, int]:
    """The numbers of entries that pass, cannot be cut and are refused."""
    entries = [tried for table in tables for tried in table.values()]
    refused = sum(bool(tried.refused) for tried in entries)
    whole = sum(bool(tried.one_layer) for tried in entries)
    return len(entries) - refused - whole, whole, refused


def line_of_run(rank: int, plan: Plan, settings: RunSettings) -> str:
    """The error of a run on this rank, empty without one."""
    try:
        with contextlib.redirect_stdout(io.StringIO()), _users_warnings():
            run(rank, plan, settings)
    except AutopartError as error:
        return str(error)
    return ""


@contextlib.contextmanager
def _users_warnings() -> Generator[None]:
    """In this block warnings of the model are no errors, as in a user's process."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _layers(profile: Profile) -> int:
    return len(profile.graph.layers)


def _refused(step: str, error: AutopartError, profile: Profile | None) -> Outcome:
    if profile is None:
        return Outcome(f"refused by {step}", str(error))
    whole = isinstance(error, InfeasibleError) and _layers(profile) == 1
    verdict = "cannot be cut" if whole else f"refused by {step}"
    return Outcome(verdict, str(error), _layers(profile), profile.warnings)
