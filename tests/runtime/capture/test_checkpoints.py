"""Checkpoints in the model become the recompute of their layers, or are told."""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
import torch
from torch import nn
from torch.utils import checkpoint as torch_checkpoint

from autopart.certificate.verify import verify
from autopart.records.cluster import cluster_of
from autopart.records.plan import Plan
from autopart.records.profile import Profile, stash_error
from autopart.runtime.capture.capture import capture_model
from autopart.runtime.capture.checkpoints import CheckpointedLayers
from autopart.runtime.engine.run_settings import RunSettings
from autopart.runtime.models.model import build_training_model, example_batch
from autopart.runtime.models.model_file import load_model
from autopart.runtime.profiling.checkpoint_notes import notes_on_checkpoints
from autopart.runtime.profiling.profiler import profile_model
from autopart.search.options import SolveKeywords
from autopart.search.planner import solve
from tests.support.places import MODELS
from tests.support.runtime.on_ranks import run
from tests.support.runtime.rank_pool import RankPool
from tests.support.runtime.small_models import batch, linear, training
from tests.support.runtime.stage_chain import assert_same_step, plain_step, stages_step
from tests.support.samples import sample_profile

FILE = str(MODELS / "checkpointed.py")
REPLACED = ("CheckpointFunction", "_checkpoint_without_reentrant_generator")
"""Torch's functions that a capture replaces for its time."""
BLOCKS = tuple(f"blocks.{place}" for place in range(4))


def profile_of(function: str) -> Profile:
    return profile_model(f"{FILE}:{function}", microbatch_size=4, repeats=1, warmup=0)


@pytest.fixture(scope="module")
def profile() -> Profile:
    return profile_of("each_block")


def planned(profile: Profile, **keywords: object) -> Plan:
    asked = msgspec.convert({"global_batch": 16, "num_stages": 2, **keywords}, SolveKeywords)
    return solve(profile, cluster_of("cpu", gpus=2), **asked)


def recomputed(plan: Plan) -> tuple[str, ...]:
    return tuple(name for stage in plan.stages for name in stage.recompute)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("function", "whole", "partly"),
    [
        ("plain", (), ()),
        ("each_block", BLOCKS, ()),
        ("each_block_reentrant", BLOCKS, ()),
        ("half_of_them", BLOCKS[:2], ()),
        ("parts_of_blocks", (), BLOCKS),
    ],
)
def test_the_layers_under_a_checkpoint_are_known(
    function: str, whole: tuple[str, ...], partly: tuple[str, ...]
):
    source = load_model(f"{FILE}:{function}")
    captured = capture_model(build_training_model(source), example_batch(source, 4))
    assert captured.checkpointed == (whole, partly)
    assert len(captured.layers) == 7


@pytest.mark.parametrize("function", ["each_block", "each_block_reentrant"])
def test_torch_s_checkpoint_is_itself_after_a_capture(function: str):
    kept = {name: getattr(torch_checkpoint, name) for name in REPLACED}
    source = load_model(f"{FILE}:{function}")
    capture_model(build_training_model(source), example_batch(source, 4))
    assert {name: getattr(torch_checkpoint, name) for name in REPLACED} == kept


class FirstUnderReentrance(nn.Module):
    """The first layer is under a reentrant checkpoint, whose input needs no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = linear(), linear()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made = torch_checkpoint.checkpoint(self.first, x, use_reentrant=True)
        return self.last(made)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_a_reentrant_checkpoint_of_inputs_without_gradients_gives_none_as_torch_does():
    model, example = training(FirstUnderReentrance()), batch()
    plain = plain_step(model, example)
    assert "last.weight" in plain[1] and "first.weight" not in plain[1]
    assert_same_step(plain, stages_step(model, capture_model(model, example), example), 1e-12)


class ContainerUnderReentrance(nn.Module):
    """A reentrant checkpoint gives a container with one tensor."""

    def __init__(self, made: Callable[[torch.Tensor], Any], taken: Callable[[Any], torch.Tensor]):
        super().__init__()
        self.first, self.block, self.last = linear(), linear(), linear()
        self.made, self.taken = made, taken

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kept = torch_checkpoint.checkpoint(self._made, self.first(x), use_reentrant=True)
        return self.last(self.taken(kept))

    def _made(self, x: torch.Tensor) -> Any:
        return self.made(self.block(x))


CONTAINERS: dict[str, tuple[Callable[[torch.Tensor], Any], Callable[[Any], torch.Tensor], bool]] = {
    "dict": (lambda y: {"y": y}, lambda kept: kept["y"], False),
    "list": (lambda y: [y], lambda kept: kept[0], False),
    "tuple": (lambda y: (y, 2), lambda kept: kept[0], True),
    "list in a tuple": (lambda y: ([y], 2), lambda kept: kept[0][0], False),
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_containers_from_a_reentrant_checkpoint_have_gradients_where_torch_gives_them(name: str):
    made, taken, has_gradients = CONTAINERS[name]
    model, example = training(ContainerUnderReentrance(made, taken)), batch()
    plain = plain_step(model, example)
    assert ("block.weight" in plain[1]) == has_gradients
    assert_same_step(plain, stages_step(model, capture_model(model, example), example), 1e-12)


class Deciding(nn.Module):
    """Its control flow depends on values."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = linear()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x) if x.abs().sum() > 0 else x


