"""Automatic stage partitioning for pipeline-parallel training in PyTorch.

    profile = autopart.profile_model("zoo:gpt2-tiny")
    plan = autopart.solve(profile, autopart.cluster_of("h100-sxm", gpus=8, nodes=2))
    autopart.save_plan(plan, "plan.json")

A name is imported when it is first used. So `import autopart` is quick and never imports torch. Only the
verbs that run a model need torch: `profile_model`, `probe_cluster`, `run_plan`, `validate_plan`,
`make_pipeline` and `make_asynchronous_pipeline`. `PipelineTrainer` and `PipelineAccelerator`
need their packages besides.
"""

import importlib
from typing import TYPE_CHECKING

from autopart.records.version import __version__

if TYPE_CHECKING:
    from autopart.certificate.verify import verify
    from autopart.cost.probed_cluster import cluster_of_probe
    from autopart.errors import (
        AutopartError,
        ClusterError,
        ExportRefused,
        FileError,
        InfeasibleError,
        ModelError,
        NoPlanFound,
        PlanError,
        ProfileError,
        RunError,
        ScheduleError,
        UsageError,
    )
    from autopart.exporters.targets import export_plan
    from autopart.fidelity.compare import Fidelity
    from autopart.peers.answer import PeerAnswer, PeerStage
    from autopart.peers.formats import import_profile
    from autopart.peers.limits import PeerLimits
    from autopart.peers.solve import solve_peer
    from autopart.records.check import Check
    from autopart.records.cluster import (
        Cluster,
        GpuGroup,
        Link,
        cluster_of,
        load_cluster,
        save_cluster,
    )
    from autopart.records.layer_graph import (
        Input,
        Layer,
        LayerGraph,
        Recompute,
        TiedParameter,
        Value,
    )
    from autopart.records.mixed_cluster import mixed_cluster
    from autopart.records.plan import Plan, Stage, load_plan, save_plan
    from autopart.records.probe import Probe
    from autopart.records.problem import Problem
    from autopart.records.profile import (
        Device,
        Profile,
        Source,
        WholeModel,
        load_profile,
        save_profile,
    )
    from autopart.records.run_result import RunResult
    from autopart.records.size import Sizing, load_sizing, save_sizing
    from autopart.runtime.engine.asynchronous_pipeline import (
        AsynchronousPipeline,
        make_asynchronous_pipeline,
    )
    from autopart.runtime.engine.batches import split_batch
    from autopart.runtime.engine.pipeline import Pipeline, make_pipeline
    from autopart.runtime.job.launch import run_plan
    from autopart.runtime.job.tensor_ranks import init_tensor_ranks
    from autopart.runtime.probing.probe import probe_cluster
    from autopart.runtime.profiling.profiler import profile_model
    from autopart.runtime.validation import Validation, validate_plan
    from autopart.search.planner import baselines, solve
    from autopart.search.sizing import SizedPlans, size
    from autopart.simulator.timeline import Timeline
    from autopart.simulator.timeline import simulate_plan as simulate
    from autopart.trainers.with_accelerate import PipelineAccelerator
    from autopart.trainers.with_transformers import PipelineTrainer

