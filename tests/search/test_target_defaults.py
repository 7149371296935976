"""What a framework fixes for a solve, and what the user's own options keep."""

from typing import Any, get_args

import pytest

import autopart
from autopart.cli.export_options import TargetName
from autopart.errors import AutopartError
from autopart.exporters.targets import TARGETS
from autopart.records.cluster import Cluster
from autopart.records.frameworks import FRAMEWORKS
from autopart.records.problem import SCHEDULES
from autopart.search.options import SolveOptions
from autopart.search.target_defaults import target_line, with_target
from tests.exporters.test_targets import TRAINING, refusal
from tests.support.exporters.language import language_plan

GPUS = autopart.cluster_of("h100-sxm", gpus=8)
"""A cluster whose sends run beside compute."""


def made(
    target: str | None, cluster: Cluster = GPUS, dtype: str = "bfloat16", **said: Any
) -> SolveOptions:
    return with_target(SolveOptions(target=target, **said), cluster, dtype)


def test_without_a_target_nothing_changes() -> None:
    assert made(None) == SolveOptions()
    assert target_line(SolveOptions(), GPUS, "bfloat16") is None


@pytest.mark.parametrize("target", FRAMEWORKS)
def test_a_framework_syncs_and_sends_as_its_export_says(target: str) -> None:
    own = TARGETS[target].framework
    assert (made(target).sync, made(target).sends) == (own.sync, own.sends)
    assert own is FRAMEWORKS[target] and set(FRAMEWORKS) == set(get_args(TargetName))


def test_the_users_own_options_win() -> None:
    said = {"sync": "ddp", "sends": "buffered", "schedule": "gpipe", "gradient_dtype": "bfloat16"}
    asked = SolveOptions(target="megatron", **said)  # pyright: ignore[reportArgumentType]
    assert with_target(asked, GPUS, "bfloat16") == asked
    assert target_line(asked, GPUS, "bfloat16") == "for Megatron-Core: all as the other options say"


def test_one_line_says_what_a_framework_fixes() -> None:
    line = target_line(SolveOptions(target="megatron"), GPUS, "bfloat16")
    assert line == (
        "for Megatron-Core: --sync megatron, --sends rendezvous, --schedule 1f1b, --gradient-dtype float32"
    )
    line = target_line(SolveOptions(target="torchtitan"), GPUS, "float32")
    assert line == "for torchtitan: --sync fsdp2, --sends rendezvous"
    line = target_line(SolveOptions(target="automodel"), GPUS, "float32")
    assert line == "for NeMo AutoModel: --sync fsdp2, --sends rendezvous, --zero1"


def test_only_a_framework_that_always_shards_fixes_zero_1() -> None:
    assert [target for target in FRAMEWORKS if made(target).zero1] == ["automodel"]
    assert made("megatron", zero1=True).zero1


def test_a_target_searches_the_tensor_degrees_that_it_runs() -> None:
    def asked(target: str, **said: Any) -> tuple[int | str, str]:
        options = made(target, **said)
        return options.tensor, options.sequence_parallel

    assert asked("megatron", tensor="auto") == ("auto", "auto")
    assert asked("automodel", tensor="auto") == ("auto", "off")
    assert asked("automodel", tensor=2, sequence_parallel="on") == (2, "on")
    assert asked("deepspeed", tensor="auto") == (1, "auto")
    assert asked("deepspeed", tensor=2) == (2, "auto")
    line = target_line(SolveOptions(target="automodel", tensor="auto"), GPUS, "float32")
    assert line is not None and line.endswith(", --zero1, --sequence-parallel off")


@pytest.mark.parametrize("target", TRAINING)
def test_the_schedules_are_those_that_the_export_takes(target: str) -> None:
    schedules = FRAMEWORKS[target].schedules
    assert schedules is not None
    for name in ("gpipe", "1f1b", "zb-h1"):
        plan = language_plan([1, 1], schedule=name)
        if name not in schedules:
            assert "--schedule" in refusal(plan, target)
        else:
            assert autopart.export_plan(plan, target).files
    assert made(target, schedule="auto").schedule == ",".join(
        n for n in SCHEDULES if n in schedules
    )


def test_blocking_sends_stay_as_they_are() -> None:
    cpus = autopart.cluster_of("cpu", gpus=2)
    assert not cpus.sends_overlap and made("torch", cpus).sends is None


def test_the_bottleneck_has_classic_schedules_only() -> None:
    assert made("primus", objective="bottleneck", schedule="auto").schedule == "1f1b"


def test_an_unknown_framework_is_refused_with_the_known_ones() -> None:
    with pytest.raises(
        AutopartError, match="unknown --target 'jax'; known: torch, torchtitan, meg"
    ):
        made("jax")


@pytest.mark.parametrize("target", ["torchtitan", "automodel"])
def test_fsdp_frameworks_have_no_tensor_groups_beside_experts(target: str) -> None:
    def degree(**asked: Any) -> int | str:
        return made(target, **asked).tensor

    assert degree(tensor="auto", expert="2") == degree(tensor="auto", expert="auto") == 1
    assert degree(tensor="auto") == "auto" and degree(tensor=2, expert="2") == 2


def test_torchtitan_offers_zero2_and_zero3() -> None:
    assert made("torchtitan", shard="auto").shard == "none,zero1,zero2,zero3"
    assert made("automodel", shard="auto").shard == "zero1,zero2"


def test_megatron_splits_the_sequence_in_tensor_groups_beside_experts() -> None:
    def splits(**said: Any) -> str:
        return made("megatron", **said).sequence_parallel

    assert splits(tensor="2", expert="2") == splits(tensor="auto", expert="auto") == "on"
    assert splits(tensor="2", expert="2", sequence_parallel="off") == "off"
    assert splits(tensor="2") == splits(expert="2") == "auto"
