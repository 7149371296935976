"""Published pipeline layouts, imported and priced, beside the best plans.

    python scripts/compare_published_layouts.py --profiles FOLDER --time-limit 20
    python scripts/compare_published_layouts.py --rows 1 7

Each row is a layout that somebody made by hand and published. It is read as `autopart import-plan megatron` reads it. Beside it
stand the best plan with as many stages, and the best plan with the same tensor degree under GPipe, 1F1B and the row's schedule.

Sources:

    M   NVIDIA-NeMo/Megatron-Bridge 067f987df (Apache-2.0), docs/performance-summary.md and its archive, and
        src/megatron/bridge/perf_recipes/llama. 405B counts embedding and loss as layers
    R   the same repository, src/megatron/bridge/recipes/llama/h100/llama3.py: supervised fine-tuning of all weights
    K   Korthikanti et al. (2022), "Reducing Activation Recomputation in Large Transformer Models", arXiv 2205.05198, Table 3

Every profile is analytic, in bfloat16, from three blocks of which the inner one is repeated. Rows of M train in 8 or 4 bits; all
layouts of a row are priced alike. Every plan has Megatron's sends and syncs and ZeRO-1. No row says what it recomputes in a form that
transfers: no layer is recomputed where the layout fits so, and else `--recompute auto` chooses for all plans of the row.
Nothing was measured here. Time limits count seconds of the processor, so a busy machine changes nothing.
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from repeated_blocks import with_blocks

from autopart.cost.stage_times import plan_minimised
from autopart.errors import AutopartError, InfeasibleError
from autopart.importers.megatron import Counts, units_of_counts, units_of_layout
from autopart.importers.units import StageLayers, num_blocks, stages_of_units, without_absent_norm
from autopart.records.cluster import Cluster, cluster_of
from autopart.records.known_clusters import find_preset, preset_cluster
from autopart.records.layer_graph import LayerGraph
from autopart.records.plan import Plan
from autopart.records.profile import Profile, load_profile, save_profile
from autopart.runtime.profiling.profiler import profile_model
from autopart.search.given_stages import GivenPlan, plan_of_stages
from autopart.search.options import SolveOptions

SCRIPTS = Path(__file__).parent


class Model(NamedTuple):
    """A model file with three blocks, and how many blocks the published model has."""

    file: str
    blocks: int


MODELS = {
    "llama-70b": Model("llama_three_blocks_8k.py:build_70b", 80),
    "llama-70b-4k": Model("llama_three_blocks.py:build_70b", 80),
    "llama-405b": Model("llama_three_blocks_8k.py:build_405b", 126),
    "gpt-175b": Model("megatron_gpt.py:build_175b", 96),
    "gpt-530b": Model("megatron_gpt.py:build_530b", 105),
    "gpt-1t": Model("megatron_gpt.py:build_1t", 128),
}


class Row(NamedTuple):
    """One published layout."""

    source: str
    model: str
    gpu: str
    gpus: int
    batch: int
    tensor: int
    ranks: int
    """Ranks per pipeline."""
    stages_per_rank: int = 1
    microbatch_size: int = 1
    ends_count: bool = False
    """Whether embedding and loss count as layers."""
    layout: str = ""
    """Megatron's layout string, where the row has one."""


ROWS = (
    Row("M", "llama-405b", "gb300", 256, 1536, 4, 8, 4, ends_count=True),
    Row("M", "llama-405b", "gb200", 256, 1536, 4, 16, 4, ends_count=True),
    Row("M", "llama-405b", "gb200", 256, 1536, 4, 16, 8, ends_count=True),
    Row("M", "llama-70b", "gb300", 64, 256, 1, 4, 5),
    Row("M", "llama-70b", "gb300", 64, 256, 1, 4, 1, microbatch_size=2),
    Row("M", "llama-70b", "gb200", 64, 256, 2, 4, 5),
    Row(
        *("M", "llama-70b", "h100-sxm", 64, 256, 4, 8, 5),
        layout="Et*2|(t*2|)*34,t*3|(t*2|)*3,tL",
    ),
    Row("R", "llama-70b-4k", "h100-sxm", 32, 32, 4, 4, 5),
    Row("K", "gpt-175b", "a100-sxm-80gb", 64, 64, 8, 8, 3),
    Row("K", "gpt-530b", "a100-sxm-80gb", 280, 280, 8, 35, 3),
    Row("K", "gpt-1t", "a100-sxm-80gb", 512, 512, 8, 64, 1),
)
PRESETS = {"h100-sxm": "dgx-h100", "a100-sxm-80gb": "dgx-a100", "gb200": "gb200-nvl72"}
DOMAIN = 64
"""GPUs of a GB200 or GB300 rack that the published runs use together."""


