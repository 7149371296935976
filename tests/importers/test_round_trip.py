"""Every export that names stages, read back: the layers of each stage are the plan's."""

from pathlib import Path

import pytest

from autopart import export_plan, solve
from autopart.errors import UsageError
from autopart.importers.megatron import units_of_layout
from autopart.importers.texts import (
    layout_text,
    stages_of_device_map,
    units_of_modules,
    units_of_partition,
    units_of_parts,
)
from autopart.importers.units import StageLayers, stages_of_units
from autopart.records.cluster import cluster_of
from autopart.records.layer_graph import LayerGraph
from autopart.records.plan import Plan
from autopart.records.profile import Profile, load_profile

PROFILE = Path(__file__).parent.parent / "golden" / "profiles" / "llama-8b.json"

FILES = {
    "megatron": ("autopart_megatron.sh", "autopart_megatron.yaml"),
    "primus": ("autopart_primus.yaml",),
    "torchtitan": ("autopart_titan.py",),
    "automodel": ("autopart_automodel.yaml",),
    "deepspeed": ("autopart_deepspeed.py",),
    "vllm": ("autopart_vllm.sh",),
    "device-map": ("autopart_device_map.json",),
}


@pytest.fixture(scope="module")
def profile() -> Profile:
    return load_profile(PROFILE)


@pytest.fixture(scope="module")
def plan(profile: Profile) -> Plan:
    cluster = cluster_of("h100-sxm", 8)
    options = {"num_stages": 4, "schedule": "1f1b", "global_batch": 64, "recompute": "never"}
    return solve(profile, cluster, optimizer="sgd", **options)  # pyright: ignore[reportArgumentType]


def read_back(target: str, graph: LayerGraph, text: str) -> StageLayers:
    """The stages in an exported file."""
    if target == "device-map":
        return stages_of_device_map(graph, text)
    if target == "deepspeed":
        return stages_of_units(graph, units_of_parts(graph, text), keep_unknown=True)
    if target == "vllm":
        return stages_of_units(graph, units_of_partition(text))
    if target in ("torchtitan", "automodel"):
        return stages_of_units(graph, units_of_modules(text))
    return stages_of_units(graph, units_of_layout(layout_text(text)))


@pytest.mark.parametrize(
    ("target", "file"), [(t, file) for t, files in FILES.items() for file in files]
)
def test_an_export_read_back_has_the_plans_stages(
    profile: Profile, plan: Plan, target: str, file: str
) -> None:
    text = export_plan(plan, target).files[file]
    stages = read_back(target, profile.graph, text)
    assert len(stages) == 4
    assert stages == tuple(stage.layers for stage in plan.stages)


def test_a_moved_layer_is_read_as_moved(profile: Profile, plan: Plan) -> None:
    """The comparison can fail: a text with another cut gives other stages."""
    text = export_plan(plan, "vllm").files["autopart_vllm.sh"]
    counts = [int(n) for n in text.rpartition("=")[2].split(",")]
    other = f"{counts[0] - 1},{counts[1] + 1},{counts[2]},{counts[3]}"
    stages = stages_of_units(profile.graph, units_of_partition(other))
    assert stages != tuple(stage.layers for stage in plan.stages)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no list of modules"),
        ("[[", "no list of modules"),
        ("[[1, 2]]", "no list of modules"),
        ("[['a'], ['b']", "no list of modules"),
        ("[" * 5000, "no list of modules"),
        ("[[__import__('os')]]", "no list of modules"),
    ],
)
def test_texts_without_module_lists_are_refused(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        units_of_modules(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "no device map"),
        ("[]", "no device map"),
        ('{"tokens": "cpu"}', "on 'cpu'"),
        ('{"tokens": -1}', "on '-1'"),
        ('{"tokens": true}', "on 'True'"),
        ('{"tokens": 0}', "no device for layer"),
        ('{"tokens": 0, "blocks": 0, "norm": 0, "head": 2}', "no layer on device 1"),
    ],
)
def test_device_maps_that_say_no_stages_are_refused(profile: Profile, text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        stages_of_device_map(profile.graph, text)


def test_a_device_map_names_modules_that_hold_layers(profile: Profile) -> None:
    text = '{"tokens": 0, "blocks": 0, "blocks.31": 1, "norm": 1, "head": 1}'
    stages = stages_of_device_map(profile.graph, text)
    assert stages[1] == ("blocks.31", "norm", "head", "loss")


@pytest.mark.parametrize("text", ["0,3", "0,3,2,35", "1,35", "0,35,36", "many", "0,0,35"])
def test_bounds_that_do_not_rise_to_the_end_are_refused(profile: Profile, text: str) -> None:
    with pytest.raises(UsageError, match=r"do not rise|no list of numbers"):
        units_of_parts(profile.graph, text)


@pytest.mark.parametrize(
    ("stages", "said"),
    [
        ((("embedding",), ()), "stage 1 of the layout has no layer"),
        ((("embedding",), ("embedding",)), "'embedding' twice, on stages 0 and 1"),
        ((("embedding",), ("norm", "head")), "leaves out 32 units of the model: 'layers.0', "),
    ],
)
def test_layouts_of_another_model_are_refused(
    profile: Profile, stages: StageLayers, said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        stages_of_units(profile.graph, stages)
