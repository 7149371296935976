"""Random plans with uneven stages, and each rank's predicted and measured peak.

Cuts, schedules, policies, optimizers, dtypes and groups are drawn. Uneven cuts find what even ones hide: a
rank's peak then lies in another action, or between two.
"""

import functools
import random
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from autopart.errors import AutopartError
from autopart.fidelity.compare import judge
from autopart.records.cluster import HostLink, cluster_of
from autopart.records.layer_graph import Layer
from autopart.records.plan import Plan
from autopart.records.profile import Profile
from autopart.runtime.job.one_device import run_on_one_device
from autopart.runtime.profiling.profiler import profile_model
from autopart.search.planner import solve
from tests.support.equal_times import with_equal_times

MODELS = (
    "zoo:encdec-tiny",
    "zoo:gpt2-tiny",
    "zoo:llama-tiny",
    "zoo:mlp-tiny",
    "zoo:moe-tiny",
    "zoo:resnet-tiny",
    "zoo:unet-tiny",
)
DEGREES: dict[str, dict[str, tuple[int, ...]]] = {
    "zoo:gpt2-tiny": {"tensor": (2,), "context": (2,)},
    "zoo:llama-tiny": {"tensor": (2,)},
    "zoo:moe-tiny": {"expert": (2,)},
}
"""Degrees of rank groups that these models are profiled with."""
SCHEDULES = {
    "gpipe": 1,
    "1f1b": 1,
    "eager-1f1b": 1,
    "bpipe": 1,
    "zb-h1": 1,
    "zb-h2": 1,
    "interleaved-1f1b": 2,
    "interleaved-zb": 2,
    "looped-bfs": 2,
    "zbv": 2,
    "v-half": 2,
    "v-min": 2,
    "dualpipev": 2,
    "hanayo": 2,
}
"""Stages per rank."""


class Drawn(NamedTuple):
    """One random problem with a single layout."""

    model: str
    microbatch_size: int
    dtype: str
    gpus: int
    words: dict[str, Any]
    """Keywords of `solve`."""


class Peaks(NamedTuple):
    """What came of it."""

    refused: str
    """Why there is no plan, or no run; empty where there is one."""
    errors: tuple[float, ...] = ()
    """Per rank predicted over measured bytes - 1."""
    above: int = 0
    """The most bytes of a rank above its prediction, without those that docs/cost-model.md leaves out; at least 0."""


def draw(seed: int) -> Drawn:
    """The problem with this number."""
    rng = random.Random(seed)
    model = rng.choice(MODELS)
    # Two expert ranks share a microbatch's samples equally.
    size = rng.choice([2, 4] if model == "zoo:moe-tiny" else [1, 2, 3])
    dtype = rng.choice(["float32", "float32", "float32", "bfloat16"])
    layers = profiled(model, size, dtype).graph.layers
    names = [layer.name for layer in layers]
    schedule = rng.choice(list(SCHEDULES))
    per_rank = SCHEDULES[schedule]
    ranks = rng.choice([n for n in (2, 2, 3, 4) if n * per_rank <= len(names)])
    stages = ranks * per_rank
    cuts = [0, *sorted(rng.sample(range(1, len(names)), stages - 1)), len(names)]
    words: dict[str, Any] = {
        "schedule": schedule,
        "num_stages": stages,
        "num_replicas": 1,
        "num_microbatches": _microbatches(rng, schedule, ranks),
        "pins": {n: s for s in range(stages) for n in names[cuts[s] : cuts[s + 1]]},
        "optimizer": rng.choice(["adamw", "sgd"]),
        **_policies(rng, layers),
    }
    if per_rank > 1:
        words["stages_per_rank"] = per_rank
    if dtype == "bfloat16" and rng.random() < 0.5:
        words["precision"] = "bfloat16"
    if rng.random() < 0.2:
        words["gradient_dtype"] = "float32"
    group = rng.choice(["none", "none", "degree", "state"])
    if group == "degree" and model in DEGREES:
        kind = rng.choice(sorted(DEGREES[model]))
        words[kind] = 2 if kind == "tensor" else "2"
    elif group == "state":
        words |= {"shard": rng.choice(["zero2", "zero3"]), "shard_degree": 2}
    gpus = 2 * ranks if {"tensor", "context", "expert", "shard"} & words.keys() else ranks
    return Drawn(model, size, dtype, gpus, words)


def _microbatches(rng: random.Random, schedule: str, ranks: int) -> int:
    """A number that the schedule can run; even, so that two GPUs can share a step's state."""
    whole = schedule.startswith("interleaved")
    return 2 * (rng.choice([1, 2]) * ranks + (0 if whole else rng.choice([0, 1])))


def _policies(rng: random.Random, layers: Sequence[Layer]) -> dict[str, Any]:
    """All layers recomputed, or some under each policy that they can take, or none."""
    kind = rng.choice(["never", "never", "always", "auto", "selective", "some", "some"])
    if kind != "some":
        return {"recompute": kind}
    found: dict[str, list[str]] = {"keep": [], "recompute": [], "selective": [], "offload": []}
    for layer in layers:
        can = {
            "keep": True,
            "recompute": layer.recompute is not None,
            "selective": layer.selective is not None,
            "offload": layer.stash_bytes > 0 and layer.kind != "loss",
        }
        found[rng.choice([policy for policy in found if can[policy]])].append(layer.name)
    return {
        "keep_layers": found["keep"],
        "recompute_layers": found["recompute"],
        "selective_layers": found["selective"],
        "offload_layers": found["offload"],
    }


@functools.lru_cache(maxsize=64)
def profiled(model: str, microbatch_size: int, dtype: str) -> Profile:
    """The model's profile with its degrees."""
    degrees: dict[str, Any] = DEGREES.get(model, {})
    found = profile_model(
        model, microbatch_size=microbatch_size, dtype=dtype, repeats=1, warmup=0, **degrees
    )
    return with_equal_times(found)


def solved(drawn: Drawn) -> Plan:
    """The plan for a problem; raises InfeasibleError or PlanError where there is none."""
    cluster = msgspec.structs.replace(
        cluster_of("cpu", gpus=drawn.gpus),
        host_link=HostLink(bandwidth=1e10, latency=1e-6),
        sends_overlap=True,
    )
    profile = profiled(drawn.model, drawn.microbatch_size, drawn.dtype)
    return solve(profile, cluster, **drawn.words)


def peaks(drawn: Drawn) -> Peaks:
    """Run each rank of the plan alone, for one step on a CPU."""
    try:
        plan = solved(drawn)
        run = run_on_one_device(plan, drawn.model, steps=1, device="cpu")
    except AutopartError as error:
        return Peaks(str(error))
    ranks = [(r.measured_bytes or 0, r.predicted_bytes) for r in judge(plan, run).ranks]
    # Sharded state: the loss keeps a number, and gradients of norms stay whole between I and W.
    shares = "shard" in drawn.words
    left_out = [
        shares * (4 * plan.num_microbatches + predicted // 10_000) for _, predicted in ranks
    ]
    above = [measured - predicted for measured, predicted in ranks]
    return Peaks(
        "",
        tuple(predicted / measured - 1 for measured, predicted in ranks),
        max(0, *(bytes_ - less for bytes_, less in zip(above, left_out, strict=True))),
    )