_HOMES = {
    "AsynchronousPipeline": "runtime.engine.asynchronous_pipeline",
    "AutopartError": "errors",
    "Check": "records.check",
    "Cluster": "records.cluster",
    "ClusterError": "errors",
    "Device": "records.profile",
    "ExportRefused": "errors",
    "Fidelity": "fidelity.compare",
    "FileError": "errors",
    "GpuGroup": "records.cluster",
    "InfeasibleError": "errors",
    "Input": "records.layer_graph",
    "Layer": "records.layer_graph",
    "LayerGraph": "records.layer_graph",
    "Link": "records.cluster",
    "ModelError": "errors",
    "NoPlanFound": "errors",
    "PeerAnswer": "peers.answer",
    "PeerLimits": "peers.limits",
    "PeerStage": "peers.answer",
    "Pipeline": "runtime.engine.pipeline",
    "PipelineAccelerator": "trainers.with_accelerate",
    "PipelineTrainer": "trainers.with_transformers",
    "Plan": "records.plan",
    "PlanError": "errors",
    "Probe": "records.probe",
    "Problem": "records.problem",
    "Profile": "records.profile",
    "ProfileError": "errors",
    "Recompute": "records.layer_graph",
    "RunError": "errors",
    "RunResult": "records.run_result",
    "ScheduleError": "errors",
    "SizedPlans": "search.sizing",
    "Sizing": "records.size",
    "Source": "records.profile",
    "Stage": "records.plan",
    "TiedParameter": "records.layer_graph",
    "Timeline": "simulator.timeline",
    "UsageError": "errors",
    "Validation": "runtime.validation",
    "Value": "records.layer_graph",
    "WholeModel": "records.profile",
    "baselines": "search.planner",
    "cluster_of": "records.cluster",
    "cluster_of_probe": "cost.probed_cluster",
    "export_plan": "exporters.targets",
    "import_profile": "peers.formats",
    "init_tensor_ranks": "runtime.job.tensor_ranks",
    "load_cluster": "records.cluster",
    "load_plan": "records.plan",
    "load_profile": "records.profile",
    "load_sizing": "records.size",
    "make_asynchronous_pipeline": "runtime.engine.asynchronous_pipeline",
    "make_pipeline": "runtime.engine.pipeline",
    "mixed_cluster": "records.mixed_cluster",
    "probe_cluster": "runtime.probing.probe",
    "profile_model": "runtime.profiling.profiler",
    "run_plan": "runtime.job.launch",
    "save_cluster": "records.cluster",
    "save_plan": "records.plan",
    "save_profile": "records.profile",
    "save_sizing": "records.size",
    "simulate": "simulator.timeline:simulate_plan",
    "size": "search.sizing",
    "solve": "search.planner",
    "solve_peer": "peers.solve",
    "split_batch": "runtime.engine.batches",
    "validate_plan": "runtime.validation",
    "verify": "certificate.verify",
}
"""The module for each public name, and `:name` where the module has another name for it."""

__all__ = [
    "AsynchronousPipeline",
    "AutopartError",
    "Check",
    "Cluster",
    "ClusterError",
    "Device",
    "ExportRefused",
    "Fidelity",
    "FileError",
    "GpuGroup",
    "InfeasibleError",
    "Input",
    "Layer",
    "LayerGraph",
    "Link",
    "ModelError",
    "NoPlanFound",
    "PeerAnswer",
    "PeerLimits",
    "PeerStage",
    "Pipeline",
    "PipelineAccelerator",
    "PipelineTrainer",
    "Plan",
    "PlanError",
    "Probe",
    "Problem",
    "Profile",
    "ProfileError",
    "Recompute",
    "RunError",
    "RunResult",
    "ScheduleError",
    "SizedPlans",
    "Sizing",
    "Source",
    "Stage",
    "TiedParameter",
    "Timeline",
    "UsageError",
    "Validation",
    "Value",
    "WholeModel",
    "__version__",
    "baselines",
    "cluster_of",
    "cluster_of_probe",
    "export_plan",
    "import_profile",
    "init_tensor_ranks",
    "load_cluster",
    "load_plan",
    "load_profile",
    "load_sizing",
    "make_asynchronous_pipeline",
    "make_pipeline",
    "mixed_cluster",
    "probe_cluster",
    "profile_model",
    "run_plan",
    "save_cluster",
    "save_plan",
    "save_profile",
    "save_sizing",
    "simulate",
    "size",
    "solve",
    "solve_peer",
    "split_batch",
    "validate_plan",
    "verify",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'autopart' has no attribute '{name}'")
    home, _, own_name = _HOMES[name].partition(":")
    return getattr(importlib.import_module(f"autopart.{home}"), own_name or name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
