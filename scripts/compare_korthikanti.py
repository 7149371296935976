"""Predicted memory and steps of the models of Korthikanti et al., beside the published ones.

    python scripts/compare_korthikanti.py
    python scripts/compare_korthikanti.py --data ../shared/data/published/korthikanti.json --models 22B 175B

"Reducing Activation Recomputation in Large Transformer Models", arXiv 2205.05198: GPTs with 22 to 1,000 billion parameters
on A100, tensor degree 8, one pipeline, interleaved for 175B and 530B. Each model (scripts/megatron_gpt.py) is profiled on meta
with three blocks; the inner one is repeated. Stages have equally many blocks. Rank 0 has the first stages and the embedding.

Published bytes are the paper's formulas. The file's own bytes are the same ones, and the script checks it. With
s tokens, b samples, width h, a heads, degree t, L blocks, p ranks and v stages per rank, rank 0 has

    state         18 bytes per parameter of 12 h^2 L / (p t), without embedding and norms
    activations   L s b h (10 + 24 / t + 5 a s / (h t)) bytes without, L s b h / t (34 + 5 a s / h) with sequence parallelism;
                  without the last term under selective recomputation; 2 L s b h under full recomputation.
                  Interleaving multiplies by 1 + (p - 1) / (p v)

The plan of each row has policies as Megatron has them: "sequence" gathers the input of a sharded product again in its
backward, "selective" recomputes attention between its two linear layers, "full" recomputes blocks.

One constant is calibrated: the share of the A100's peak rate that products reach, so that a block of 22B takes the published
7.7 + 11.9 ms without recomputation (Table 4). Memory and collectives are as autopart assumes for a DGX A100. The paper's
GPUs send slices and gather them on the node (Narayanan et al., 2021), so steps count sends of a t-th.
Every step is analytic; nothing was measured here.
"""

import argparse
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from repeated_blocks import block_of, with_blocks

from autopart.activations.policies import StagePolicies
from autopart.cost.groups_as_ranks import problem_of_groups
from autopart.cost.in_flight import stages_in_flight
from autopart.cost.memory import rank_memory
from autopart.pricing import predict, simulated
from autopart.records.group_variants import GroupVariant
from autopart.records.known_clusters import find_preset, preset_cluster
from autopart.records.known_gpus import GPUS, find_gpu
from autopart.records.layer_graph import LayerGraph
from autopart.records.layouts import Layout, Partition
from autopart.records.prediction import StagePrediction
from autopart.records.problem import Problem
from autopart.records.profile import Profile, load_profile, save_profile
from autopart.records.training import make_training
from autopart.runtime.profiling.profiler import profile_model
from autopart.schedules.catalogue import make_schedule
from autopart.schedules.in_flight import STASH, InFlight, in_flight_by_rank

DATA = Path(os.environ.get("AUTOPART_DATA", Path(__file__).parents[2] / "shared" / "data"))
PUBLISHED = DATA / "published" / "korthikanti.json"
MODEL_FILE = Path(__file__).with_name("megatron_gpt.py")
GPU, TOKENS, DEGREE, GIB = "a100-sxm-80gb", 2048, 8, 1 << 30
TRIED = (0.6, 0.8)
"""Efficiencies of products between which the calibration draws a line."""


class Policies(NamedTuple):
    """What a row of the table recomputes, and how its layers are profiled."""

    granularity: str
    sequence: bool
    recompute: tuple[str, ...] = ()
    """The ends of the names of layers that are recomputed as a whole."""
    selective: tuple[str, ...] = ()
    """The same for selective recompute."""


BLOCKS = ("every block",)
GATHERED_AGAIN = {"recompute": (".query_key_value", "head"), "selective": (".up",)}
"""Layers that gather their input again: of `up`, which has a GELU too, the product stays."""
ROWS: dict[str, Policies] = {
    "none": Policies("block", sequence=False),
    "sequence": Policies("module", sequence=True, **GATHERED_AGAIN),
    "selective": Policies("module", sequence=False, recompute=(".core",)),
    "sequence, selective": Policies(
        "module",
        sequence=True,
        recompute=(*GATHERED_AGAIN["recompute"], ".core"),
        selective=GATHERED_AGAIN["selective"],
    ),
    "full": Policies("block", sequence=False, recompute=BLOCKS),
}
STEPS = ("full", "sequence, selective")
"""The rows of Table 5, in its order."""
TABLE_4 = {
    "baseline": "none",
    "sequence parallel": "sequence",
    "full recompute": "full",
    "selective": "selective",
    "selective+sequence": "sequence, selective",
}
TRAINING = make_training("bfloat16", gradient_dtype="float32", sync="megatron")
STATE = ("weights", "gradients", "master", "optimizer")
Times = tuple[float, float]


