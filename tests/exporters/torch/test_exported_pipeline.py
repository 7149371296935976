"""The exported torch module trains like the plain model."""

import ast
import random
import re
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from autopart.errors import ExportRefused, UsageError
from autopart.exporters.targets import TARGETS, export_plan
from autopart.records.plan import Plan
from autopart.runtime.capture.capture import capture_model
from autopart.runtime.models.model import build_training_model, example_batch
from autopart.runtime.models.model_file import load_model
from autopart.schedules.actions import parse_order
from tests.support.exporters.clamped_model import CLAMPED
from tests.support.exporters.exported import check_training, import_text
from tests.support.exporters.odd_model import ODD
from tests.support.exporters.plans import make_plan
from tests.support.places import MODELS, ROOT
from tests.support.runtime.rank_pool import RankPool

BLOCKS = [f"blocks.{index}" for index in range(8)]
GPT2 = [["tokens", "positions", *BLOCKS[:3]], [*BLOCKS[3:], "norm", "head", "loss"]]
UNET = [
    ["encoder.0", "pool"],
    ["encoder.1", "pool@1", "encoder.2"],
    ["pool@2", "bottom", "decoder.0"],
    ["decoder.1", "decoder.2", "head", "loss"],
]
UNET_IN_TWO = [UNET[0] + UNET[1], UNET[2] + UNET[3]]


def exported(plan: Plan) -> str:
    return export_plan(plan, "torch").files["pipeline.py"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("schedule", "microbatches"), [("gpipe", 3), pytest.param("1f1b", 3, marks=pytest.mark.slow)]
)
def test_two_stages_share_the_gradient_of_a_tied_head(
    two_ranks: RankPool, schedule: str, microbatches: int
) -> None:
    plan = make_plan(GPT2, [(0,), (1,)], microbatches, schedule)
    check_training(two_ranks, plan, "zoo:gpt2-tiny")


@pytest.mark.parametrize("schedule", [pytest.param("gpipe", marks=pytest.mark.slow), "1f1b"])
def test_skip_connections_cross_the_cut(two_ranks: RankPool, schedule: str) -> None:
    plan = make_plan(UNET_IN_TWO, [(1,), (0,)], 4, schedule)
    check_training(two_ranks, plan, "zoo:unet-tiny")


@pytest.mark.slow
def test_stages_between_relay_skip_connections(four_ranks: RankPool) -> None:
    plan = make_plan(UNET, [(0,), (3,), (1,), (2,)], 5)
    check_training(four_ranks, plan, "zoo:unet-tiny")


@pytest.mark.slow
def test_replicas_of_two_stages_sum_their_gradients_even_with_uneven_shares(
    four_ranks: RankPool,
) -> None:
    plan = make_plan(GPT2, [(0, 3), (2, 1)], 5)
    check_training(four_ranks, plan, "zoo:gpt2-tiny")


def test_one_stage_on_two_ranks_is_data_parallel(two_ranks: RankPool) -> None:
    layers = [[str(index) for index in range(16)] + ["loss"]]
    check_training(two_ranks, make_plan(layers, [(0, 1)], 3), "zoo:mlp-tiny")


@pytest.mark.slow
def test_the_clipping_norm_covers_all_stages_and_counts_tied_gradients_once(
    four_ranks: RankPool,
) -> None:
    plan = make_plan(GPT2, [(0, 1), (2, 3)], 4, "gpipe")
    check_training(four_ranks, plan, "zoo:gpt2-tiny", max_norm=0.1)


@pytest.mark.slow
def test_a_model_with_its_own_loss_and_shared_masks_trains(two_ranks: RankPool) -> None:
    pytest.importorskip("transformers")
    encoder = ["encoder.embed_tokens", "encoder.block.0", "encoder.block.1"]
    decoder = ["decoder.block.0", "decoder.block.1", "decoder.final_layer_norm", "lm_head"]
    layers = [[*encoder, "decoder.embed_tokens"], ["encoder.final_layer_norm", *decoder]]
    check_training(two_ranks, make_plan(layers, [(0,), (1,)], 3), str(MODELS / "hf_t5.py"))


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b"])
def test_frozen_stages_scalar_inputs_flags_and_writes_in_place_train(
    two_ranks: RankPool, tmp_path: Path, schedule: str
) -> None:
    (tmp_path / "odd.py").write_text(ODD)
    layers = [["frozen.0"], ["layers.0", "layers.1", "layers.2", "layers.3"]]
    plan = make_plan(layers, [(0,), (1,)], 3, schedule)
    check_training(two_ranks, plan, str(tmp_path / "odd.py"))
    layers = [["frozen.0", "layers.0", "layers.1"], ["layers.2", "layers.3"]]
    plan = make_plan(layers, [(0,), (1,)], 3, schedule)
    check_training(two_ranks, plan, str(tmp_path / "odd.py"))


