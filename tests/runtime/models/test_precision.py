"""Dtypes and modes that the user gave stay; a cast happens only where it is asked for."""

import msgspec
import pytest
import torch
from torch import nn

from autopart.certificate.verify import verify
from autopart.errors import ModelError
from autopart.records.cluster import cluster_of
from autopart.records.plan import Plan, cast_of
from autopart.records.profile import Profile
from autopart.records.run_result import RunResult
from autopart.runtime.capture.capture import Captured, capture_model
from autopart.runtime.engine.run_settings import RunSettings
from autopart.runtime.models.model import TrainingModel, build_training_model, example_batch
from autopart.runtime.models.model_file import load_model
from autopart.runtime.models.precision import (
    cast_model,
    coarsest_dtype,
    main_dtype,
    notes_on_cast,
)
from autopart.runtime.profiling.profiler import profile_model
from autopart.search.planner import solve
from tests.support.models.own_dtypes import Mixed
from tests.support.places import MODELS
from tests.support.runtime.on_ranks import run
from tests.support.runtime.plans import plan_for
from tests.support.runtime.rank_pool import RankPool

FILE = str(MODELS / "own_dtypes.py")
MIXED, COMPLEX, FROZEN = f"{FILE}:mixed", f"{FILE}:with_complex", f"{FILE}:frozen"


def own(model: str) -> Captured:
    source = load_model(model)
    return capture_model(build_training_model(source), example_batch(source, 4))


def plan_of(model: str, schedule: str = "1f1b", dtype: str = "float32", replicas: int = 1) -> Plan:
    captured = own(model)
    plan = plan_for(
        model,
        captured,
        [0.5],
        schedule=schedule,
        dtype=dtype,
        microbatch_size=4,
        replicas=replicas,
    )
    return msgspec.structs.replace(
        plan, origin=msgspec.structs.replace(plan.origin, own_dtypes=True)
    )


def checked(pool: RankPool, plan: Plan, **settings: object) -> RunResult:
    asked = msgspec.convert(
        {"model": plan.origin.model, "steps": 2, "check": True, **settings}, RunSettings
    )
    result = pool.call(run, plan, asked)[0]
    assert isinstance(result, RunResult)
    return result


def quick_profile(model: str, dtype: str | None = None) -> Profile:
    return profile_model(model, microbatch_size=4, dtype=dtype, repeats=1, warmup=0)


@pytest.mark.slow
def test_parameters_keep_their_dtypes_in_the_profile():
    profile = quick_profile(MIXED)
    assert (profile.dtype, profile.own_dtypes) == ("bfloat16", True)
    sizes = {
        la.name: la.param_bytes // la.num_trainable for la in profile.graph.layers if la.param_bytes
    }
    assert sizes == {"body.0": 2, "body.1": 2, "body.2": 2, "head": 4}
    assert not any("casts" in note for note in profile.warnings)


@pytest.mark.slow
def test_a_cast_that_is_asked_for_is_told():
    profile = quick_profile(FROZEN, "float64")
    assert (profile.dtype, profile.own_dtypes) == ("float64", msgspec.UNSET)
    told = "--dtype float64 casts 12 float32 parameters, 6 float32 buffers, 2 float32 batch tensors"
    assert told in profile.warnings
    assert all(la.param_bytes == 8 * la.num_trainable for la in profile.graph.layers)


def test_a_forward_that_fails_after_a_cast_blames_the_cast():
    with pytest.raises(ModelError, match=r"--dtype bfloat16 casts 2 float32 .*; leave --dtype out"):
        quick_profile(MIXED, "bfloat16")


def test_a_model_with_one_dtype_is_not_cast_and_needs_no_mark():
    model = TrainingModel(nn.Linear(3, 3, dtype=torch.float64))
    batch = ((torch.zeros(2, 3, dtype=torch.float64),), None)
    assert main_dtype(model, batch) == ("float64", True)
    assert notes_on_cast(model, batch, "float64") == ()


