"""DeepSpeed and Megatron-Core run exported plans like the unsplit model, on two processes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.exporters.readback.conftest import Needs
from tests.support.exporters.language import language_plan, recomputing
from tests.support.readback import train_deepspeed
from tests.support.readback.ranks import run_ranks


def written(folder: Path) -> list[dict[str, Any]]:
    """The results from each rank."""
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize(
    ("counts", "recomputed", "selective"),
    [([1, 4], (), ()), ([4, 1], (1, 2, 4), ()), ([2, 3], (0, 4), (1, 2))],
)
def test_deepspeed_trains_and_recomputes_as_planned(
    needs: Needs,
    tmp_path: Path,
    counts: list[int],
    recomputed: tuple[int, ...],
    selective: tuple[int, ...],
) -> None:
    needs("deepspeed")
    plan = recomputing(language_plan(counts, num_microbatches=4), *recomputed)
    plan = recomputing(plan, *selective, policy="selective")
    run_ranks("train_deepspeed", plan, "deepspeed", tmp_path)
    ranks = written(tmp_path)

    layers = train_deepspeed.layers_of(sum(counts))
    whole = torch.nn.Sequential(*layers)
    optimizer = torch.optim.SGD(whole.parameters(), lr=train_deepspeed.LEARNING_RATE)
    losses = []
    for step in range(train_deepspeed.STEPS):
        optimizer.zero_grad()
        parts = []
        for microbatch in range(plan.num_microbatches):
            ids, target = train_deepspeed.batch(step, microbatch, plan.microbatch_size)
            parts.append(train_deepspeed.loss_fn(whole(ids), target) / plan.num_microbatches)
            parts[-1].backward()
        optimizer.step()
        losses.append(sum(part.item() for part in parts))

    forwards: dict[int, int] = {}
    for rank in ranks:
        assert rank["losses"] == pytest.approx(losses, rel=1e-5)
        forwards |= {int(at): count for at, count in rank["forwards"].items()}
        for at, trained in rank["parameters"].items():
            for values, parameter in zip(trained, layers[int(at)].parameters(), strict=True):
                torch.testing.assert_close(torch.tensor(values), parameter.detach().flatten())
    once = plan.num_microbatches * train_deepspeed.STEPS
    twice = {
        1 + block for block in (*recomputed, *selective)
    }  # the embedding is entry 0 of the list
    assert forwards == {at: once * (1 + (at in twice)) for at in range(len(layers))}
    # Two products per block on the first rank: whole layers run them again, others do not.
    whole = [block for block in recomputed if block < counts[0]]
    assert ranks[0]["products"] == once * 2 * (counts[0] + len(whole))


@pytest.mark.parametrize(
    ("counts", "schedule", "recomputed"),
    [
        ([2, 3], "1f1b", (0, 1, 2, 3)),
        ([3, 2], "1f1b", (0, 3, 4)),
        ([2, 1, 3, 1], "interleaved-1f1b", (0, 1, 3, 4, 5)),
    ],
)
def test_megatron_builds_and_recomputes_the_planned_layers(
    needs: Needs, tmp_path: Path, counts: list[int], schedule: str, recomputed: tuple[int, ...]
) -> None:
    needs("megatron", "0.16")
    plan = recomputing(language_plan(counts, 2, schedule), *recomputed)
    run_ranks("build_megatron", plan, "megatron", tmp_path)
    ranks = written(tmp_path)
    layers = iter(range(sum(counts)))
    for stage, count in enumerate(counts):
        built = ranks[stage % 2][stage // 2]
        own = [next(layers) for _ in range(count)]
        assert built["forwards"] == {str(at): 1 + (at in recomputed) for at in own}
        first = ["position_embeddings", "word_embeddings"] if stage == 0 else []
        last = ["final_layernorm", "output_layer"] if stage == len(counts) - 1 else []
        assert built["outside"] == sorted(first + last)


@pytest.mark.parametrize("selective", [False, True])
def test_megatron_runs_parts_of_all_layers_again(
    needs: Needs, tmp_path: Path, selective: bool
) -> None:
    """The facts behind the note: attention and the MLP run twice, and the activation's result is freed."""
    needs("megatron", "0.16")
    plan = language_plan([2, 1])
    plan = recomputing(plan, 0, 1, 2, policy="selective") if selective else plan
    run_ranks("build_megatron", plan, "megatron", tmp_path)
    for (built,) in written(tmp_path):
        for runs, kept in built["parts"].values():
            again = ("core_attention", "linear_fc1", "activation", "linear_fc2")
            once = ("input_layernorm", "linear_qkv", "linear_proj", "pre_mlp_layernorm")
            assert runs == dict.fromkeys(again, 1 + selective) | dict.fromkeys(once, 1)
            assert kept["activation"] is not selective
            assert kept["linear_qkv"] and kept["core_attention"]
