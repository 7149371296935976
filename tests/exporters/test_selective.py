"""Selective recompute in exports: the settings, the exported wrapper, and the refusals."""

import ast
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
import yaml
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from autopart.errors import ExportRefused
from autopart.exporters.readback.rebuilt import exported_module
from autopart.exporters.targets import export_plan
from autopart.records.plan import Plan
from tests.support.exporters.language import language_plan, recomputing

PLAN = language_plan([1, 2])
ALL = recomputing(PLAN, 0, 1, 2, policy="selective")
SOME = recomputing(PLAN, 1, policy="selective")


def files(plan: Plan, target: str, version: str | None = None) -> dict[str, str]:
    return dict(export_plan(plan, target, version=version).files)


def refusal(plan: Plan, target: str, version: str | None = None) -> str:
    with pytest.raises(ExportRefused) as caught:
        export_plan(plan, target, version=version)
    return str(caught.value)


def constants(text: str) -> dict[str, Any]:
    return {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in ast.parse(text).body
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and node.targets[0].id.isupper()
        and node.targets[0].id != "PRODUCTS"
    }


@pytest.mark.parametrize(
    ("target", "file", "wanted"),
    [
        ("torchtitan", "autopart_titan.py", (["layers.1"], ["layers.0"])),
        ("deepspeed", "autopart_deepspeed.py", ([2], [1])),
    ],
)
def test_single_layers_keep_their_products(target: str, file: str, wanted: Any) -> None:
    made = files(recomputing(SOME, 0), target)
    told = constants(made[file])
    assert (told["SELECTIVE"], told["RECOMPUTED"]) == wanted
    ast.parse(made["autopart_selective.py"])
    assert "SELECTIVE" not in files(PLAN, target)[file]
    assert "autopart_selective.py" not in files(recomputing(PLAN, 0), target)


def test_megatron_and_primus_recompute_parts_of_all_layers() -> None:
    made = files(ALL, "megatron")
    assert (
        "    --recompute-granularity selective\n    --recompute-modules core_attn mlp\n"
        in made["autopart_megatron.sh"]
    )
    assert "autopart_recompute.py" not in made
    for text in (made["autopart_megatron.yaml"], files(ALL, "primus")["autopart_primus.yaml"]):
        told = yaml.safe_load(text)
        assert told["recompute_granularity"] == "selective"
        assert told["recompute_modules"] == ["core_attn", "mlp"]
        assert "recompute_num_layers" not in told and "recompute_layer_ids" not in told
    for target in ("megatron", "primus"):
        assert any("takes longer than predicted" in note for note in export_plan(ALL, target).notes)
    older = files(ALL, "megatron", "0.12")["autopart_megatron.sh"]
    assert "--recompute-modules core_attn mlp" in older


@pytest.mark.parametrize("target", ["megatron", "primus"])
@pytest.mark.parametrize("plan", [SOME, recomputing(SOME, 0, 2)])
def test_parts_of_some_layers_are_refused(target: str, plan: Plan) -> None:
    said = refusal(plan, target)
    assert "stage 1 recomputes 'layers.1' except its products with weights" in said
    assert "the plan has 1 such layer; --recompute selective makes a plan with all" in said


@pytest.mark.parametrize(("target", "version"), [("automodel", None), ("torchtitan", "0.2.2")])
@pytest.mark.parametrize("plan", [SOME, ALL])
def test_modes_that_run_every_second_product_again_are_refused(
    target: str, version: str | None, plan: Plan
) -> None:
    said = refusal(plan, target, version)
    assert "keeps attention and runs every second product again" in said
    assert "--to torch, torchtitan (0.3) and deepspeed recompute single layers so" in said


@pytest.mark.parametrize("target", ["vllm", "device-map"])
def test_serving_ignores_selective_recompute(target: str) -> None:
    assert files(ALL, target) == files(PLAN, target)


@pytest.mark.parametrize("target", ["torchtitan", "megatron", "deepspeed", "automodel", "primus"])
def test_a_selective_loss_is_refused(target: str) -> None:
    first, last = PLAN.stages
    stages = (first, msgspec.structs.replace(last, selective=("loss",)))
    said = refusal(msgspec.structs.replace(PLAN, stages=stages), target)
    assert "recomputes 'loss'" in said and "--keep-layer loss" in said


@pytest.mark.parametrize(
    ("counts", "chosen", "n"),
    [([2, 4], (1, 3, 5), 2), ([3, 2], (2,), 3), ([4, 1], (1, 3), 2), ([0, 3], (2,), 3)],
)
def test_torchtitan_0_2_recomputes_every_nth_layer_of_a_rank(
    counts: list[int], chosen: tuple[int, ...], n: int
) -> None:
    plan = recomputing(language_plan(counts), *chosen)
    told = tomllib.loads(files(plan, "torchtitan", "0.2.2")["autopart_titan.toml"])
    assert told["activation_checkpoint"] == {"mode": "selective", "selective_ac_option": str(n)}


def test_torchtitan_0_2_counts_over_the_stages_of_a_rank() -> None:
    # Rank 0 has layers 0, 1, 5; rank 1 has 2, 3, 4, 6.
    plan = language_plan([2, 3, 1, 1], 2, "interleaved-1f1b")
    told = files(recomputing(plan, 1, 3, 6), "torchtitan", "0.2.2")["autopart_titan.toml"]
    assert 'selective_ac_option = "2"' in told
    assert "every n-th of each rank's layers" in refusal(
        recomputing(plan, 1, 3, 5), "torchtitan", "0.2.2"
    )


# The exported wrapper


class Block(nn.Module):
    """Two products with a cheap operation between them, and a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 32), nn.Linear(32, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(nn.functional.gelu(self.up(self.norm(x))))


class Counted(TorchDispatchMode):
    """Counts operations by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: dict[str, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        self.counts[name] = self.counts.get(name, 0) + 1
        return func(*args, **(kwargs or {}))


def test_products_run_once_and_the_last_result_is_freed(tmp_path: Path) -> None:
    (tmp_path / "autopart_selective.py").write_text(
        files(SOME, "deepspeed")["autopart_selective.py"]
    )
    block, plain = Block(), Block()
    plain.load_state_dict(block.state_dict())
    block.forward = exported_module(tmp_path / "autopart_selective.py").recomputing(block.forward)
    kept: dict[str, StorageWeakRef] = {}
    for name in ("norm", "up", "down"):
        block.get_submodule(name).register_forward_hook(
            lambda _, __, made, name=name: kept.update(
                {name: StorageWeakRef(made.untyped_storage())}
            )
        )
    x = torch.randn(4, 8, requires_grad=True)
    for microbatch in range(3):
        with Counted() as counted:
            out = block(x)
            alive = {name for name, made in kept.items() if not made.expired()}
            # The first forward does not know yet which product is the last.
            assert alive == ({"up", "down"} if microbatch == 0 else {"up"})
            out.square().sum().backward()
        assert counted.counts["addmm"] == 2 and counted.counts["gelu"] == 2
        assert counted.counts["native_layer_norm"] == 2
        plain(x.detach()).square().sum().backward()
    for mine, theirs in zip(block.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=0, atol=0)