def test_the_tolerance_follows_the_coarsest_dtype_and_not_the_main_one():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(2, 2, dtype=torch.bfloat16))
    assert main_dtype(model, ())[0] == "float32"
    assert coarsest_dtype(model, "float32") == "bfloat16"
    assert coarsest_dtype(model[0], "float32") == "float32"
    assert coarsest_dtype(nn.Linear(2, 2, dtype=torch.complex64), "float64") == "float32"


def test_complex_parameters_stay_complex_under_every_cast():
    source = load_model(COMPLEX)
    found = {
        dtype: build_training_model(source, dtype=dtype)
        .get_parameter("model.blocks.0.mix.weight")
        .dtype
        for dtype in ("float32", "float64", "bfloat16")
    }
    assert found == {
        "float32": torch.complex64,
        "float64": torch.complex128,
        "bfloat16": torch.complex64,
    }


def test_ties_outlive_a_cast():
    model = Mixed()
    model.head.weight = nn.Parameter(model.head.weight.to(torch.bfloat16))
    model.tied = model.head.weight
    cast_model(model, torch.float64)
    assert model.tied is model.head.weight and model.head.weight.dtype == torch.float64


@pytest.mark.slow
@pytest.mark.parametrize("replicas", [1, 2])
def test_a_mixed_model_runs_as_the_plain_one_with_its_own_dtypes(
    four_ranks: RankPool, two_ranks: RankPool, replicas: int
):
    plan = plan_of(MIXED, dtype="bfloat16", replicas=replicas)
    assert cast_of(plan) is None
    check = checked(four_ranks if replicas == 2 else two_ranks, plan).check
    # The tolerance follows the coarsest dtype.
    assert check is not None and check.tolerance == 5e-2 and check.num_parameters == 8


@pytest.mark.slow
@pytest.mark.parametrize(("schedule", "optimizer"), [("1f1b", "adamw"), ("zb-h1", "sgd")])
def test_complex_weights_train_as_in_the_plain_model(
    two_ranks: RankPool, schedule: str, optimizer: str
):
    check = checked(two_ranks, plan_of(COMPLEX, schedule), optimizer=optimizer).check
    assert check is not None and check.num_parameters == 8 and check.gradients < 1e-6


@pytest.mark.slow
def test_a_plan_says_that_the_model_kept_its_dtypes():
    profile = quick_profile(MIXED)
    plan = solve(profile, cluster_of("cpu", gpus=2), global_batch=8)
    assert plan.origin.own_dtypes is True
    lie = msgspec.structs.replace(
        plan, origin=msgspec.structs.replace(plan.origin, own_dtypes=msgspec.UNSET)
    )
    assert all(check.passed for check in verify(plan, profile))
    assert "own dtypes" in str(verify(lie, profile)[-1])


@pytest.mark.slow
def test_modules_in_eval_mode_stay_so_and_the_rest_trains(two_ranks: RankPool):
    model = build_training_model(load_model(FROZEN))
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm1d)]
    assert [norm.training for norm in norms] == [False, False, True]
    assert model.notes == ()
    plan = plan_for(FROZEN, own(FROZEN), [0.5], microbatch_size=4)
    check = checked(two_ranks, plan).check
    assert check is not None and check.num_buffers > 0


@pytest.mark.slow
def test_the_profile_measures_frozen_batch_norms():
    marks = [
        node.args[5] for node in own(FROZEN).module.graph.nodes if "batch_norm" in str(node.target)
    ]
    assert marks == [False, False, True]


def test_a_model_wholly_in_eval_mode_is_trained_and_that_is_told():
    model = TrainingModel(nn.Sequential(nn.Linear(2, 2), nn.Dropout()).eval())
    assert all(module.training for module in model.modules())
    assert "all modules were in eval mode" in model.notes[0]
