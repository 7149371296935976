"""The degrees of rank groups in torchtitan's words, and weights that are gathered for each microbatch.

torchtitan's meshes give each context rank chunks i and 2c - 1 - i of 2c (`headtail`), as the plan does. Version 0.2.2 may
shard experts in tensor groups too, as the plan does. Version 0.3 has no setting for that.
"""

from importlib import resources
from string import Template

from autopart.errors import ExportRefused
from autopart.exporters.fsdp_groups import data_degrees
from autopart.exporters.pipeline_shape import Shape
from autopart.exporters.text import mark
from autopart.records.plan import Plan
from autopart.records.rank_group import Group

_PARTS = ("expert_check", "use_gathers", "gathers_import", "and_replace")
_GATHERS_FILE = "autopart_gathers.py"


def data_settings(plan: Plan, shape: Shape) -> list[str]:
    """The settings of replicas and shards, which are alike in TOML and Python.

    With zero3 FSDP2 gathers weights for each microbatch. In all other groups, and with ZeRO-1, it gathers
    them once per step. It reduces the gradients after the last microbatch, as the plan counts them.
    """
    degrees = data_degrees(plan, shape)
    lines = [
        f"data_parallel_replicate_degree = {degrees.replicate}",
        f"data_parallel_shard_degree = {degrees.shard}",
    ]
    if degrees.shard * shape.context_degree == 1:
        return lines
    return [*lines, f'fsdp_reshard_after_forward = "{"always" if _is_zero3(plan) else "never"}"']


def _is_zero3(plan: Plan) -> bool:
    return isinstance(plan.group, Group) and plan.group.shard == "zero3"


def group_settings(shape: Shape) -> list[str]:
    """The settings of context and expert groups; none without them."""
    lines: list[str] = []
    if shape.context_degree > 1:
        lines.append(f"context_parallel_degree = {shape.context_degree}")
        lines.append('context_parallel_load_balancer = "headtail"')
    if shape.expert_degree > 1:
        lines.append(f"expert_parallel_degree = {shape.expert_degree}")
    return lines


def older_group_settings(shape: Shape) -> list[str]:
    """The same for 0.2.2, which names the exchange of keys and values, and may shard experts in tensor groups too."""
    lines = group_settings(shape)
    if shape.context_degree > 1:
        lines.append('context_parallel_rotate_method = "allgather"')
    if shape.expert_degree > 1:
        lines.append(f"expert_tensor_parallel_degree = {shape.tensor_degree}")
    return lines


def refuse_in_older(plan: Plan) -> None:
    """Raise ExportRefused where 0.2.2 cannot share state as the plan does."""
    if _is_zero3(plan):
        raise ExportRefused(
            "the plan gathers weights for each microbatch, and torch's pipelining under torchtitan 0.2.2 leaves them "
            "gathered after each backward; --target-version 0.3.0 takes this plan, and the nearest other plan has "
            "--shard zero2"
        )


def degree_parts(plan: Plan, shape: Shape) -> dict[str, str]:
    """The template's parts for experts, and for weights that are gathered again; empty without them."""
    parts: dict[str, str] = dict.fromkeys(_PARTS, "")
    if shape.expert_degree > 1:
        e = shape.expert_degree
        parts["expert_check"] = (
            '    modules = [getattr(layer, "moe", None) for layer in config.model_spec.model.layers]\n'
            "    experts = {moe.num_experts for moe in modules if moe is not None}\n"
            f"    if not experts or any(number % {e} for number in experts):\n"
            "        raise ValueError(\n"
            f"            f\"the plan needs a multiple of {e} experts, and the model has {{experts or 'none'}}\"\n"
            "        )\n"
        )
    if _is_zero3(plan):
        parts["gathers_import"] = "from autopart_gathers import gathering_again\n"
        parts["and_replace"] = ", replace"
        parts["use_gathers"] = (
            "    spec = config.model_spec\n"
            "    config.model_spec = replace(spec, pipelining_fn=gathering_again(spec.pipelining_fn))\n"
        )
    return parts


def gather_files(plan: Plan) -> dict[str, str]:
    """The file for weights that are gathered again, by its name; else nothing."""
    if not _is_zero3(plan):
        return {}
    folder = resources.files("autopart.exporters")
    text = folder.joinpath(f"{_GATHERS_FILE}.tmpl").read_text(encoding="utf-8")
    return {_GATHERS_FILE: Template(text).substitute(mark=mark(plan))}


def tensor_settings(shape: Shape) -> list[str]:
    """The settings of tensor groups; none without them."""
    if shape.tensor_degree == 1:
        return []
    return [
        f"tensor_parallel_degree = {shape.tensor_degree}",
        f"enable_sequence_parallel = {shape.sequence_parallel}",
    ]
