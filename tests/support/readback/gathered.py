"""Notes which weights FSDP2 keeps gathered after each backward of a pipeline stage."""

import json
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch.distributed.fsdp import FSDPModule


class GatheredWeights:
    """The share of a stage's parameters that are gathered after each of its backwards."""

    def __init__(self, stages: list[Any]) -> None:
        self.shares: list[float] = []
        for stage in stages:
            self._watch(stage)

    def _watch(self, stage: Any) -> None:
        backward = stage.backward_maybe_with_nosync

        def watched(*given: Any, **named: Any) -> Any:
            result = backward(*given, **named)
            wrapped = [
                module for module in stage.submod.modules() if isinstance(module, FSDPModule)
            ]
            groups = [g for module in wrapped for g in module._get_fsdp_state()._fsdp_param_groups]
            states = [p.sharded_state.name for group in groups for p in group.fsdp_params]
            self.shares.append(states.count("UNSHARDED") / len(states))
            return result

        stage.backward_maybe_with_nosync = watched

    def save(self, folder: Path) -> None:
        """Write FOLDER/gathered<r>.json."""
        (folder / f"gathered{dist.get_rank()}.json").write_text(json.dumps(self.shares))


def gathered_shares(folder: Path) -> set[float]:
    """All shares that the ranks noted."""
    return {
        share for path in folder.glob("gathered*.json") for share in json.loads(path.read_text())
    }