class OpaqueUnderReentrance(nn.Module):
    """A block that cannot be captured is under a reentrant checkpoint."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.block, self.last = linear(), Deciding(), linear()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made = torch_checkpoint.checkpoint(self._doubled, self.first(x), use_reentrant=True)
        return self.last(made)

    def _doubled(self, x: torch.Tensor) -> torch.Tensor:
        # Torch's own checkpoint runs without gradients here, and the block's result would have none.
        return 2 * self.block(x)


def test_an_opaque_block_under_a_reentrant_checkpoint_keeps_its_gradients():
    model, example = training(OpaqueUnderReentrance()), batch()
    captured = capture_model(model, example)
    assert [layer.name for layer in captured.layers] == ["first", "block", "last", "loss"]
    plain = plain_step(model, example)
    assert_same_step(plain, stages_step(model, captured, example), 1e-12)


def test_checkpoints_of_layers_that_are_not_worth_it_are_told():
    graph = sample_profile().graph
    first, second = (layer.name for layer in graph.layers[:2])
    able = msgspec.structs.replace(
        graph,
        layers=tuple(
            msgspec.structs.replace(layer, recompute=None) if layer.name == first else layer
            for layer in graph.layers
        ),
    )
    (note,) = notes_on_checkpoints(CheckpointedLayers(whole=(first,), partly=()), able)
    assert note.startswith(f"the model checkpoints 1 layer ({first}), which is left out: ")
    assert second not in note and "--recompute auto" in note


@pytest.mark.slow
def test_the_profile_marks_the_layers_and_compares_with_the_model_without_checkpoints(
    profile: Profile,
):
    assert tuple(la.name for la in profile.graph.layers if la.checkpointed is True) == BLOCKS
    assert profile.whole is not None and abs(stash_error(profile.whole)) < 0.02
    assert not any("stashes" in note for note in profile.warnings)
    told = [note for note in profile.warnings if "checkpoints" in note]
    assert len(told) == 1 and "solve recomputes them" in told[0]


@pytest.mark.slow
def test_a_plan_recomputes_the_layers_that_the_model_checkpoints(profile: Profile):
    plan = planned(profile)
    assert recomputed(plan) == BLOCKS and plan.demands.recompute_layers == BLOCKS
    assert all(check.passed for check in verify(plan, profile))
    assert planned(profile, recompute_layers=list(BLOCKS)).stages == plan.stages


@pytest.mark.parametrize(
    ("keywords", "expected"),
    [
        ({"recompute": "never"}, ()),
        ({"keep_layers": ["blocks.1"]}, ("blocks.0", "blocks.2", "blocks.3")),
    ],
)
def test_another_word_of_the_user_wins(
    profile: Profile, keywords: dict[str, object], expected: tuple[str, ...]
):
    plan = planned(profile, **keywords)
    assert recomputed(plan) == expected


@pytest.mark.parametrize(
    "keywords",
    [
        {"schedule": "zb-h1"},
        {"schedule": "interleaved-1f1b", "stages_per_rank": 2, "num_stages": 4},
    ],
)
def test_checkpoints_are_kept_under_every_schedule(profile: Profile, keywords: dict[str, object]):
    plan = planned(profile, **keywords)
    assert recomputed(plan) == BLOCKS
    assert all(check.passed for check in verify(plan, profile))


@pytest.mark.slow
def test_a_checkpoint_in_a_part_of_a_layer_is_told():
    told = [note for note in profile_of("parts_of_blocks").warnings if "checkpoint" in note]
    assert len(told) == 1
    assert "a part of 4 layers (blocks.0, blocks.1, blocks.2, …), which is left out" in told[0]
    assert "--recompute-layer" in told[0]


@pytest.mark.slow
def test_a_run_recomputes_in_the_model_s_place(two_ranks: RankPool, profile: Profile):
    settings = RunSettings(model=f"{FILE}:each_block", steps=1, check=True)
    result = two_ranks.call(run, planned(profile), settings)[0]
    assert result.check.gradients < 1e-5