# GPT-2, the U-Net, T5 and the perceptron run in real processes above.
FAST = ["zoo:llama-tiny", "zoo:resnet-tiny", "zoo:encdec-tiny", "zoo:moe-tiny", "hf_bert"]
MORE = ["zoo:gpt2-tiny", "zoo:unet-tiny", "zoo:mlp-tiny", "hf_gpt2", "hf_llama", "hf_t5", *FAST]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "seed"),
    [(m, 0) for m in FAST] + [pytest.param(m, 1, marks=pytest.mark.slow) for m in MORE],
)
def test_stages_cut_at_random_layers_compute_the_models_loss_and_gradients(
    model: str, seed: int
) -> None:
    if model.startswith("hf_"):
        pytest.importorskip("transformers")
        model = str(MODELS / f"{model}.py")
    source = load_model(model)
    training, batch = build_training_model(source), example_batch(source, 3)
    names = [layer.name for layer in capture_model(training, batch).layers]
    layers = cut_at_random(names, seed)
    plan = make_plan(layers, [(index,) for index in range(len(layers))], len(layers))
    pipeline = import_text(exported(plan))

    twin = build_training_model(source)
    expected = twin(*batch)
    expected.backward()
    loss = run_chain(pipeline, training, batch)

    torch.testing.assert_close(loss, expected)
    of_twin = dict(twin.named_parameters())
    for name, parameter in training.named_parameters():
        torch.testing.assert_close(parameter.grad, of_twin[name].grad, rtol=1e-5, atol=1e-6)


def cut_at_random(names: Sequence[str], seed: int) -> list[Sequence[str]]:
    generator = random.Random(seed)
    count = generator.choice((2, 3, 4))
    cuts = [0, *sorted(generator.sample(range(1, len(names)), count - 1)), len(names)]
    return [names[a:b] for a, b in pairwise(cuts)]


def run_chain(pipeline, training, batch) -> torch.Tensor:
    """Run one microbatch forward and backward through all stages."""
    stages = pipeline.cut_model(training.model, training.loss_fn, batch, torch.device("cpu"))
    return run_stages(stages, pipeline._leaves_of(batch))


def run_stages(stages, leaves) -> torch.Tensor:
    """Run one microbatch forward and backward, from its leaves by path."""
    outputs, ran = (), []
    for stage in stages:
        received = tuple(out.detach().requires_grad_(out.requires_grad) for out in outputs)
        for tensor, example in zip(received, stage.received_examples, strict=True):
            assert (tensor.shape, tensor.dtype) == (example.shape, example.dtype)
            assert tensor.requires_grad == example.requires_grad
        outputs = stage(*received, **{n: leaves[place][None] for n, place in stage.leaves.items()})
        ran.append((received, outputs))
    loss, gradients = outputs, [torch.ones(1)]
    ran[-1] = (ran[-1][0], (loss,))
    for received, outputs in reversed(ran):
        given = [(o, g) for o, g in zip(outputs, gradients, strict=True) if o.requires_grad]
        torch.autograd.backward([o for o, _ in given], [g for _, g in given])
        gradients = [tensor.grad for tensor in received]
    return loss.sum()


# Recomputed layers


class Counting(TorchDispatchMode):
    """Counts each layer's clamps, and all products with weights."""

    def __init__(self) -> None:
        super().__init__()
        self.clamps: dict[int, int] = {}
        self.products = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.ops.aten.clamp.default:
            top = kwargs["max"] if "max" in kwargs else args[2]
            self.clamps[int(top) - 100] = self.clamps.get(int(top) - 100, 0) + 1
        self.products += func is torch.ops.aten.addmm.default
        return func(*args, **kwargs)


