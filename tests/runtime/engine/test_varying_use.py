"""Code that no graph holds may use other weights in each step and on each process."""

from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import nn

from autopart.records.cluster import cluster_of
from autopart.records.plan import Plan
from autopart.runtime.capture.capture import capture_model
from autopart.runtime.capture.stage_modules import split_stages
from autopart.runtime.engine.group_part import DataPart
from autopart.runtime.engine.no_gradient import is_no_gradient, no_gradient
from autopart.runtime.engine.run_settings import RunSettings
from autopart.runtime.engine.sharded_state import ShardedState
from autopart.runtime.engine.stage import TorchStage
from autopart.runtime.models.model import TrainingModel
from autopart.runtime.profiling.profiler import profile_model
from autopart.search.planner import solve
from tests.support.runtime.lone_groups import RecordedGroup
from tests.support.runtime.on_ranks import run
from tests.support.runtime.rank_pool import RankPool
from tests.support.runtime.sharded_step import lone_process, sharded_step
from tests.support.runtime.tensor_runs import run_groups
from tests.support.tried.trial import model_file

WIDTH, STEPS = 8, 6
SAMPLES = (1.0, 0.0, -1.0)
"""The first feature of a sample that takes each of three results."""


class Picking(nn.Module):
    """Three layers run, and the value of a feature picks the result of one. Their sizes differ."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(WIDTH, WIDTH)
        self.results = nn.ModuleList(
            nn.Sequential(nn.Linear(WIDTH, inner), nn.Linear(inner, WIDTH)) for inner in (2, 3, 5)
        )
        self.last = nn.Linear(WIDTH, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.first(x)
        a = self.results[0](h)
        b = self.results[1](h)
        c = self.results[2](h)
        picked = a if x[0, 0] > 0.5 else b if x[0, 0] > -0.5 else c
        return self.last(picked)


def step_of(feature: float, part: DataPart, *, splits: bool, varies: bool) -> ShardedState:
    """The state after a step of one microbatch of one sample."""
    torch.manual_seed(0)
    example = torch.randn(1, WIDTH), torch.zeros(1, 1)
    x = example[0].index_fill(1, torch.tensor([0]), feature)
    model = TrainingModel(Picking(), nn.functional.mse_loss)
    return sharded_step(model, example, (x, example[1]), part, splits=splits, varies=varies)


@pytest.mark.parametrize("splits", [False, True])
@pytest.mark.parametrize("reduce", ["microbatch", "step"])
@pytest.mark.parametrize("shard", ["zero2", "zero3"])
def test_processes_that_use_other_weights_have_the_same_collectives(
    shard: Literal["zero2", "zero3"],
    reduce: Literal["microbatch", "step"],
    *,
    splits: bool,
) -> None:
    found: list[list[tuple[str, int]]] = []
    for feature in SAMPLES:
        own = RecordedGroup()
        step_of(feature, DataPart(own, shard, reduce, 0.5), splits=splits, varies=True)
        found.append(own.calls)
    assert found[0] == found[1] == found[2]
    kinds = [kind for kind, _ in found[0]]
    assert kinds.count("scatter") == 8 and kinds.count("sum") == 1
    assert (kinds.count("gather") >= 16) == (shard == "zero3")


@pytest.mark.parametrize("splits", [False, True])
def test_without_visits_their_collectives_would_differ(*, splits: bool) -> None:
    found: list[list[tuple[str, int]]] = []
    for feature in SAMPLES:
        own = RecordedGroup()
        part = DataPart(own, "zero2", "microbatch", 0.5)
        step_of(feature, part, splits=splits, varies=False)
        found.append(own.calls)
    assert found[0] != found[1] != found[2]


def test_weights_that_no_process_uses_keep_no_gradient() -> None:
    for place, feature in enumerate(SAMPLES):
        part = DataPart(RecordedGroup(), "zero2", "microbatch", 0.5)
        state = step_of(feature, part, splits=False, varies=True)
        for name, parameter in state.parameters.items():
            unused = name.startswith("results.") and int(name.split(".")[1]) != place
            assert (parameter.grad is None) == unused, name


@pytest.mark.parametrize("varies", [True, False])
def test_weights_of_a_value_that_the_next_stage_does_not_use_keep_no_gradient(
    *, varies: bool
) -> None:
    for place, feature in enumerate(SAMPLES):
        example = torch.randn(1, WIDTH), torch.zeros(1, 1)
        x = example[0].index_fill(1, torch.tensor([0]), feature)
        model = TrainingModel(Picking(), nn.functional.mse_loss)
        captured = capture_model(model, ((example[0],), example[1]), granularity="module")
        names = [layer.name for layer in captured.layers]
        cut = names.index("results.2.0")
        programs = split_stages(captured, [names[:cut], names[cut:]])
        leaves = dict(zip(split_stages(captured, [names])[0].inputs, (x, example[1]), strict=True))
        with lone_process() as alone:
            first, last = (
                TorchStage(program, index, 2, 1, torch.device("cpu"), alone)
                for index, program in enumerate(programs)
            )
            first.use_varies = last.use_varies = varies
            last.forward(0, first.forward(0, (), leaves), leaves)
            first.backward(0, last.backward(0, (), 1.0), 1.0)
        for name, parameter in model.model.named_parameters():
            unused = name.startswith("results.") and int(name.split(".")[1]) != place
            zeros = not varies and not name.startswith("results.2")
            assert (parameter.grad is None) == (unused and not zeros), name
            assert parameter.grad is None or bool(parameter.grad.any()) == (not unused), name


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64]
)
def test_no_gradient_is_told_from_every_other_gradient(dtype: torch.dtype) -> None:
    shape, device = (2, 3), torch.device("cpu")
    nothing = no_gradient(shape, dtype, device)
    assert nothing.dtype == dtype and nothing.shape == shape and nothing.isnan().all()
    assert is_no_gradient(nothing) and is_no_gradient(nothing.clone())
    for other in (0.0, -0.0, float("nan"), float("inf"), 1.0):
        assert not is_no_gradient(torch.full(shape, other, dtype=dtype))
    assert not is_no_gradient(torch.full(shape, float("inf"), dtype=dtype) * 0)
    nothing[0, 0] = 1.0
    assert not is_no_gradient(nothing)


OPTIONS: dict[str, dict[str, Any]] = {
    "replicas": {"num_stages": 1, "num_replicas": 2},
    "overlap": {"num_stages": 1, "num_replicas": 2, "sync": "overlap"},
    "zero1": {"num_stages": 1, "num_replicas": 2, "zero1": True},
    "zero2": {"num_stages": 1, "num_replicas": 1, "shard": "zero2"},
    "zero3": {"num_stages": 1, "num_replicas": 1, "shard": "zero3"},
    "hybrid": {"num_stages": 1, "num_replicas": 2, "shard": "zero3", "shard_degree": 2, "sync": "overlap"},
    "split": {"num_stages": 2, "num_replicas": 1, "shard": "zero3", "shard_degree": 2, "schedule": "zb-h1"},
}  # fmt: skip


def check_training(pool: RankPool, folder: Path, gpus: int, kind: str, name: str) -> None:
    """Run a plan with a check; it raises where anything differs from the plain model.

    AdamW moves weights without a gradient otherwise than those with a zero gradient.
    """
    model = model_file("tests.support.tried.hostile_control", name, folder)
    # The fewer samples a step has, the fewer weights it uses: replicas have one sample each.
    size = 2 if "shard" in OPTIONS[kind] else 1
    given = profile_model(model, microbatch_size=size, warmup=0, repeats=1)
    batch = size * gpus
    plan: Plan = solve(given, cluster_of("cpu", gpus=gpus), global_batch=batch, **OPTIONS[kind])
    settings = RunSettings(model=model, steps=STEPS, check=True, optimizer="adamw")
    result = pool.call(run if plan.group is None else run_groups, plan, settings)[0]
    assert result is not None and result.check is not None
    assert result.check.gradients <= 1e-5


TWO_RANKS = ("replicas", "overlap", "zero1", "zero2", "zero3")
MODELS = ("weights_by_sample", "results_by_sample")
IN_CI = {
    ("replicas", "weights_by_sample"),
    ("overlap", "results_by_sample"),
    ("zero1", "results_by_sample"),
    ("zero3", "results_by_sample"),
    ("split", "results_by_sample"),
}
"""Kinds and models of slow tests. All others are long ones."""


def cases(*kinds: str) -> list[object]:
    """Each kind with each model."""
    return [
        pytest.param(kind, name, marks=() if (kind, name) in IN_CI else pytest.mark.long)
        for kind in kinds
        for name in MODELS
    ]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the sum of such small layers is far from the whole model
@pytest.mark.parametrize(("kind", "name"), cases(*TWO_RANKS))
def test_steps_that_use_other_weights_train_as_the_plain_model(
    two_ranks: RankPool, tmp_path: Path, kind: str, name: str
) -> None:
    check_training(two_ranks, tmp_path, 2, kind, name)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("kind", "name"), cases("hybrid", "split"))
def test_four_processes_train_as_the_plain_model(
    four_ranks: RankPool, tmp_path: Path, kind: str, name: str
) -> None:
    check_training(four_ranks, tmp_path, 4, kind, name)
