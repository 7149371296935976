"""Other planners' files, solved for the bottleneck under each planner's own charges.

Each planner's `charges.py` has its charges for a stage, its devices and their memory, quirks
included. So the objective is the number that the planner prints. The answer is stages with a proven
bound, and no plan. These objectives leave out a schedule, fill and drain, and separate forwards and
backwards. They have CPUs, tensor-parallel layers and several weight versions, which the executor
lacks: docs/objectives.md.
"""

from pathlib import Path

from autopart.errors import UsageError
from autopart.peers.answer import PeerAnswer, PeerStage
from autopart.peers.dnn_partitioning import file as dnn_partitioning
from autopart.peers.dnn_partitioning.charges import check_split
from autopart.peers.dnn_partitioning.solve import solve as solve_dnn_partitioning
from autopart.peers.formats import import_profile
from autopart.peers.limits import PeerLimits, check_limits
from autopart.peers.pipedream.charges import Network, NetworkStage, score
from autopart.peers.pipedream.solve import solve as solve_pipedream
from autopart.peers.piper import file as piper
from autopart.peers.piper.charges import PiperNet
from autopart.peers.piper.solve import WideStage
from autopart.peers.piper.solve import solve as solve_piper
from autopart.records.layer_graph import LayerGraph


def solve_peer(convention: str, path: Path | str, limits: PeerLimits = PeerLimits()) -> PeerAnswer:  # noqa: B008
    """The best stages under the planner `convention`'s own objective, with a lower bound.

    `path` is a file in that planner's format. Raises UsageError on a limit that is missing, or that
    the convention does not take. Raises FileError on the file, InfeasibleError where nothing fits,
    and AutopartError where nothing was found in time.
    """
    check_limits(convention, limits)
    if convention == "pipedream":
        return _pipedream(Path(path), limits)
    if convention == "piper":
        return _piper(Path(path), limits)
    return _dnn_partitioning(Path(path), limits)


def _gap(objective: float, bound: float) -> float | None:
    """Relative distance from bound to objective."""
    # The objective may be 0, and rounding may put the bound just above it.
    if objective <= bound:
        return 0.0
    return objective / bound - 1 if bound > 0 else None


def _pipedream(path: Path, limits: PeerLimits) -> PeerAnswer:
    """PipeDream's answer."""
    if limits.gpus is None or limits.bandwidths is None:
        raise UsageError("a PipeDream profile names no cluster; give GPUs and a bandwidth")
    asked = Network(
        machines=limits.gpus,
        bandwidths=limits.bandwidths,
        straight=limits.one_gpu_per_stage,
        compression=limits.compression,
        memory_bytes=limits.memory_bytes,
    )
    graph = import_profile("pipedream", path).graph
    found = solve_pipedream(graph, asked, all_sends=limits.all_sends, time_limit=limits.time_limit)
    proven = found.lower_bound >= found.objective
    # With all downsets listed, the search over them is the proof.
    listed = f"all {found.num_downsets} downsets of the layer graph" if found.num_downsets else ""
    return PeerAnswer(
        convention="pipedream",
        file=str(path),
        objective=found.objective,
        lower_bound=found.lower_bound,
        gap=_gap(found.objective, found.lower_bound),
        unit="seconds per minibatch",
        proof=listed
        or ("a lower bound that is met" if proven else "a relaxation over all downsets"),
        stages=_network_stages(graph, found.stages),
        objective_with_all_sends=score(graph, asked, found.stages, all_sends=True),
        num_downsets=found.num_downsets,
    )


def _network_stages(graph: LayerGraph, found: tuple[NetworkStage, ...]) -> tuple[PeerStage, ...]:
    """A network plan's stages, inner ones in place of their outer stage."""
    stages: list[PeerStage] = []

    def names(stage: NetworkStage) -> tuple[str, ...]:
        return tuple(graph.layers[at].name for at in stage.layers)

    for number, stage in enumerate(found):
        if not stage.inner:
            stages.append(
                PeerStage(nodes=names(stage), replicas=stage.replicas, kind="accelerator")
            )
        # Two levels: the inner stages stand for their outer one, with replicas over all nodes.
        for inner in stage.inner:
            stages.append(
                PeerStage(
                    nodes=names(inner),
                    replicas=stage.replicas * inner.replicas,
                    kind="accelerator",
                    outer_stage=number,
                    outer_replicas=stage.replicas,
                    inner_replicas=inner.replicas,
                )
            )
    return tuple(stages)


def _piper(path: Path, limits: PeerLimits) -> PeerAnswer:
    """Piper's answer."""
    for name in ("gpus", "bandwidths"):
        if len(getattr(limits, name) or (1,)) != 1:
            raise UsageError(f"Piper has one level of devices; give one number for {name}")
    instance = piper.read(path)
    # Limits from the user replace the file's own.
    told = {
        "devices": limits.gpus and limits.gpus[0],
        "bandwidth": limits.bandwidths and limits.bandwidths[0],
        "memory_bytes": limits.memory_bytes,
        "microbatches": limits.num_microbatches,
    }
    asked = instance.limits._replace(**{k: v for k, v in told.items() if v is not None})
    if min(asked) <= 0:
        raise UsageError(f"limits must be above 0; they are {dict(asked._asdict())}")
    found = solve_piper(instance.net, asked)
    proven = found.lower_bound >= found.bottleneck
    return PeerAnswer(
        convention="piper",
        file=str(path),
        objective=found.bottleneck,
        lower_bound=found.lower_bound,
        gap=_gap(found.bottleneck, found.lower_bound),
        unit="the file's seconds per microbatch",
        proof="all divisions along the edges" if proven else "all compute over all devices",
        stages=tuple(_wide_stage(instance.net, stage) for stage in found.stages),
        infeasible_at=found.infeasible,
    )


def _wide_stage(net: PiperNet, stage: WideStage) -> PeerStage:
    """One of Piper's stages."""
    nodes = [net.nodes[at] for at in stage.nodes]
    pairs = zip(nodes, stage.price.choices, strict=True)
    return PeerStage(
        nodes=tuple(node.id for node in nodes),
        replicas=stage.replicas,
        kind="accelerator",
        tensor_parallel=stage.width,
        recompute=tuple(node.id for node, choice in pairs if choice == 1),
        in_flight=stage.in_flight,
        time=stage.price.time,
        memory_bytes=stage.price.memory_bytes,
    )


def _dnn_partitioning(path: Path, limits: PeerLimits) -> PeerAnswer:
    """dnn-partitioning's answer."""
    instance = dnn_partitioning.read(path)
    found = solve_dnn_partitioning(
        instance, contiguous=limits.contiguous, time_limit=limits.time_limit
    )
    # The objective is computed again from the file alone, which also checks the split.
    objective = check_split(instance, found.stages, contiguous=limits.contiguous)
    return PeerAnswer(
        convention="dnn-partitioning",
        file=str(path),
        objective=objective,
        lower_bound=found.lower_bound,
        gap=_gap(objective, found.lower_bound),
        unit="the file's own unit",
        proof=found.proof,
        stages=tuple(
            PeerStage(nodes=stage.nodes, replicas=1, kind=stage.kind) for stage in found.stages
        ),
    )
