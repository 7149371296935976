"""Whole models under the context pass: gradients, and the collectives of a block."""

from collections import Counter

import msgspec
import pytest

from autopart.errors import ModelError
from autopart.records.rank_group import Group
from autopart.runtime.sharding.check import check_group
from autopart.runtime.sharding.counted import count_collectives
from autopart.runtime.sharding.group_graphs import graphs_of
from tests.support.long_tests import long_tests
from tests.support.runtime.sharded_models import known_model

pytestmark = pytest.mark.slow

GPT2, LLAMA, MOE, ENCDEC = "zoo:gpt2-tiny", "zoo:llama-tiny", "zoo:moe-tiny", "zoo:encdec-tiny"
MLP = "zoo:mlp-tiny"
HF_LLAMA, HF_GPT2 = "tests/support/models/hf_llama.py", "tests/support/models/hf_gpt2.py"
HF_QWEN3, HF_MIXTRAL = "tests/support/models/hf_qwen3.py", "tests/support/models/hf_mixtral.py"
PHASES = ("forward", "input_grad")
HF_DEEPSEEK = "tests/support/models/hf_deepseek_v3.py"


@pytest.mark.parametrize(
    ("tensor", "context", "splits"),
    [
        pytest.param(1, 2, False, marks=pytest.mark.long),
        pytest.param(1, 4, False, marks=pytest.mark.long),
        pytest.param(2, 2, False, marks=pytest.mark.long),
        (2, 2, True),
    ],
)
@pytest.mark.parametrize(
    "model",
    [
        *(ENCDEC, MLP, HF_GPT2, HF_MIXTRAL, HF_DEEPSEEK),
        *long_tests(GPT2, LLAMA, MOE, HF_LLAMA, HF_QWEN3),
    ],
)
def test_the_ranks_together_have_the_models_loss_and_gradients(
    model: str, tensor: int, context: int, splits: bool
) -> None:
    case = known_model(model)
    group = Group(tensor=tensor, context=context, sequence_parallel=splits)
    found = check_group(graphs_of(case.captured, group), case.leaves)
    # Key biases of the encoder-decoder have a gradient of 0.
    assert found.loss_error < 1e-13 and found.gradient_error < 1e-11, found


@pytest.mark.parametrize(
    "model",
    [GPT2, HF_QWEN3, HF_MIXTRAL, HF_DEEPSEEK, *long_tests(LLAMA, HF_LLAMA, HF_GPT2)],
)
def test_a_block_gathers_keys_and_values_in_one_message(model: str) -> None:
    """Its gradients are scattered in one, and all its parameters are summed once a step."""
    case = known_model(model)
    graphs = graphs_of(case.captured, Group(context=2))
    assert graphs.context is not None
    local = graphs.local(0)
    found = count_collectives(graphs, local)
    blocks = [name for name in found if any(part.isdigit() for part in name.split("."))]
    assert len(blocks) >= 2
    state = dict(case.captured.module.named_parameters())
    for name in blocks:
        kinds = Counter((one.kind, one.phase, one.among) for one in found[name])
        assert kinds == {
            ("all_gather", "forward", "context"): 1,
            ("reduce_scatter", "input_grad", "context"): 1,
            ("all_reduce", "step", "context"): 1,
        }
        layer = next(one for one in local.layers if one.name == name)
        own = sum(state[parameter].nbytes for parameter in layer.parameters)
        assert [one.bytes for one in found[name] if one.phase == "step"] == [own]
    assert graphs.context.partial_parameters == set(state)


@pytest.mark.parametrize(
    ("tensor", "context"), [(1, 4), pytest.param(2, 2, marks=pytest.mark.long)]
)
@pytest.mark.parametrize(
    "model",
    [
        MOE,
        ENCDEC,
        HF_DEEPSEEK,
        *long_tests(GPT2, LLAMA, HF_LLAMA, HF_GPT2, HF_QWEN3, HF_MIXTRAL),
    ],
)
def test_rings_have_the_models_loss_and_gradients(model: str, tensor: int, context: int) -> None:
    """The encoder-decoder has a ring where its decoder reads itself."""
    case = known_model(model)
    group = Group(tensor=tensor, context=context, sequence_parallel=tensor > 1, exchange="ring")
    graphs = graphs_of(case.captured, group)
    found = check_group(graphs, case.leaves)
    assert found.loss_error < 1e-13 and found.gradient_error < 1e-11, found
    assert graphs.context is not None
    assert bool(graphs.context.gathering) == (model == ENCDEC)


def test_a_block_s_ring_has_the_bytes_of_the_gather() -> None:
    case = known_model(LLAMA)
    listed: list[dict[str, list[tuple[str, int]]]] = []
    for exchange in (msgspec.UNSET, "ring"):
        graphs = graphs_of(case.captured, Group(context=2, exchange=exchange))
        found = count_collectives(graphs, graphs.local(0))["blocks.1"]
        listed.append({p: [(o.kind, o.bytes) for o in found if o.phase == p] for p in PHASES})
    gather, ring = listed
    (size,) = {size for _, size in gather["forward"]}
    assert gather == {"forward": [("all_gather", size)], "input_grad": [("reduce_scatter", size)]}
    assert ring == {"forward": [("ring", size)], "input_grad": [("ring", size)]}


def test_images_have_no_sequence() -> None:
    with pytest.raises(ModelError, match="no input has a sequence"):
        graphs_of(known_model("zoo:resnet-tiny").captured, Group(context=2))
