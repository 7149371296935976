"""The reasons why exports refuse a tensor degree, or sequence parallelism, hold in the real frameworks."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from autopart.exporters.readback.rebuilt import framework_module
from tests.exporters.readback.conftest import Needs

pytestmark = pytest.mark.filterwarnings("ignore")  # the frameworks warn on import

AUTOTP_GROUPS = """
import deepspeed
import torch.distributed as dist
from deepspeed.runtime.pipe.topology import PipeModelDataParallelTopology
from deepspeed.utils import groups
from torch.testing._internal.distributed.fake_pg import FakeStore

deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # it would compile for minutes
dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=4)
deepspeed.init_distributed("fake")
groups._init_tp_mesh_device(tensor_model_parallel_size=2)
stages = PipeModelDataParallelTopology(num_pp=2, num_mp=2, num_dp=1)
data = dist.get_process_group_ranks(groups.get_data_parallel_group())
print("stages", [stages.get_coord(rank).pipe for rank in data])
"""
"""Prints the stages on the GPUs that AutoTP joins to a data group, with 2 stages and degree 2."""


def test_deepspeeds_autotp_joins_gpus_of_different_stages(needs: Needs) -> None:
    needs("deepspeed")
    run = subprocess.run(
        [sys.executable, "-c", AUTOTP_GROUPS],
        env={**os.environ, "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "4"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert "stages [0, 1]" in run.stdout, run.stderr[-2000:]


def test_transformers_takes_either_a_device_map_or_a_tensor_degree(needs: Needs) -> None:
    needs("device-map")
    transformers = pytest.importorskip("transformers")
    settings = framework_module("transformers.distributed").DistributedConfig(tp_size=2)
    with pytest.raises(ValueError, match="mutually exclusive"):
        transformers.LlamaForCausalLM.prepare_distribute_model(settings, device_map={"": 0})


def test_automodels_stages_expect_whole_sequences(needs: Needs) -> None:
    needs("automodel")
    cutting = framework_module("nemo_automodel.components.distributed.pipelining.functional")
    torch = framework_module("torch")
    stage = SimpleNamespace(
        submod=torch.nn.Linear(1, 1), is_first=False, _configure_outputs_meta=lambda _: None
    )
    config = SimpleNamespace(hidden_size=16, vocab_size=32)
    cutting._precompute_stage_shapes([stage], config, microbatch_size=2, seq_len=6)
    (received,) = stage.inputs_meta
    assert received.shape == (2, 6, 16)
