"""Other planners' files, solved for the bottleneck that each planner counts itself.

The numbers are those of autopart/loads/: what a stage costs, which devices there are and what they hold is
the foreign planner's, quirks included, so that the objective is the one that it prints. The answer is a
division into stages with a proven bound, and no plan: what these objectives leave out (a schedule,
a fill and a drain, separate forwards and backwards), and what they have that the executor has not
(CPUs, tensor-parallel layers, several versions of the weights), is in docs/objectives.md.
"""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Literal, NamedTuple

import msgspec

from autopart.errors import UsageError
from autopart.graph import LayerGraph
from autopart.importers import dnn_partitioning, import_profile, piper
from autopart.loads.dnn_partitioning import check_split
from autopart.loads.pipedream import Network, Part, score
from autopart.loads.piper import Net
from autopart.solvers.max_load import splits
from autopart.solvers.replication import network
from autopart.solvers.tensor_parallel import stage_widths
from autopart.solvers.tensor_parallel.stage_widths import WideStage

COMPRESSION = 1.0
"""PipeDream's activation compression ratio: transfers count as they are."""


class ForeignStage(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What one device, or the devices of one stage, hold; what a convention does not know is left out."""

    nodes: tuple[int | str, ...]
    """By the names or ids that the file gives them."""
    replicas: int
    """In all; where a replica has several devices, they count as one."""
    kind: Literal["accelerator", "cpu"]
    outer_stage: int | None = None
    """Two levels: the stage of nodes of which this stage is a part."""
    outer_replicas: int | None = None
    """Two levels: nodes that run the same."""
    inner_replicas: int | None = None
    """Two levels: replicas in each of these nodes."""
    tensor_parallel: int | None = None
    """Devices of one replica."""
    recompute: tuple[int, ...] | None = None
    """The nodes that run their forward again in backward."""
    in_flight: int | None = None
    time: float | None = None
    memory_bytes: float | None = None


class ForeignAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """A division into stages under another planner's objective, and how good it is."""

    convention: str
    """Whose objective: pipedream, dnn-partitioning, piper."""
    file: str
    objective: float
    """The largest load of a stage, in `unit`: what the planner calls its objective."""
    lower_bound: float
    """No division has a smaller one; equal to `objective` where it is proven optimal."""
    gap: float | None
    """objective / lower_bound - 1; null where the bound is 0 and the objective is not."""
    unit: str
    proof: str
    """What the lower bound rests on."""
    stages: tuple[ForeignStage, ...]
    """In pipeline order, where the division has one."""
    objective_with_all_sends: float | None = None
    """pipedream: of the same stages, with the first stages' sends charged too, which PipeDream leaves out."""
    num_downsets: int | None = None
    """pipedream: of the layer graph; null where they were not all listed."""
    infeasible_at: float | None = None
    """piper: the next smaller time of any stage, within which there is no plan."""


class Limits(NamedTuple):
    """What the file does not say, or says and is told otherwise; None where nothing is given."""

    gpus: tuple[int, ...] | None = None
    """GPUs; with two levels those of a node, then nodes."""
    bandwidths: tuple[float, ...] | None = None
    """Bytes a second: one for each level."""
    memory_bytes: float | None = None
    """Of one GPU."""
    num_microbatches: int | None = None
    one_gpu_a_stage: bool = False
    all_sends: bool = False
    compression: float | None = COMPRESSION
    """PipeDream's activation compression ratio; None counts no transfers."""
    contiguous: bool = True
    time_limit: float = 60.0
    """Seconds."""


_TAKEN: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        "dnn-partitioning": frozenset({"contiguous", "time_limit"}),
        "pipedream": frozenset(Limits._fields) - {"num_microbatches", "contiguous"},
        "piper": frozenset({"gpus", "bandwidths", "memory_bytes", "num_microbatches"}),
    }
)
"""Which limits mean something to which convention."""

CONVENTIONS = tuple(_TAKEN)


def solve_foreign(convention: str, path: Path | str, limits: Limits = Limits()) -> ForeignAnswer:  # noqa: B008
    """The best stages for the planner `convention`'s own objective, with a lower bound.

    `path` is a file in that planner's format. Raises UsageError on a limit that the convention does not
    know or that is missing, FileError on the file, InfeasibleError where no division fits, and
    AutopartError where none was found in time.
    """
    if convention not in CONVENTIONS:
        raise UsageError(
            f"no objective of '{convention}' is known; known: {', '.join(CONVENTIONS)}"
        )
    defaults = Limits()
    given = [name for name in Limits._fields if getattr(limits, name) != getattr(defaults, name)]
    unknown = [name for name in given if name not in _TAKEN[convention]]
    if unknown:
        raise UsageError(
            f"{convention} knows no {_said(unknown[0])}; it takes: "
            + ", ".join(_said(name) for name in Limits._fields if name in _TAKEN[convention])
        )
    if convention == "pipedream":
        return _pipedream(Path(path), limits)
    if convention == "piper":
        return _piper(Path(path), limits)
    return _dnn_partitioning(Path(path), limits)