class Shape(NamedTuple):
    """One published model and how it was trained."""

    name: str
    layers: int
    hidden: int
    heads: int
    pp: int
    gpus: int
    gbs: int
    mbs: int
    v: int = 1


def read_shapes(content: Mapping[str, Any]) -> list[Shape]:
    """The published models."""
    return [Shape(name, **own) for name, own in content["models"].items()]


def published_state(shape: Shape) -> float:
    """Bytes of weights, gradients, master copies and optimizer state in the blocks of one rank."""
    return 18 * 12 * shape.hidden**2 * shape.layers / (shape.pp * DEGREE)


def published_activations(shape: Shape, row: str) -> float:
    """Bytes of activations on rank 0, by the paper's formulas."""
    more = 1 + (shape.pp - 1) / (shape.pp * shape.v) if shape.v > 1 else 1
    size = TOKENS * shape.mbs * shape.hidden * shape.layers * more
    if row == "full":
        return 2 * size
    scores = 0.0 if "selective" in row else 5 * shape.heads * TOKENS / shape.hidden
    if "sequence" in row:
        return size / DEGREE * (34 + scores)
    return size * (10 + (24 + scores) / DEGREE)


def profiled(shape: Shape, granularity: Any, efficiency: float, folder: Path | None) -> Profile:
    """The model's profile with three blocks, for degree 8, on an A100 whose products reach a share of its peak rate.

    It is kept in `folder`, and read from there.
    """
    name = f"a100 at {efficiency:.4f}"
    kept = folder and folder / f"{shape.name}-{granularity} on {name}.json"
    if kept is not None and kept.exists():
        return load_profile(kept)
    GPUS[name] = msgspec.structs.replace(find_gpu(GPU), name=name, compute_efficiency=efficiency)
    profile = profile_model(
        f"{MODEL_FILE}:build_{shape.name.lower()}",
        microbatch_size=shape.mbs,
        dtype="bfloat16",
        device="meta",
        gpu=name,
        granularity=granularity,
        tensor=(DEGREE,),
        sequence_parallel=True,
    )
    if kept is not None:
        save_profile(profile, kept)
    return profile


class Predicted(NamedTuple):
    """The plan of one row on paper."""

    step: float
    """Seconds."""
    state: int
    """Bytes of weights, gradients, master copies and optimizer state on rank 0."""
    activations: int
    """Bytes of stash on rank 0 at its peak."""
    counted: int
    """The part of `activations` that the paper's formulas count: inside blocks."""


def variant_of(profile: Profile, row: Policies) -> GroupVariant:
    """The layers of one GPU for a row of the table."""
    (own,) = [one for one in profile.variants if one.group.sequence_parallel == row.sequence]
    return own


