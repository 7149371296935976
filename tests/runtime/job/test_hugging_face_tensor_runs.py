"""Hugging Face models with a tensor degree: profiled, planned and run beside the plain model."""

import pytest

from autopart.records.cluster import cluster_of
from autopart.runtime.engine.run_settings import RunSettings
from autopart.runtime.profiling.profiler import profile_model
from autopart.search.planner import solve
from tests.support.places import MODELS
from tests.support.runtime.rank_pool import RankPool
from tests.support.runtime.tensor_runs import run_groups

pytest.importorskip("transformers")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "sequence_parallel"),
    [("hf_qwen3.py", "on"), pytest.param("hf_mixtral.py", "off", marks=pytest.mark.long)],
)
def test_a_profiled_and_planned_model_trains_as_the_plain_model(
    two_ranks: RankPool, name: str, sequence_parallel: str
) -> None:
    model, on = str(MODELS / name), sequence_parallel == "on"
    profile = profile_model(
        model, microbatch_size=2, device="cpu", repeats=1, tensor=(1, 2), sequence_parallel=on
    )
    plan = solve(
        profile,
        cluster_of("cpu", gpus=2),
        num_microbatches=2,
        tensor=2,
        sequence_parallel=sequence_parallel,
    )
    result = two_ranks.call(run_groups, plan, RunSettings(model=model, steps=2, check=True))[0]
    assert result is not None and result.check is not None
    assert result.check.losses <= 1e-5 and result.check.gradients <= 1e-5
