"""Checks of models that draw random numbers in forward."""

import random
from collections.abc import Sequence

import msgspec
import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from autopart.records.plan import Plan
from autopart.records.run_result import CheckResult
from autopart.runtime.engine.run_settings import RunSettings
from autopart.runtime.models.host_generators import HostGenerators
from autopart.runtime.transforms.seeded_draws import SeededDraws, starts
from tests.support.runtime.on_ranks import run, run_from
from tests.support.runtime.plans import capture, plan_for
from tests.support.runtime.rank_pool import RankPool

DRAWING = "tests/support/models/drawing.py:"


def plan(name: str, cuts: Sequence[float] = (0.5,), **keywords: object) -> Plan:
    model = DRAWING + name
    return plan_for(model, capture(model, dtype="float64"), cuts, dtype="float64", **keywords)


def checked(pool: RankPool, of: Plan, **options: object) -> CheckResult:
    result = pool.call(run, of, RunSettings(model=of.origin.model, check=True, **options))[0]
    assert result.check is not None
    return result.check


def with_policy(of: Plan, policy: str) -> Plan:
    """The plan with all blocks under the policy."""
    stages = tuple(
        msgspec.structs.replace(s, **{policy: tuple(la for la in s.layers if "blocks" in la)})
        for s in of.stages
    )
    return msgspec.structs.replace(of, stages=stages)


@pytest.mark.slow
def test_noise_dropout_and_stochastic_depth_are_equal_in_both_models(two_ranks: RankPool):
    check = checked(two_ranks, plan("diffusion"), steps=2)
    assert max(check.losses, check.gradients, check.parameters) <= 1e-12
    (said,) = [note for note in check.notes if "random numbers" in note]
    assert said.startswith("random numbers were seeded alike in both models (bernoulli_ ")
    assert "randn_like 8 times" in said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("policy", "backend"),
    [
        pytest.param("recompute", "autopart", marks=pytest.mark.long),
        ("recompute", "torch"),
        ("selective", "autopart"),
        pytest.param("offload", "autopart", marks=pytest.mark.long),
    ],
)
def test_layers_that_run_again_draw_the_same_numbers(
    two_ranks: RankPool, policy: str, backend: str
):
    check = checked(two_ranks, with_policy(plan("diffusion"), policy), steps=1, backend=backend)
    assert check.gradients <= 1e-12


@pytest.mark.slow
def test_split_backwards_do_not_change_the_numbers(two_ranks: RankPool):
    check = checked(two_ranks, plan("diffusion", schedule="zb-h1"), steps=1)
    assert check.gradients <= 1e-12


@pytest.mark.slow
def test_replicas_draw_the_numbers_of_their_own_microbatches(two_ranks: RankPool):
    check = checked(two_ranks, plan("diffusion", [], replicas=2), steps=1)
    assert check.gradients <= 1e-12


@pytest.mark.slow
def test_runs_without_flushes_draw_by_microbatch_through_the_run(two_ranks: RankPool):
    check = checked(two_ranks, plan("diffusion"), steps=2, asynchronous="pipedream")
    assert check.gradients <= 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["", "recompute"])
def test_blocks_that_skip_themselves_by_chance_skip_alike(two_ranks: RankPool, policy: str):
    of = plan("layer_drop")
    check = checked(two_ranks, with_policy(of, policy) if policy else of, steps=1)
    assert check.gradients <= 1e-12 and any("rand 16" in note for note in check.notes)


@pytest.mark.slow
def test_a_model_that_skips_its_layers_by_chance_is_cut_and_passes(two_ranks: RankPool):
    of = plan("skipping_layers")
    assert all("blocks" in " ".join(stage.layers) for stage in of.stages)
    assert checked(two_ranks, of, steps=1).gradients <= 1e-12


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "policy"),
    [
        pytest.param("pythons_numbers", "recompute", marks=pytest.mark.long),
        pytest.param("wandering", "", marks=pytest.mark.long),
        ("wandering", "recompute"),
    ],
)
def test_numbers_of_other_generators_are_equal_whatever_their_states_on_the_ranks(
    two_ranks: RankPool, name: str, policy: str
):
    of = plan(name)
    of = with_policy(of, policy) if policy else of
    settings = RunSettings(model=of.origin.model, check=True, steps=2)
    for states in ((1, 2), (7, 7)):
        said, _ = two_ranks.call(run_from, of, settings, *states)
        assert said.startswith("random numbers were seeded alike in both models ("), said
        assert "random 32 times" in said or "random 16 times" in said, said


# Draws in one process


def drawn(*of: torch.Tensor, microbatch: int = 0) -> list[torch.Tensor]:
    with SeededDraws():
        starts(microbatch)
        return [F.dropout(x, 0.5) for x in of]


def test_a_draw_depends_on_its_microbatch_and_shape_but_on_no_other_draw():
    ones, more = torch.ones(40), torch.ones(41)
    (alone,), (_, second) = drawn(ones), drawn(more, ones)
    assert torch.equal(alone, second)
    assert not torch.equal(alone, drawn(ones, microbatch=1)[0])
    assert not torch.equal(alone, drawn(more)[0][:40])


def test_a_draw_depends_on_no_strides():
    ones = torch.ones(5, 8)
    (plain,), (transposed,) = drawn(ones), drawn(torch.ones(8, 5).T)
    assert torch.equal(plain, transposed) and not transposed.is_contiguous()


def test_a_part_draws_the_numbers_of_its_microbatch_and_name_only():
    generators = HostGenerators()
    before = generators.states()

    def numbers(microbatch: int, *names: str) -> list[tuple[float, float]]:
        found: list[tuple[float, float]] = []
        with SeededDraws() as draws:
            starts(microbatch)
            for name in names:
                with draws.part(name, generators):
                    found.append((random.random(), random.random() + np.random.rand()))
        return found

    (alone,), (first, second) = numbers(0, "b"), numbers(0, "a", "b")
    assert alone == second != first and alone[0] != alone[1]
    assert numbers(1, "b") != [alone] and generators.states() == before


def test_a_context_gives_all_random_states_back():
    generators, torchs = HostGenerators(), torch.get_rng_state()
    before = generators.states()
    with SeededDraws():
        starts(3)
        torch.rand(2), random.random(), np.random.rand()
    assert generators.states() == before and torch.equal(torch.get_rng_state(), torchs)


def test_outside_a_check_nothing_is_seeded():
    torch.manual_seed(7)
    starts(3)
    assert torch.initial_seed() == 7


def test_fused_attention_without_dropout_draws_nothing():
    seeded, x = SeededDraws(), torch.ones(1, 2, 4, 8, requires_grad=True)
    with seeded:
        starts(0)
        F.scaled_dot_product_attention(x, x, x)
        assert not seeded.counts
        F.scaled_dot_product_attention(x, x, x, dropout_p=0.1)
    assert sum(seeded.counts.values()) == 1


def test_a_layer_that_does_not_restore_the_generator_draws_other_numbers():
    x = torch.ones(64, requires_grad=True)

    def gradient(*, restores: bool) -> torch.Tensor:
        with SeededDraws():
            starts(0)
            y = checkpoint(
                lambda v: F.dropout(v, 0.5).square(), x, use_reentrant=False,
                preserve_rng_state=restores,
            )  # fmt: skip
            starts(0, is_backward=True)
            (found,) = torch.autograd.grad(y.sum(), x)
        return found

    (kept,) = drawn(x)
    assert torch.equal(gradient(restores=True), 2 * kept * (kept != 0) * 2)
    assert not torch.equal(gradient(restores=False), gradient(restores=True))