def _said(name: str) -> str:
    others = {
        "num_microbatches": "microbatches",
        "memory_bytes": "memory",
        "contiguous": "choice of contiguity",
    }
    return others.get(name, name.replace("_", " "))


def _gap(objective: float, bound: float) -> float | None:
    if objective <= bound:
        return 0.0
    return objective / bound - 1 if bound > 0 else None


def _pipedream(path: Path, limits: Limits) -> ForeignAnswer:
    if limits.gpus is None or limits.bandwidths is None:
        raise UsageError("a PipeDream profile names no cluster: say how many GPUs, and a bandwidth")
    asked = Network(
        machines=limits.gpus,
        bandwidths=limits.bandwidths,
        straight=limits.one_gpu_a_stage,
        compression=limits.compression,
        memory_bytes=limits.memory_bytes,
    )
    graph = import_profile("pipedream", path).graph
    found = network.solve(graph, asked, all_sends=limits.all_sends, time_limit=limits.time_limit)
    proven = found.lower_bound >= found.objective
    listed = f"all {found.num_downsets} downsets of the layer graph" if found.num_downsets else ""
    return ForeignAnswer(
        convention="pipedream",
        file=str(path),
        objective=found.objective,
        lower_bound=found.lower_bound,
        gap=_gap(found.objective, found.lower_bound),
        unit="seconds a minibatch",
        proof=listed or ("bounds that are met" if proven else "a relaxation over all downsets"),
        stages=_network_stages(graph, found.parts),
        objective_with_all_sends=score(graph, asked, found.parts, all_sends=True),
        num_downsets=found.num_downsets,
    )


def _network_stages(graph: LayerGraph, parts: tuple[Part, ...]) -> tuple[ForeignStage, ...]:
    stages: list[ForeignStage] = []

    def names(part: Part) -> tuple[str, ...]:
        return tuple(graph.layers[at].name for at in part.layers)

    for number, part in enumerate(parts):
        if not part.inner:
            stages.append(
                ForeignStage(nodes=names(part), replicas=part.replicas, kind="accelerator")
            )
        for inner in part.inner:
            stages.append(
                ForeignStage(
                    nodes=names(inner),
                    replicas=part.replicas * inner.replicas,
                    kind="accelerator",
                    outer_stage=number,
                    outer_replicas=part.replicas,
                    inner_replicas=inner.replicas,
                )
            )
    return tuple(stages)


def _piper(path: Path, limits: Limits) -> ForeignAnswer:
    for what in ("gpus", "bandwidths"):
        if len(getattr(limits, what) or (1,)) != 1:
            raise UsageError(f"Piper knows one level of devices: give one number of {what}")
    instance = piper.read(path)
    told = {
        "devices": limits.gpus and limits.gpus[0],
        "bandwidth": limits.bandwidths and limits.bandwidths[0],
        "memory_bytes": limits.memory_bytes,
        "microbatches": limits.num_microbatches,
    }
    asked = instance.limits._replace(**{k: v for k, v in told.items() if v is not None})
    if min(asked) <= 0:
        raise UsageError(f"limits must be above 0, not {dict(asked._asdict())}")
    found = stage_widths.solve(instance.net, asked)
    proven = found.lower_bound >= found.bottleneck
    return ForeignAnswer(
        convention="piper",
        file=str(path),
        objective=found.bottleneck,
        lower_bound=found.lower_bound,
        gap=_gap(found.bottleneck, found.lower_bound),
        unit="the file's seconds a microbatch",
        proof="all divisions along the edges" if proven else "all compute over all devices",
        stages=tuple(_wide_stage(instance.net, stage) for stage in found.stages),
        infeasible_at=found.infeasible,
    )


def _wide_stage(net: Net, stage: WideStage) -> ForeignStage:
    nodes = [net.nodes[at] for at in stage.nodes]
    pairs = zip(nodes, stage.price.choices, strict=True)
    return ForeignStage(
        nodes=tuple(node.id for node in nodes),
        replicas=stage.replicas,
        kind="accelerator",
        tensor_parallel=stage.width,
        recompute=tuple(node.id for node, choice in pairs if choice == 1),
        in_flight=stage.in_flight,
        time=stage.price.time,
        memory_bytes=stage.price.memory_bytes,
    )


def _dnn_partitioning(path: Path, limits: Limits) -> ForeignAnswer:
    instance = dnn_partitioning.read(path)
    found = splits.solve(instance, contiguous=limits.contiguous, time_limit=limits.time_limit)
    objective = check_split(instance, found.stages, contiguous=limits.contiguous)
    return ForeignAnswer(
        convention="dnn-partitioning",
        file=str(path),
        objective=objective,
        lower_bound=found.lower_bound,
        gap=_gap(objective, found.lower_bound),
        unit="the file's own unit",
        proof=found.proof,
        stages=tuple(
            ForeignStage(nodes=stage.nodes, replicas=1, kind=stage.kind) for stage in found.stages
        ),
    )
