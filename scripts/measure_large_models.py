"""Plans for large models on many H100, beside the layouts that their authors published, both priced in our model.

    python scripts/measure_large_models.py --profiles FOLDER
    python scripts/measure_large_models.py --profiles FOLDER --rows llama-405b:16384 mixtral-8x22b:64 --time-limit 55
    python scripts/measure_large_models.py --profiles FOLDER --plans FOLDER # keeps profiles too
    autopart verify FOLDER/llama-405b-1024-best.json --profile FOLDER/llama-405b-profile.json

Profiles are analytic, in bfloat16 on meta tensors, with the kernel model of `--target megatron`. They have three blocks, or three of
each kind, and the last kind's inner block is repeated. They lie in FOLDER and are made where they are missing.

The plan is the best over every degree of the profile, with `--shard auto`, `--recompute auto`, 1F1B and GPipe. The published layout has its degrees,
its stages and replicas, and ZeRO-1; cuts and recomputed layers are the best ones. Sources:

    llama-405b     Llama Team (2024), arXiv 2407.21783, Table 4: tensor 8, 16 stages, 16,384 GPUs; at 131,072 tokens context 16.
                   1,024 GPUs: NVIDIA NeMo, scripts/performance/recommended_model_configs/model_configs_h100.csv at 000e8c1:
                   tensor 8, context 2, 8 stages (8 virtual ones per rank are left out)
    deepseek-v3    DeepSeek-AI (2024), arXiv 2412.19437, section 3.2: 16 stages, expert 64 over 8 nodes, ZeRO-1. Its DualPipe and its
                   FP8 are left out
    mixtral-8x22b  NVIDIA NeMo, nemo/collections/llm/recipes/mixtral_8x22b.py at 00138e2: tensor 2, expert 8, 4 stages on
                   128 GPUs. Its context 2 is left out: there experts lie across the ranks of a context group. So are its 14
                   virtual stages per rank

Time limits count seconds of the processor, so a busy machine changes little. One JSON line per row. Nothing was measured on a GPU.
"""

import argparse
import json
import math
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from repeated_blocks import with_blocks

from autopart.errors import AutopartError
from autopart.records.group_variants import GroupVariant, LayerCollectives
from autopart.records.known_clusters import find_preset, preset_cluster
from autopart.records.plan import save_plan
from autopart.records.profile import Profile, load_profile, save_profile
from autopart.records.rank_group import group_name
from autopart.runtime.profiling.profiler import profile_model
from autopart.scaling.blocks import repeat_blocks
from autopart.search.options import SolveOptions
from autopart.search.planner import solve_with_options

SCRIPTS = Path(__file__).parent
CLOCK = time.perf_counter


class Model(NamedTuple):
    """A model file with few blocks, and how it is profiled."""

    file: str
    blocks: int
    """Blocks of the last kind in the whole model."""
    tensor: tuple[int, ...]
    context: tuple[int, ...] = ()
    expert: tuple[int, ...] = ()
    microbatch_size: int = 1
    sequence_length: int | None = None
    dense: int = 0
    """Blocks of another kind before them."""


MODELS = {
    "llama-405b": Model(
        "llama_three_blocks.py:build_405b", 126, (1, 2, 4, 8), (2, 4, 8, 16), sequence_length=8192
    ),
    "llama-405b-128k": Model(
        "llama_three_blocks.py:build_405b", 126, (4, 8), (8, 16), sequence_length=131072
    ),
    "mixtral-8x22b": Model(
        "large_models.py:build_mixtral_8x22b", 56, (1, 2), (2,), (4, 8), microbatch_size=8
    ),
    "deepseek-v3": Model(
        "large_models.py:build_deepseek_v3",
        58,
        (1,),
        expert=(8, 64),
        microbatch_size=64,
        dense=3,
    ),
}


class Row(NamedTuple):
    """One question, and the published layout beside it."""

    gpus: int
    batch: int
    """Samples per step."""
    published: dict[str, Any] | None = None
    """Its degrees, stages and replicas; None where none was published for so many GPUs."""
    sizes: tuple[int, ...] = ()
    """Microbatch sizes that are searched."""


_LLAMA = {"tensor": 8, "sequence_parallel": "on", "num_stages": 16, "zero1": True}
ROWS = {
    "llama-405b:1024": Row(
        1024, 2048, _LLAMA | {"context": "2", "num_stages": 8, "num_replicas": 8}
    ),
    "llama-405b:16384": Row(16384, 2048, _LLAMA | {"num_replicas": 128}),
    "llama-405b-128k:1024": Row(1024, 128),
    "llama-405b-128k:16384": Row(16384, 128, _LLAMA | {"context": "16", "num_replicas": 8}),
    "mixtral-8x22b:64": Row(
        64,
        256,
        {
            "tensor": 2,
            "sequence_parallel": "on",
            "context": "1",
            "expert": "8",
            "num_stages": 4,
            "zero1": True,
        },
    ),
    "deepseek-v3:256": Row(256, 15360, sizes=(8, 64)),
    "deepseek-v3:2048": Row(
        2048,
        15360,
        {"expert": "64", "num_stages": 16, "num_replicas": 2, "zero1": True},
        sizes=(8, 64),
    ),
}


