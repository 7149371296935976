"""A calibration from the steps of runs that the user already has, one row of a CSV file each.

    model,gpus,nodes,tensor,pipeline,microbatch,batch,schedule,recompute,seconds
    zoo:llama-8b,16,2,2,2,1,64,1f1b,never,3.21

`model`, `gpus`, `batch` (samples per step) and `seconds` must be there. Stages have equally many layers, as the baseline "uniform"
has them, and the step is the one that `solve` predicts for such a plan.
"""

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import msgspec

from autopart.calibration.fit import (
    ORDER,
    Row,
    Stretches,
    fit_stretches,
    kinds_to_fit,
    most_kinds,
    most_share,
)
from autopart.calibration.kinds import CalibratedDevice, Wanted, parts_of, profiles_by_kind
from autopart.errors import AutopartError, UsageError
from autopart.records.calibration import Calibration, Validity
from autopart.records.cluster import Cluster, cluster_of
from autopart.records.files import read_content
from autopart.records.kernels import kernels_of, with_peaks
from autopart.records.known_clusters import find_preset, preset_cluster
from autopart.records.known_gpus import find_gpu
from autopart.records.profile import Profile
from autopart.search.planner import solve
from autopart.text import counted
from autopart.units import MOST_SECONDS

COLUMNS = {
    "model": "",
    "gpus": "",
    "nodes": "0",
    "tensor": "1",
    "pipeline": "1",
    "microbatch": "1",
    "batch": "",
    "schedule": "1f1b",
    "recompute": "never",
    "seconds": "",
}
"""The columns and their defaults; a column without a default must be there."""
_COUNTS = ("gpus", "tensor", "pipeline", "microbatch", "batch")
_GPUS_PER_NODE = 8
_ROOM = 1 << 46
"""Bytes of memory per GPU: a run that took place had enough."""
_TIME_LIMIT = 20.0


class Run(NamedTuple):
    """One run that took place."""

    name: str
    """The row in words: the file and the line."""
    model: str
    gpus: int
    nodes: int
    tensor: int
    pipeline: int
    microbatch: int
    batch: int
    schedule: str
    recompute: str
    seconds: float


def read_runs(path: Path) -> list[Run]:
    """The runs in a CSV file; raises FileError or UsageError with the line that is wrong."""
    try:
        text = read_content(path).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UsageError(f"{path}: it is no text in UTF-8") from None
    try:
        rows = list(csv.DictReader(io.StringIO(text), strict=True))
    except csv.Error as error:
        raise UsageError(f"{path}: it is no CSV file: {error}") from None
    heads = list(rows[0]) if rows else []
    missing = [name for name, default in COLUMNS.items() if not default and name not in heads]
    if not rows or missing:
        wanted = ", ".join(missing or COLUMNS)
        raise UsageError(f"{path}: it has no column {wanted}; the first line names the columns")
    for head in heads:
        if head not in COLUMNS:
            raise UsageError(f"{path}: unknown column '{head}'; known: {', '.join(COLUMNS)}")
    return [_run(row, f"{path}, line {line}") for line, row in enumerate(rows, start=2)]


def calibrate_from_steps(
    runs: Sequence[Run],
    made_from: str,
    device: tuple[str, str, str],
    *,
    preset: str | None = None,
    kinds: Sequence[str] = (),
) -> tuple[Calibration, Stretches]:
    """The calibration of `device` (GPU, dtype, target) from runs, and the fit behind it.

    `preset` names the known cluster whose network counts. Raises UsageError for too few rows, and the errors of the
    profiler and the planner with the row that they belong to.
    """
    gpu, dtype, target = device
    found = find_gpu(gpu)
    own = CalibratedDevice(gpu, dtype, kernels_of(found, target))
    possible = list(kinds) or list(ORDER[: most_kinds(len(runs))])
    nothing = [Row(run.name, run.name, 0.0, (1.0,) * len(ORDER), run.seconds) for run in runs]
    kinds_to_fit(nothing, kinds)
    rows: list[Row] = []
    params: list[int] = []
    for wanted, group in _by_profile(runs).items():
        base, slower = profiles_by_kind(wanted, own, possible)
        params.append(base.source.num_params)
        for run in group:
            (parts,) = parts_of(_priced(run, gpu, preset), base, slower)
            rows.append(Row(run.name, run.name, *parts, run.seconds))
    fitted = fit_stretches(rows, own.table.shares, kinds, most_share(gpu))
    kernels = msgspec.structs.replace(own.table, shares=fitted.shares)
    return Calibration(
        gpu=gpu,
        dtype=dtype,
        kernels=with_peaks(kernels, found, dtype),
        source="steps",
        made_from=made_from,
        fit=fitted.fit,
        validity=Validity(
            least_params=max(1, min(params)),
            most_params=max(1, *params),
            microbatch_sizes=tuple(sorted({run.microbatch for run in runs})),
        ),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    ), fitted


