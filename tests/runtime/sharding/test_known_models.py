"""Whole models: gradients, shares of parameters, and collectives beside Megatron's count."""

from collections import Counter

import pytest

from autopart.runtime.sharding.check import check_shards
from autopart.runtime.sharding.counted import count_collectives
from autopart.runtime.sharding.group_graphs import GroupGraphs
from autopart.runtime.sharding.local_model import local_model
from tests.support.runtime.sharded_models import known_model

pytestmark = pytest.mark.slow

GPT2, LLAMA, MOE = "zoo:gpt2-tiny", "zoo:llama-tiny", "zoo:moe-tiny"
ENCDEC, MLP = "zoo:encdec-tiny", "zoo:mlp-tiny"
HF_LLAMA, HF_GPT2 = "tests/support/models/hf_llama.py", "tests/support/models/hf_gpt2.py"
HF_QWEN3, HF_MIXTRAL = "tests/support/models/hf_qwen3.py", "tests/support/models/hf_mixtral.py"
MODELS = [GPT2, LLAMA, MOE, ENCDEC, MLP, HF_LLAMA, HF_GPT2, HF_QWEN3, HF_MIXTRAL]

BLOCKS = {GPT2: 8, LLAMA: 6, MOE: 4, HF_LLAMA: 4, HF_GPT2: 4, HF_QWEN3: 2, HF_MIXTRAL: 2}
"""Decoder blocks. Each has two sharded regions, attention and feed-forward."""
REGIONS = {name: 2 * blocks for name, blocks in BLOCKS.items()} | {ENCDEC: 3 * 2 + 3 * 3}
"""Three encoder blocks, and three decoder blocks with cross-attention."""
LOSS_SUMS = 3
"""Numbers of each row that a sharded cross-entropy sums."""


@pytest.mark.parametrize(
    ("degree", "sequence_parallel"),
    [
        (2, True),
        pytest.param(2, False, marks=pytest.mark.long),
        (4, False),
        pytest.param(4, True, marks=pytest.mark.long),
    ],
)
@pytest.mark.parametrize("model", MODELS)
def test_the_ranks_together_have_the_models_loss_and_gradients(
    model: str, degree: int, sequence_parallel: bool
) -> None:
    case = known_model(model)
    found = check_shards(case.sharded(degree, sequence_parallel=sequence_parallel), case.leaves)
    # Key biases of the encoder-decoder have a gradient of 0.
    assert found.loss_error < 1e-13 and found.gradient_error < 1e-11, found


@pytest.mark.parametrize(
    ("model", "degree", "most"),
    [
        (GPT2, 4, 0.257), (LLAMA, 2, 0.501), (MOE, 4, 0.258), (ENCDEC, 2, 0.504),
        (MLP, 4, 0.253), (HF_GPT2, 2, 0.513), (HF_QWEN3, 2, 0.502), (HF_MIXTRAL, 4, 0.262),
        *(
            pytest.param(*one, marks=pytest.mark.long)
            for one in (
                (GPT2, 2, 0.505), (LLAMA, 4, 0.258), (MOE, 2, 0.505), (ENCDEC, 4, 0.256),
                (MLP, 2, 0.502), (HF_LLAMA, 2, 0.502), (HF_MIXTRAL, 2, 0.502),
            )
        ),
    ],
)  # fmt: skip
def test_a_rank_has_its_share_of_the_parameters(model: str, degree: int, most: float) -> None:
    case = known_model(model)
    local = local_model(case.sharded(degree), 0)
    total = sum(p.numel() for p in case.captured.module.parameters())
    own = sum(p.numel() for p in local.module.parameters())
    assert 1 / degree < own / total < most


@pytest.mark.parametrize("degree", [2, 4])
@pytest.mark.parametrize("model", list(REGIONS))
def test_all_reduces_are_megatrons(model: str, degree: int) -> None:
    """One per region and direction, one for the embedding, one for the head, three of the loss."""
    case = known_model(model)
    sharded = case.sharded(degree)
    found = count_collectives(GroupGraphs(sharded.captured, sharded), local_model(sharded, 0))
    kinds = Counter((one.kind, one.phase) for own in found.values() for one in own)
    is_tied_twice = model == ENCDEC  # its encoder and decoder embed
    assert kinds[("all_reduce", "forward")] == REGIONS[model] + 1 + is_tied_twice + LOSS_SUMS
    # The cross-attention of a decoder block reads two values: its own and the encoder's.
    assert kinds[("all_reduce", "input_grad")] == REGIONS[model] + 1 + 3 * (model == ENCDEC)
    assert kinds[("all_gather", "input_grad")] == (4 if model == MOE else 0)  # the gates
    # Two ranks of four share each key-value head where there are two. All read Qwen3's norms of heads.
    shares = degree == 4 and model in (LLAMA, HF_LLAMA, HF_MIXTRAL)
    assert kinds[("all_reduce", "step")] == BLOCKS.get(model, 0) * (shares or model == HF_QWEN3)
    assert {phase for _, phase in kinds} <= {"forward", "input_grad", "step"}