def problem_of(shape: Shape, variant: GroupVariant) -> Problem:
    """The problem on tensor groups."""
    cluster = preset_cluster(find_preset("dgx-a100"), shape.gpus // DEGREE)
    alone = Problem(
        graph=variant.graph,
        cluster=msgspec.structs.replace(cluster, sends="rendezvous"),
        microbatch_size=shape.mbs,
        num_microbatches=shape.gbs // shape.mbs,
        training=TRAINING,
    )
    return problem_of_groups(alone, variant)


def predicted(shape: Shape, row: Policies, problem: Problem) -> Predicted:
    """The plan of one row on tensor groups."""
    stages = shape.pp * shape.v
    layout = Layout(
        schedule="1f1b" if shape.v == 1 else "interleaved-1f1b",
        stage_ranks=tuple((stage % shape.pp,) for stage in range(stages)),
        num_microbatches=problem.num_microbatches,
    )
    partition = equal_stages(problem.graph, stages)
    policies = [policies_of(problem.graph, stage, row) for stage in partition]
    orders = make_schedule(layout.schedule, layout.stage_ranks, layout.num_microbatches)
    in_flight = stages_in_flight(orders, layout.stage_ranks)
    own, _ = predict(problem, layout, partition, policies, in_flight)
    slices = msgspec.structs.replace(problem, graph=sent_in_slices(problem.graph, row))
    timed, syncs = predict(slices, layout, partition, policies, in_flight)
    whole = simulated(problem.cluster, layout, timed, syncs, None)
    use = rank_memory(layout.stage_ranks, orders, own)[0]
    blocks = msgspec.structs.replace(problem, graph=_blocks_alone(problem.graph))
    inside, _ = predict(blocks, layout, partition, policies, in_flight)
    return Predicted(
        whole.step_time,
        sum(getattr(use, kind) for kind in STATE),
        use.stash,
        _counted(in_flight_by_rank(orders, layout.stage_ranks)[0], inside),
    )


def sent_in_slices(graph: LayerGraph, row: Policies) -> LayerGraph:
    """The graph whose values are sent in slices, one per GPU of a group, as in the paper's runs."""
    share = 1 if row.sequence else DEGREE
    values = (msgspec.structs.replace(v, bytes=v.bytes // share) for v in graph.values)
    return msgspec.structs.replace(graph, values=tuple(values))


def _blocks_alone(graph: LayerGraph) -> LayerGraph:
    """The graph without stash of embedding, head and loss."""
    layers = [
        layer
        if block_of(layer.name) is not None
        else msgspec.structs.replace(layer, stash_bytes=0, recompute=None, selective=None)
        for layer in graph.layers
    ]
    values = [
        msgspec.structs.replace(
            value,
            kept_by=tuple(name for name in value.kept_by if block_of(name) is not None),
        )
        for value in graph.values
    ]
    return msgspec.structs.replace(graph, layers=tuple(layers), values=tuple(values))


def _counted(in_flight: InFlight, stages: Sequence[StagePrediction]) -> int:
    """Most bytes of stash in a rank's order."""
    own = [stages[s].stash_bytes for s in in_flight.stages]
    return int((in_flight.counts[:, STASH] @ own).max())


def equal_stages(graph: LayerGraph, stages: int) -> Partition:
    """Equally many blocks per stage; the embedding is on the first, the head and the loss on the last."""
    homes = [block_of(layer.name) for layer in graph.layers]
    each = (max(home for home in homes if home is not None) + 1) // stages
    found: list[list[int]] = [[] for _ in range(stages)]
    stage = 0
    for place, home in enumerate(homes):
        stage = stage if home is None else home // each
        found[stage].append(place)
    return tuple(map(tuple, found))


def policies_of(graph: LayerGraph, stage: Sequence[int], row: Policies) -> StagePolicies:
    """The policies of a row on one stage's layers."""

    def named(ends: tuple[str, ...]) -> tuple[int, ...]:
        return tuple(at for at in stage if graph.layers[at].name.endswith(ends))

    whole = named(row.recompute)
    if row.recompute == BLOCKS:
        whole = tuple(at for at in stage if block_of(graph.layers[at].name) is not None)
    return StagePolicies(recompute=whole, selective=named(row.selective))


def block_seconds(shape: Shape, row: Policies, variant: GroupVariant) -> Times:
    """Seconds of one inner block forward and backward, with its collectives."""
    graph = problem_of(shape, variant).graph
    own = [at for at, la in enumerate(graph.layers) if block_of(la.name) == 1]
    chosen = policies_of(graph, own, row)
    forward, backward = 0.0, 0.0
    for at in own:
        layer = graph.layers[at]
        forward += layer.forward_time
        backward += layer.input_grad_time + layer.weight_grad_time
        again = layer.recompute if at in chosen.recompute else layer.selective
        if at in (*chosen.recompute, *chosen.selective) and again is not None:
            backward += again.extra_time
    return forward, backward


def calibrated(shape: Shape, published_ms: Sequence[float], folder: Path | None) -> float:
    """The efficiency of products with which a block takes the published time, forward and backward together.

    Seconds are a line over 1 / efficiency, as far as no operation turns from bound by memory to bound by compute.
    """
    points = [(1 / share, _baseline_ms(shape, share, folder)) for share in TRIED]
    (x0, y0), (x1, y1) = points
    share = 1 / (x0 + (sum(published_ms) - y0) * (x1 - x0) / (y1 - y0))
    return round(share, 4)


def _baseline_ms(shape: Shape, efficiency: float, folder: Path | None) -> float:
    profile = profiled(shape, ROWS["none"].granularity, efficiency, folder)
    variant = variant_of(with_blocks(profile, shape.layers), ROWS["none"])
    return 1e3 * sum(block_seconds(shape, ROWS["none"], variant))


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=PUBLISHED)
    parser.add_argument("--models", nargs="+", metavar="NAME", help="22B, 175B, 530B, 1T")
    parser.add_argument("--profiles", type=Path, metavar="FOLDER", help="keep the profiles here")
    asked = parser.parse_args()
    if not asked.data.exists():
        parser.exit(1, f"{asked.data}: there is no such file; it has the published figures\n")
    content = json.loads(asked.data.read_text(encoding="utf-8"))
    check_formulas(content)
    first, *_ = every = read_shapes(content)
    shapes = [own for own in every if own.name in (asked.models or content["models"])]
    share = calibrated(first, content["table4_layer_ms_22B"]["baseline"], asked.profiles)
    variants: Variants = {}
    for shape in shapes:
        for row, policies in ROWS.items():
            profile = profiled(shape, policies.granularity, share, asked.profiles)
            variants[shape.name, row] = variant_of(with_blocks(profile, shape.layers), policies)
    plans = {
        (shape.name, row): predicted(shape, policies, problem_of(shape, variants[shape.name, row]))
        for shape in shapes
        for row, policies in ROWS.items()
    }
    print_memory(shapes, plans)
    if first in shapes:
        print_blocks(first, variants, content["table4_layer_ms_22B"])
    print(f"\nProducts reach {share:.3f} of the peak rate (calibrated).")
    print_steps(shapes, plans, content["table5_iteration_s"])


def check_formulas(content: Mapping[str, Any]) -> None:
    """The file's own bytes are those of the formulas; else the comparison would mean something else."""
    for shape in read_shapes(content):
        own = content["calculon_activations_gib_none_seqsel"][shape.name]
        found = [published_activations(shape, row) / GIB for row in ("none", "sequence, selective")]
        found.append(published_state(shape) / GIB)
        for x, y in zip(found, [*own, content["calculon_state_gib"][shape.name]], strict=True):
            assert math.isclose(x, y, rel_tol=1e-9), (shape.name, x, y)


Plans = Mapping[tuple[str, str], Predicted]
Variants = dict[tuple[str, str], GroupVariant]


def print_memory(shapes: Sequence[Shape], plans: Plans) -> None:
    """The bytes of rank 0: published, predicted, and the predicted part that the formulas count."""
    print("| model | recompute | state | predicted | activations | counted alike | all of rank 0 |")
    print("|---|---|---|---|---|---|---|")
    for shape in shapes:
        for row in ROWS:
            own, wanted = plans[shape.name, row], published_activations(shape, row)
            state = published_state(shape)
            print(
                f"| {shape.name} | {row} | {state / GIB:.2f} | {_gib(own.state, state)} | "
                f"{wanted / GIB:.2f} | {_gib(own.counted, wanted)} | {_gib(own.activations, wanted)} |"
            )


def print_blocks(
    shape: Shape, variants: Variants, published_ms: Mapping[str, Sequence[float]]
) -> None:
    """Milliseconds of one block of 22B, forward and backward."""
    print("\n| block of 22B | published ms | predicted |\n|---|---|---|")
    for name, row in TABLE_4.items():
        found = block_seconds(shape, ROWS[row], variants[shape.name, row])
        said = " + ".join(
            f"{1e3 * x:.1f} ({1e3 * x / ms - 1:+.1%})"
            for x, ms in zip(found, published_ms[name], strict=True)
        )
        print(f"| {name} | {' + '.join(map(str, published_ms[name]))} | {said} |")


def print_steps(
    shapes: Sequence[Shape], plans: Plans, published: Mapping[str, Sequence[float]]
) -> None:
    """Seconds of a step, and the errors of all."""
    errors: list[float] = []
    print("\n| model | recompute | published s | predicted |\n|---|---|---|---|")
    for shape in shapes:
        for row, seconds in zip(STEPS, published[shape.name], strict=True):
            step = plans[shape.name, row].step
            errors.append(step / seconds - 1)
            print(f"| {shape.name} | {row} | {seconds:.2f} | {step:.2f} ({errors[-1]:+.1%}) |")
    sizes = [abs(error) for error in errors]
    print(
        f"\nSteps are off by {sum(sizes) / len(sizes):.1%} in the mean, {max(sizes):.1%} at most."
    )


def _gib(found: float, wanted: float) -> str:
    return f"{found / GIB:.2f} ({found / wanted - 1:+.1%})"


if __name__ == "__main__":
    main()
