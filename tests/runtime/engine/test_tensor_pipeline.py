"""A user's training loop on a plan with a tensor degree equals the same loop with the plain model."""

import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from torch import nn

import autopart
from autopart.errors import UsageError
from autopart.records.plan import Plan, save_plan
from autopart.records.rank_group import Shard
from autopart.runtime.models.model import build_training_model
from autopart.runtime.models.model_file import load_model
from tests.support.long_tests import long_tests
from tests.support.runtime.own_loop import Loop, plain
from tests.support.runtime.plans import capture, plan_for
from tests.support.runtime.rank_pool import RankPool
from tests.support.runtime.tensor_runs import loaded_shards, loop_in_groups
from tests.support.sharded_plans import sharing
from tests.support.tensor_plans import in_groups, ranks_for, with_own_degrees

LLAMA = "zoo:llama-tiny"
captured = cache(capture)

SCRIPT = """
import sys
import torch
from torch import distributed
import autopart
from autopart.runtime.models.model import build_training_model, example_batch
from autopart.runtime.models.model_file import load_model

plan = autopart.load_plan(sys.argv[1])
group = autopart.init_tensor_ranks(plan, timeout=600)
training = build_training_model(load_model("zoo:llama-tiny"), dtype="float32", seed=0)
batch = example_batch(load_model("zoo:llama-tiny"), 2 * plan.num_microbatches, dtype="float32")
one = example_batch(load_model("zoo:llama-tiny"), 2, dtype="float32")
pipeline = autopart.make_pipeline(
    plan, training.model, one, loss_fn=training.loss_fn, tensor_group=group
)
loss = pipeline.step(batch).item()
norm = pipeline.clip_gradients(1.0).item()
# One write, line break included: torchrun's ranks share stdout, and print would write it apart.
sys.stdout.write(f"place {group.rank()} loss {loss:.5f} norm {norm:.4f}\\n")
distributed.barrier()
"""


def of_stages(cuts: tuple[float, ...], degree: int, *, sequence_parallel: bool) -> Plan:
    plan = plan_for(LLAMA, captured(LLAMA, 2, "float32"), cuts)
    return in_groups(plan, degree, sequence_parallel=sequence_parallel)


@pytest.mark.slow
@pytest.mark.parametrize("sequence_parallel", [*long_tests(False), True])
def test_a_loop_clips_and_accumulates_as_with_the_plain_model(
    four_ranks: RankPool, sequence_parallel: bool
) -> None:
    plan = of_stages((0.5,), 2, sequence_parallel=sequence_parallel)
    loop = Loop(max_norm=0.1, accumulate=2, whole_batches=True, scale=8.0)
    wanted = plain(plan, loop)
    for trained in four_ranks.call(loop_in_groups, plan, loop):
        assert trained.losses == pytest.approx(wanted.losses, rel=1e-5)
        assert trained.norms == pytest.approx(wanted.norms, rel=1e-5)
    assert wanted.norms[0] > 0.2  # so that the clipping changes the second step


@pytest.mark.slow
@pytest.mark.parametrize("shard", [*long_tests("zero3"), "zero2"])
def test_a_loop_with_shared_state_clips_and_accumulates_as_with_the_plain_model(
    two_ranks: RankPool, shard: Shard
) -> None:
    plan = plan_for(LLAMA, captured(LLAMA, 1, "float32"), (), microbatch_size=1)
    plan = sharing(plan, 2, shard)
    loop = Loop(max_norm=0.1, accumulate=2, whole_batches=True, scale=8.0)
    wanted = plain(plan, loop)
    for trained in two_ranks.call(loop_in_groups, plan, loop):
        assert trained.losses == pytest.approx(wanted.losses, rel=1e-5)
        assert trained.norms == pytest.approx(wanted.norms, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("shard", [*long_tests("zero2"), "zero3"])
def test_whole_tensors_and_parts_are_loaded_as_a_process_s_parts(
    two_ranks: RankPool, shard: Shard
) -> None:
    plan = plan_for(LLAMA, captured(LLAMA, 1, "float32"), (), microbatch_size=1)
    whole = build_training_model(load_model(LLAMA), dtype="float32", seed=0).model.state_dict()
    assert all(two_ranks.call(loaded_shards, sharing(plan, 2, shard), whole))


@pytest.mark.slow
def test_a_loop_on_stages_of_two_degrees_clips_and_accumulates_as_the_plain_model(
    three_ranks: RankPool,
) -> None:
    plan = plan_for(LLAMA, captured(LLAMA, 2, "float32"), (0.5,), ranks=ranks_for((1, 2)))
    plan = with_own_degrees(plan, (1, 2), sequence_parallel=True)
    loop = Loop(max_norm=0.1, accumulate=2, whole_batches=True, scale=8.0)
    wanted = plain(plan, loop)
    for trained in three_ranks.call(loop_in_groups, plan, loop):
        assert trained.losses == pytest.approx(wanted.losses, rel=1e-5)
        assert trained.norms == pytest.approx(wanted.norms, rel=1e-5)


@pytest.mark.slow
def test_whole_tensors_and_shards_are_loaded(four_ranks: RankPool) -> None:
    plan = of_stages((0.5,), 2, sequence_parallel=False)
    whole = build_training_model(load_model(LLAMA), dtype="float32", seed=0).model.state_dict()
    assert all(four_ranks.call(loaded_shards, plan, whole))


@pytest.mark.slow
def test_a_script_under_torchrun_starts_its_tensor_groups(tmp_path: Path) -> None:
    plan = of_stages((), 2, sequence_parallel=False)
    save_plan(plan, tmp_path / "plan.json")
    (tmp_path / "train.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
         tmp_path / "train.py", tmp_path / "plan.json"],
        env={**os.environ, "PYTHONPATH": ".", "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = sorted(line for line in done.stdout.splitlines() if line.startswith("place"))
    assert [line.split()[1] for line in said] == ["0", "1"]
    assert said[0].split()[2:] == said[1].split()[2:]


def test_a_tensor_degree_needs_its_group_and_its_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = of_stages((), 2, sequence_parallel=False)
    model = nn.Linear(2, 2)
    with pytest.raises(UsageError, match=r"tensor degree 2; call autopart\.init_tensor_ranks"):
        autopart.make_pipeline(plan, model, ((), None), device="cpu")
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(
        UsageError, match="for 2 processes: 1 rank with tensor degree 2; torchrun started 3"
    ):
        autopart.init_tensor_ranks(plan)