def cluster_of_row(row: Row) -> Cluster:
    """The cluster: known nodes, or GB300 with the links of its datasheet."""
    per_node = min(row.gpus, DOMAIN if row.gpu.startswith("gb") else 8)
    nodes = row.gpus // per_node
    if row.gpu not in PRESETS:
        return cluster_of(row.gpu, row.gpus, nodes)
    return preset_cluster(find_preset(PRESETS[row.gpu]), nodes, per_node)


def profile_of(row: Row, folder: Path | None) -> Profile:
    """The row's profile with all blocks; it is kept in `folder`, and read from there."""
    model = MODELS[row.model]
    name = f"{row.model}-{row.gpu}-mb{row.microbatch_size}-t{row.tensor}.json"
    kept = folder and folder / name
    if kept is not None and kept.exists():
        return with_blocks(load_profile(kept), model.blocks)
    profile = profile_model(
        str(SCRIPTS / model.file),
        microbatch_size=row.microbatch_size,
        dtype="bfloat16",
        device="meta",
        gpu=row.gpu,
        target="megatron",
        granularity="block",
        tensor=(row.tensor,) if row.tensor > 1 else (),
        sequence_parallel=row.tensor > 1,
    )
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        save_profile(profile, kept)
    return with_blocks(profile, model.blocks)


def stages_of(row: Row, graph: LayerGraph) -> StageLayers:
    """The layers of each published stage."""
    if row.layout:
        units = units_of_layout(row.layout)
    else:
        counts = Counts(
            ranks=row.ranks,
            stages_per_rank=row.stages_per_rank,
            first=None,
            last=None,
            embedding_counts=row.ends_count,
            loss_counts=row.ends_count,
        )
        units = units_of_counts(num_blocks(graph, ()), counts)
    return stages_of_units(graph, without_absent_norm(graph, units, ()), ())


def given_plan(row: Row, profile: Profile, limit: float) -> tuple[GivenPlan, str]:
    """The row's plan beside the best ones, and what all of them recompute."""
    cluster, stages = cluster_of_row(row), stages_of(row, profile.graph)
    for recompute in ("never", "auto"):
        options = SolveOptions(
            global_batch=row.batch,
            target="megatron",
            stages_per_rank=row.stages_per_rank,
            tensor=row.tensor,
            sequence_parallel="on" if row.tensor > 1 else "auto",
            zero1=True,
            recompute=recompute,
            time_limit=limit,
        )
        try:
            return plan_of_stages([profile], cluster, options, stages), recompute
        except InfeasibleError:
            if recompute == "auto":
                raise
    raise AssertionError("both policies return or raise")


def told(plan: Plan) -> str:
    """A plan in one cell."""
    stages, replicas = len(plan.stages), len(plan.stages[0].ranks)
    return f"{stages} x {replicas} {plan.schedule}"


def line_of(number: int, row: Row, folder: Path | None, limit: float) -> dict[str, object]:
    """One row of the table."""
    named = {
        "row": number, "source": row.source, "model": row.model, "gpus": f"{row.gpus} {row.gpu}",
        "layout": f"t {row.tensor}, {row.ranks} x {row.stages_per_rank}", "batch": row.batch,
    }  # fmt: skip
    try:
        given, recompute = given_plan(row, profile_of(row, folder), limit)
    except AutopartError as error:
        return named | {"message": str(error)}
    own, shape, best = (plan_minimised(plan) for plan in (given.plan, given.same_shape, given.best))
    return named | {
        "recompute": recompute,
        "step": round(own, 4),
        "same_shape": round(shape, 4),
        "best": round(best, 4),
        "best_plan": told(given.best),
        "gap_of_best": given.best.certificate.gap,
        "above_bound": given.plan.certificate.gap,
        "moved": len(given.moved),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--profiles", type=Path, help="keep the profiles in this folder")
    parser.add_argument("--time-limit", type=float, default=20.0, help="seconds per search")
    parser.add_argument("--rows", type=int, nargs="*", help="numbers of rows; default: all")
    asked = parser.parse_args(arguments)
    time.perf_counter = time.process_time
    for number, row in enumerate(ROWS, 1):
        if not asked.rows or number in asked.rows:
            line = line_of(number, row, asked.profiles, asked.time_limit)
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