def step_of(run: Run, profile: Profile, cluster: Cluster) -> float:
    """Seconds of the run's step as a plan with equally many layers per stage predicts them."""
    try:
        plan = solve(
            profile,
            cluster,
            global_batch=run.batch,
            num_stages=run.pipeline,
            num_replicas=run.gpus // (run.tensor * run.pipeline),
            tensor=run.tensor,
            schedule=run.schedule,
            recompute=run.recompute,
            solver="uniform",
            time_limit=_TIME_LIMIT,
        )
    except AutopartError as error:
        raise UsageError(f"{run.name}: {error}") from None
    return plan.prediction.step_time


def _priced(run: Run, gpu: str, preset: str | None) -> Callable[[Profile], Sequence[float]]:
    nodes = run.nodes or -(-run.gpus // _GPUS_PER_NODE)
    try:
        named = None if preset is None else find_preset(preset)
        cluster = cluster_of(gpu, run.gpus, nodes)
        if named is not None and nodes > 1:
            cluster = preset_cluster(named, nodes)
    except AutopartError as error:
        raise UsageError(f"{run.name}: {error}") from None
    roomy = msgspec.structs.replace(cluster, memory_bytes=_ROOM)

    def steps(profile: Profile) -> Sequence[float]:
        return [step_of(run, profile, roomy)]

    return steps


def _by_profile(runs: Sequence[Run]) -> Mapping[Wanted, list[Run]]:
    """The runs by the profile that they need, with all tensor degrees of a model together."""
    degrees: dict[tuple[str, int], set[int]] = {}
    for run in runs:
        degrees.setdefault((run.model, run.microbatch), set()).add(run.tensor)
    found: dict[Wanted, list[Run]] = {}
    for run in runs:
        own = tuple(sorted(degrees[run.model, run.microbatch] - {1}))
        found.setdefault(Wanted(run.model, run.microbatch, own), []).append(run)
    return found


def _run(row: Mapping[str, str | None], name: str) -> Run:
    given = {column: (row.get(column) or default).strip() for column, default in COLUMNS.items()}
    counts = {column: _count(given[column], column, name) for column in _COUNTS}
    nodes = _count(given["nodes"], "nodes", name, least=0)
    try:
        seconds = float(given["seconds"])
    except ValueError:
        seconds = 0.0
    if not 0.0 < seconds <= MOST_SECONDS:
        raise UsageError(
            f"{name}: seconds '{given['seconds']}' must be a number above 0, and at most {MOST_SECONDS:g}"
        )
    if counts["gpus"] % (counts["tensor"] * counts["pipeline"]):
        raise UsageError(
            f"{name}: {counted(counts['gpus'], 'GPU')} cannot be shared by {counted(counts['pipeline'], 'stage')} of {counts['tensor']}"
        )
    if not given["model"]:
        raise UsageError(f"{name}: it names no model")
    return Run(
        name,
        given["model"],
        nodes=nodes,
        schedule=given["schedule"],
        recompute=given["recompute"],
        seconds=seconds,
        **counts,
    )


def _count(text: str, column: str, name: str, least: int = 1) -> int:
    if not text.isdecimal() or not text.isascii() or len(text) > 9 or int(text) < least:
        raise UsageError(f"{name}: {column} '{text}' must be a whole number of at least {least}")
    return int(text)