def with_policies(plan: Plan, **policies: tuple[str, ...]) -> Plan:
    """The plan with these layers under these policies."""
    stages = tuple(
        msgspec.structs.replace(
            stage,
            **{
                policy: tuple(la for la in stage.layers if la in names)
                for policy, names in policies.items()
            },
        )
        for stage in plan.stages
    )
    return msgspec.structs.replace(plan, stages=stages)


@pytest.mark.parametrize("schedule", ["1f1b", "zb-h1"])
def test_exactly_the_planned_layers_run_again(tmp_path: Path, schedule: str) -> None:
    (tmp_path / "clamped.py").write_text(CLAMPED)
    source = load_model(str(tmp_path / "clamped.py"))
    training, twin = build_training_model(source), build_training_model(source)
    batch = example_batch(source, 4)
    names = [f"layers.{index}" for index in range(6)]
    plan = make_plan([names[:3], names[3:]], [(0,), (1,)], 2, schedule)
    plan = with_policies(plan, recompute=("layers.1", "layers.3"), selective=("layers.4",))
    pipeline = import_text(exported(plan))
    stages = pipeline.cut_model(training.model, training.loss_fn, batch, torch.device("cpu"))
    with Counting() as counting:
        loss = run_stages(stages, pipeline._leaves_of(batch))
        for stage in stages:
            stage.weight_gradients()()
    expected = twin(*batch)
    expected.backward()

    assert counting.clamps == {0: 1, 1: 2, 2: 1, 3: 2, 4: 2, 5: 1}
    assert counting.products == 2 * 6 + 2 * 2  # twice in whole layers, once in selective ones
    torch.testing.assert_close(loss, expected)
    ours, theirs = dict(training.named_parameters()), dict(twin.named_parameters())
    for name in theirs:
        torch.testing.assert_close(ours[name].grad, theirs[name].grad)
    for name, buffer in twin.named_buffers():
        torch.testing.assert_close(dict(training.named_buffers())[name], buffer)


@pytest.mark.slow
@pytest.mark.parametrize(("schedule", "ranks"), [("1f1b", 2), ("zbv", 1)])
def test_recomputed_layers_train_as_the_plain_model(
    two_ranks: RankPool, schedule: str, ranks: int
) -> None:
    layers = GPT2 if ranks == 2 else [GPT2[0][:3], GPT2[0][3:], GPT2[1][:3], GPT2[1][3:]]
    places = [(0,), (1,)] if ranks == 2 else [(0,), (1,), (1,), (0,)]
    plan = make_plan(layers, places, 4, schedule)
    plan = with_policies(
        plan, recompute=("blocks.0", "blocks.4"), selective=("blocks.2", "blocks.7")
    )
    check_training(two_ranks, plan, "zoo:gpt2-tiny")


def test_an_input_that_changes_before_the_second_run_raises(tmp_path: Path) -> None:
    (tmp_path / "odd.py").write_text(ODD)
    source = load_model(str(tmp_path / "odd.py"))
    layers = [["frozen.0"], ["layers.0", "layers.1", "layers.2", "layers.3", "act"]]
    plan = with_policies(make_plan(layers, [(0,), (1,)], 2), recompute=("act",))
    pipeline = import_text(exported(plan))
    training = build_training_model(source)
    with pytest.raises(RuntimeError, match=r"modified by an inplace operation"):
        run_chain(pipeline, training, example_batch(source, 2))


# The text of the module


