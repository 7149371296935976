"""Automatic stage partitioning for pipeline-parallel training in PyTorch.

    profile = autopart.profile_model("zoo:gpt2-tiny")
    plan = autopart.solve(profile, autopart.cluster_of("h100-sxm", gpus=8, nodes=2))
    autopart.save_plan(plan, "plan.json")

A name is imported when it is first used, so that `import autopart` stays quick and never imports
torch; only `profile_model`, `probe_cluster`, `run_plan`, `validate_plan` and `make_pipeline` need it.
"""

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from autopart.certificate import Check, verify
    from autopart.cluster import (
        Cluster,
        GpuGroup,
        Link,
        cluster_of,
        load_cluster,
        mixed_cluster,
        save_cluster,
    )
    from autopart.errors import (
        AutopartError,
        ClusterError,
        ExportRefused,
        FileError,
        InfeasibleError,
        ModelError,
        PlanError,
        ProfileError,
        RunError,
        ScheduleError,
        UsageError,
    )
    from autopart.exporters import export_plan
    from autopart.fidelity import Fidelity
    from autopart.foreign import ForeignAnswer, ForeignStage, solve_foreign
    from autopart.foreign import Limits as ForeignLimits
    from autopart.graph import Input, Layer, LayerGraph, Recompute, TiedParameter, Value
    from autopart.importers import import_profile
    from autopart.plan import Plan, Stage, load_plan, save_plan
    from autopart.planner import baselines, solve
    from autopart.probe_result import Probe, cluster_of_probe
    from autopart.problem import Problem
    from autopart.profile import Device, Profile, Source, WholeModel, load_profile, save_profile
    from autopart.run_result import RunResult
    from autopart.runtime.execution.asynchronous_pipeline import (
        AsynchronousPipeline,
        make_asynchronous_pipeline,
    )
    from autopart.runtime.execution.launch import run_plan
    from autopart.runtime.execution.pipeline import Pipeline, make_pipeline, split_batch
    from autopart.runtime.probing.probe import probe_cluster
    from autopart.runtime.profiling.profiler import profile_model
    from autopart.runtime.validation import Validation, validate_plan
    from autopart.simulator import Timeline
    from autopart.simulator import simulate_plan as simulate

_HOMES = {
    "autopart.certificate": ("Check", "verify"),
    "autopart.cluster": (
        "Cluster",
        "GpuGroup",
        "Link",
        "cluster_of",
        "load_cluster",
        "mixed_cluster",
        "save_cluster",
    ),
    "autopart.errors": (
        "AutopartError",
        "ClusterError",
        "ExportRefused",
        "FileError",
        "InfeasibleError",
        "ModelError",
        "PlanError",
        "ProfileError",
        "RunError",
        "ScheduleError",
        "UsageError",
    ),
    "autopart.exporters": ("export_plan",),
    "autopart.fidelity": ("Fidelity",),
    "autopart.foreign": ("ForeignAnswer", "ForeignLimits", "ForeignStage", "solve_foreign"),
    "autopart.graph": ("Input", "Layer", "LayerGraph", "Recompute", "TiedParameter", "Value"),
    "autopart.importers": ("import_profile",),
    "autopart.plan": ("Plan", "Stage", "load_plan", "save_plan"),
    "autopart.planner": ("baselines", "solve"),
    "autopart.probe_result": ("Probe", "cluster_of_probe"),
    "autopart.problem": ("Problem",),
    "autopart.profile": (
        "Device",
        "Profile",
        "Source",
        "WholeModel",
        "load_profile",
        "save_profile",
    ),
    "autopart.run_result": ("RunResult",),
    "autopart.runtime.execution.asynchronous_pipeline": (
        "AsynchronousPipeline",
        "make_asynchronous_pipeline",
    ),
    "autopart.runtime.execution.launch": ("run_plan",),
    "autopart.runtime.execution.pipeline": ("Pipeline", "make_pipeline", "split_batch"),
    "autopart.runtime.probing.probe": ("probe_cluster",),
    "autopart.runtime.profiling.profiler": ("profile_model",),
    "autopart.runtime.validation": ("Validation", "validate_plan"),
    "autopart.simulator": ("Timeline", "simulate"),
}
_OTHER_NAMES = {"simulate": "simulate_plan", "ForeignLimits": "Limits"}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

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
    "ForeignAnswer",
    "ForeignLimits",
    "ForeignStage",
    "GpuGroup",
    "InfeasibleError",
    "Input",
    "Layer",
    "LayerGraph",
    "Link",
    "ModelError",
    "Pipeline",
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
    "load_cluster",
    "load_plan",
    "load_profile",
    "make_asynchronous_pipeline",
    "make_pipeline",
    "mixed_cluster",
    "probe_cluster",
    "profile_model",
    "run_plan",
    "save_cluster",
    "save_plan",
    "save_profile",
    "simulate",
    "solve",
    "solve_foreign",
    "split_batch",
    "validate_plan",
    "verify",
]


def __getattr__(name: str) -> object:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'autopart' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOME_OF[name]), _OTHER_NAMES.get(name, name))


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME_OF})
