"""The stages of one rank, ready to run: on their device, with split backwards and activation policies."""

from collections.abc import Mapping

import torch

from autopart.errors import UsageError
from autopart.records.plan import Plan, Stage, schedule_of
from autopart.runtime.capture.stage_modules import StageProgram
from autopart.runtime.engine.plan_match import place_on
from autopart.runtime.transforms.host_copies import HostCopies, host_copies_for
from autopart.runtime.transforms.layer_policies import (
    apply_policies,
    offloading,
    recomputing,
    selective,
)
from autopart.runtime.transforms.offload import HostStash
from autopart.runtime.transforms.split_backward import split_backwards


def prepare_stages(
    plan: Plan, programs: Mapping[int, StageProgram], device: torch.device
) -> dict[int, HostStash | None]:
    """Place each stage on the device, split its backwards and apply its activation policies.

    Returns each stage's stash in host memory, None for stages without offloaded layers. Raises
    UsageError if the model was captured under autocast for another kind of device.
    """
    copies, hosts = host_copies_for(device), dict[int, HostStash | None]()
    split = {action.stage for order in schedule_of(plan) for action in order if action.op == "W"}
    for index, program in programs.items():
        if program.autocast is not None and program.autocast.device_type != device.type:
            raise UsageError(
                f"the model was captured under autocast on {program.autocast.device_type}, which casts "
                f"other operations than autocast on {device.type}; move the model there first"
            )
        place_on(program.module, device)
        if index in split:
            split_backwards(program.module)
        hosts[index] = _apply_policies(program, plan.stages[index], copies)
    return hosts


def _apply_policies(program: StageProgram, stage: Stage, copies: HostCopies) -> HostStash | None:
    """Apply the policies that the plan names for the stage's layers; return their host stash."""
    host = HostStash(copies) if stage.offload else None
    policies = dict.fromkeys(stage.recompute, recomputing)
    policies |= dict.fromkeys(stage.selective, selective)
    if host is not None:
        policies |= dict.fromkeys(stage.offload, offloading(host))
    apply_policies(program, policies)
    return host