def main() -> None:
    """Print each row that is asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--profiles", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS), metavar="ROW")
    parser.add_argument("--time-limit", type=float, default=50.0)
    parser.add_argument("--published-only", action="store_true")
    parser.add_argument("--plans", type=Path, metavar="FOLDER", help="for the plans, to verify")
    asked = parser.parse_args()
    asked.profiles.mkdir(exist_ok=True)
    # Deadlines are readings of this clock.
    time.perf_counter = processor_seconds()
    for name in asked.rows:
        profile = profile_of(name.partition(":")[0], asked.profiles)
        if asked.plans is not None:
            asked.plans.mkdir(exist_ok=True)
            save_profile(profile, asked.plans / f"{name.partition(':')[0]}-profile.json")
        if not asked.published_only:
            _tell(best(name, profile, asked.time_limit), asked.plans)
        if ROWS[name].published is not None:
            _tell(published(name, profile, asked.time_limit), asked.plans)


def _tell(row: dict[str, Any], folder: Path | None) -> None:
    plan = row.pop("plan", None)
    if plan is not None and folder is not None:
        save_plan(plan, folder / f"{row['row'].replace(':', '-')}-{row['layout']}.json")
    print(json.dumps(row), flush=True)


def processor_seconds() -> Callable[[], float]:
    """A clock of this process's seconds. It is read anew every few milliseconds: each reading asks the system."""
    read_at, seconds = -math.inf, 0.0

    def clock() -> float:
        nonlocal read_at, seconds
        if (now := CLOCK()) > read_at + 0.005:
            read_at, seconds = now, time.process_time()
        return seconds

    return clock


def profile_of(name: str, folder: Path) -> Profile:
    """The model's profile with all blocks."""
    model, kept = MODELS[name], folder / f"{name}.json"
    if not kept.exists():
        profile = profile_model(
            str(SCRIPTS / model.file),
            microbatch_size=model.microbatch_size,
            sequence_length=model.sequence_length,
            dtype="bfloat16",
            device="meta",
            gpu="h100-sxm",
            target="megatron",
            tensor=model.tensor,
            context=model.context,
            expert=model.expert,
            sequence_parallel=max(model.tensor) > 1,
        )
        save_profile(profile, kept)
    profile = load_profile(kept)
    if model.file.startswith("llama"):
        return with_blocks(profile, model.blocks)
    return _with_all_blocks(profile, model)


def _with_all_blocks(profile: Profile, model: Model) -> Profile:
    """The profile of a transformers model with all blocks, in its graph and in every variant."""
    text = msgspec.json.encode(profile).decode()

    def renamed(found: re.Match[str]) -> str:
        number = int(found[1])
        return f"dense{number}" if number < model.dense else f"layers.{number - model.dense}"

    profile = msgspec.json.decode(re.sub(r"\blayers\.(\d+)\b", renamed, text), type=Profile)
    return msgspec.structs.replace(
        repeat_blocks(profile, model.blocks),
        variants=tuple(_variant(profile, one, model.blocks) for one in profile.variants),
    )


def _variant(profile: Profile, variant: GroupVariant, blocks: int) -> GroupVariant:
    alone = msgspec.structs.replace(profile, graph=variant.graph, variants=())
    own = {one.layer: one.collectives for one in variant.collectives}

    def source(layer: str) -> str:
        """The profiled layer that a layer of the whole model repeats."""
        found = re.search(r"\blayers\.(\d+)\b", layer)
        if found is None or found[1] == "0":
            return layer
        place = "2" if int(found[1]) == blocks - 1 else "1"
        return f"{layer[: found.start(1)]}{place}{layer[found.end(1) :]}"

    graph = repeat_blocks(alone, blocks).graph
    collectives = tuple(
        LayerCollectives(layer=la.name, collectives=own[source(la.name)])
        for la in graph.layers
        if source(la.name) in own
    )
    return msgspec.structs.replace(variant, graph=graph, collectives=collectives)


def best(name: str, profile: Profile, time_limit: float) -> dict[str, Any]:
    """The best plan over every degree."""
    model, row = MODELS[name.partition(":")[0]], ROWS[name]
    words: dict[str, Any] = {"tensor": "auto" if max(model.tensor) > 1 else 1, "shard": "auto"}
    words |= {"context": "auto"} if model.context else {}
    words |= {"expert": "auto"} if model.expert else {}
    return {"row": name, "layout": "best"} | _solved(profile, row, words, time_limit)


def published(name: str, profile: Profile, time_limit: float) -> dict[str, Any]:
    """The best plan with the published degrees, stages and replicas."""
    row = ROWS[name]
    words = dict(row.published or {})
    if "expert" in words:
        row = row._replace(sizes=(int(words["expert"]),))
    return {"row": name, "layout": "published"} | _solved(profile, row, words, time_limit)


def _solved(profile: Profile, row: Row, words: dict[str, Any], time_limit: float) -> dict[str, Any]:
    on = preset_cluster(find_preset("dgx-h100"), row.gpus // 8, 8)
    options = SolveOptions(
        global_batch=row.batch,
        microbatch_sizes=row.sizes,
        recompute="auto",
        time_limit=time_limit,
        **words,
    )
    began, wall = time.process_time(), CLOCK()
    try:
        plan = solve_with_options(profile, on, options)
    except AutopartError as error:
        return {"error": str(error), "seconds": round(time.process_time() - began, 1)}
    took = {"seconds": round(time.process_time() - began, 1), "wall": round(CLOCK() - wall, 1)}
    return took | {
        "plan": plan,
        "step": round(plan.prediction.step_time, 3),
        "gap": None if plan.certificate.gap is None else round(100 * plan.certificate.gap, 1),
        "choices": len(plan.sizes),
        "group": group_name(plan.group),
        "stages": len(plan.stages),
        "replicas": len(plan.stages[0].ranks),
        "schedule": plan.schedule,
        "microbatch": plan.microbatch_size,
        "zero1": plan.training.zero1,
        "recomputed": sum(len(stage.recompute) for stage in plan.stages),
        "selective": sum(len(stage.selective) for stage in plan.stages),
    }


if __name__ == "__main__":
    main()