@pytest.mark.parametrize("model", [GPT2, LLAMA, HF_LLAMA, HF_GPT2])
def test_sequence_parallelism_replaces_each_all_reduce_by_a_pair(model: str) -> None:
    case = known_model(model)
    sharded = case.sharded(2, sequence_parallel=True)
    found = count_collectives(GroupGraphs(sharded.captured, sharded), local_model(sharded, 0))
    kinds = Counter((one.kind, one.phase) for own in found.values() for one in own)
    positions = kinds[("all_gather", "input_grad")] - (REGIONS[model] + 1)
    assert positions == (model in (GPT2, HF_GPT2))  # the slices of learned positions
    assert kinds[("all_gather", "forward")] == REGIONS[model] + 1
    assert kinds[("reduce_scatter", "forward")] == REGIONS[model] + 1
    assert kinds[("reduce_scatter", "input_grad")] == REGIONS[model] + 1
    assert kinds[("all_reduce", "forward")] == LOSS_SUMS
    norms = [layer for layer, own in found.items() if own[-1].phase == "step"]
    assert len(norms) == BLOCKS[model] + 1


@pytest.mark.parametrize(
    ("model", "sequence_parallel"),
    [
        (GPT2, False),
        (LLAMA, False),
        (MOE, True),
        (ENCDEC, True),
        *(
            pytest.param(model, splits, marks=pytest.mark.long)
            for model, splits in ((GPT2, True), (LLAMA, True), (MOE, False), (ENCDEC, False))
        ),
    ],
)
def test_every_block_has_megatrons_collectives(model: str, *, sequence_parallel: bool) -> None:
    """Two regions per block, three with cross-attention. Each has one collective per direction, or one pair.

    A decoder block reads the encoder's output too. Experts add what Megatron's dense blocks do not have: gates, which
    are summed over whole tokens, and whose gradients are gathered.
    """
    case = known_model(model)
    sharded = case.sharded(2, sequence_parallel=sequence_parallel)
    found = count_collectives(GroupGraphs(sharded.captured, sharded), local_model(sharded, 0))
    blocks = [name for name in found if name.startswith(("blocks.", "encoder.", "decoder."))]
    assert len(blocks) == BLOCKS.get(model, 6)
    for name in blocks:
        crosses, gates = name.startswith("decoder."), model == MOE
        regions = 3 if crosses else 2
        kinds = Counter((one.kind, one.phase) for one in found[name] if one.phase != "step")
        if sequence_parallel:
            wanted = {
                ("all_gather", "forward"): regions + crosses + gates,
                ("reduce_scatter", "forward"): regions,
                ("all_gather", "input_grad"): regions + gates,
                ("reduce_scatter", "input_grad"): regions + crosses,
            }
        else:
            wanted = {
                ("all_reduce", "forward"): regions,
                ("all_reduce", "input_grad"): regions + crosses,
            }
            wanted |= {("all_gather", "input_grad"): 1} if gates else {}
        assert kinds == wanted, name


def test_a_blocks_collectives_say_what_hides_them_and_which_run_again() -> None:
    case = known_model(LLAMA)
    sharded = case.sharded(2)
    found = count_collectives(GroupGraphs(sharded.captured, sharded), local_model(sharded, 0))
    size = 2 * 64 * 96 * 4  # samples, positions, width, bytes
    first, last, *backward = found["blocks.3"]
    assert first.recomputed and not last.recomputed  # behind the last one nothing is kept
    assert {one.beneath for one in backward} == {"weight_grad"}
    assert {one.bytes for one in found["blocks.3"]} == {size}
    assert [one.bytes for one in found["loss"]] == [2 * 64 * 4] * LOSS_SUMS