def test_the_module_imports_only_torch_and_has_the_plan_as_literals() -> None:
    text = exported(make_plan(GPT2, [(0, 3), (2, 1)], 4, microbatch_size=7))
    tree = ast.parse(text)
    imported = {
        (node.module if isinstance(node, ast.ImportFrom) else node.names[0].name).split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    assert imported - set(sys.stdlib_module_names) == {"torch"}
    module = import_text(text)
    assert tuple(tuple(layers) for layers in GPT2) == module.STAGES
    assert module.RANKS == ((0, 3), (2, 1))
    assert (module.NUM_MICROBATCHES, module.MICROBATCH_SIZE) == (4, 7)
    assert module.SCHEDULE is torch.distributed.pipelining.Schedule1F1B
    assert [module.stages_of(rank) for rank in range(4)] == [[0], [1], [1], [0]]
    assert [module.replica_of(rank) for rank in range(4)] == [0, 1, 0, 1]
    assert max(map(len, text.splitlines())) <= 100


def test_equal_plans_give_equal_text() -> None:
    plans = [make_plan(GPT2, [(0,), (1,)], 4) for _ in range(2)]
    assert exported(plans[0]) == exported(plans[1])


def test_long_stages_and_odd_names_survive_the_literals() -> None:
    odd = ['a"b', "c\\d", "e'f", *(f"a.rather.long.layer.name.{index}" for index in range(30))]
    module = import_text(exported(make_plan([odd, ["x"]], [(0,), (1,)], 2)))
    assert (tuple(odd), ("x",)) == module.STAGES


def test_a_models_name_cannot_break_out_of_its_literal() -> None:
    plan, name = make_plan(GPT2, [(0,), (1,)], 4), 'm"""\nimport os\n$stages\\\u2028'
    origin = msgspec.structs.replace(plan.origin, model=name)
    assert name == import_text(exported(msgspec.structs.replace(plan, origin=origin))).MODEL


def test_an_export_differs_from_the_module_only_in_its_block_of_constants() -> None:
    source = (ROOT / "autopart/exporters/torch/exported_pipeline.py").read_text(encoding="utf-8")
    text = exported(make_plan(GPT2, [(0,), (1,)], 4))
    for part in (0, 2):
        assert _around_the_plan(text)[part] == _around_the_plan(source)[part]
    assert _around_the_plan(text)[1] != _around_the_plan(source)[1]


def _around_the_plan(text: str) -> list[str]:
    return re.split(r"^# ---- The (?:end of the )?plan.*$", text, flags=re.MULTILINE)


def test_another_model_raises_when_it_is_cut() -> None:
    layers = [["tokens", "blocks.99"], ["head", "loss"]]
    pipeline = import_text(exported(make_plan(layers, [(0,), (1,)], 2)))
    source = load_model("zoo:gpt2-tiny")
    training = build_training_model(source)
    with pytest.raises(ValueError, match=r"the model has no layer 'blocks.99'"):
        pipeline.cut_model(training.model, training.loss_fn, example_batch(source, 1), "cpu")


# Plans that torch cannot express


def refusal(plan: Plan) -> str:
    with pytest.raises(ExportRefused) as caught:
        export_plan(plan, "torch")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_stages_with_different_numbers_of_replicas_are_refused() -> None:
    message = refusal(make_plan(GPT2, [(0, 1), (2,)], 4))
    assert "these have 2, 1; the nearest plan has 1 on every stage" in message


def test_a_rank_in_two_replicas_is_refused() -> None:
    orders = (parse_order("0F0 1F1 1B1 0B0"), parse_order("0F1 1F0 1B0 0B1"))
    plan = make_plan(GPT2, [(0, 1), (1, 0)], 2, "custom", orders=orders)
    assert "rank 0 runs stages of replicas 0 and 1" in refusal(plan)


def test_an_idle_rank_is_refused() -> None:
    plan = make_plan(GPT2, [(0,), (1,)], 2)
    idle = msgspec.structs.replace(plan, orders=(*plan.orders, ""))
    assert refusal(idle).startswith(
        "rank 2 has no stage, and torch gives each rank one; solve for 2"
    )


def test_offloaded_layers_and_a_recomputed_loss_are_refused() -> None:
    plan = make_plan(GPT2, [(0,), (1,)], 2)
    message = refusal(with_policies(plan, offload=("blocks.5",)))
    assert "stage 1 offloads layer 'blocks.5'" in message
    message = refusal(with_policies(plan, recompute=("loss",)))
    assert "recomputes 'loss', which is not a module" in message and "--keep-layer loss" in message


def test_an_unknown_target_is_refused_with_the_known_targets() -> None:
    with pytest.raises(UsageError, match="cannot export to 'jax'; known: torch"):
        export_plan(make_plan(GPT2, [(0,), (1,)], 2), "jax")
    assert next(iter(TARGETS)) == "torch"
