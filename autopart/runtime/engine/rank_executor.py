"""The base of all executors for one rank: its stages' tensors, gradient sums and a clock."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import distributed

from autopart.runtime.capture.stage_modules import StageProgram
from autopart.runtime.engine.data_shards import DataShards
from autopart.runtime.engine.group_part import NO_GROUPS, GroupPart
from autopart.runtime.engine.sharded_state import ShardedState
from autopart.runtime.engine.stage import Leaves, stage_buffers, stage_parameters
from autopart.runtime.engine.transfers import with_other_rank
from autopart.runtime.measuring.clock import clock_of
from autopart.runtime.measuring.stash_meter import StashMeter
from autopart.runtime.measuring.step_trace import Marks, StepTrace, begin_marks
from autopart.runtime.measuring.watcher import Watcher
from autopart.runtime.sharding.rank_shards import RankShards
from autopart.runtime.transforms.offload import HostStash
from autopart.runtime.update.gradient_sum import GradientSum, SharedParameters
from autopart.runtime.update.scattered_sum import ScatteredSum
from autopart.runtime.update.unequal_ties import UnequalTies
from autopart.runtime.update.zero_shards import ZeroSharding


@dataclass(frozen=True, slots=True)
class RankPart:
    """One rank's part of a plan."""

    programs: Mapping[int, StageProgram]
    """The rank's stages, by stage number in the pipeline; their tensors are on `device`."""
    hosts: Mapping[int, HostStash | None]
    """Host memory for the stashes of each stage's offloaded layers; None without such layers."""
    owned: tuple[str, ...]
    """Names of parameters that no lower rank holds. Over all ranks each parameter occurs once."""
    sums: GradientSum
    num_microbatches: int
    """Microbatches per step, over all replicas."""
    device: torch.device
    watcher: Watcher
    group: GroupPart = NO_GROUPS
    """This process's part in tensor groups."""
    state: ShardedState | None = None
    """The rank's state, where its processes share it."""
    ties: UnequalTies | None = None
    """Sums of parameters that are tied across stages with different tensor degrees."""


class RankExecutor:
    """One rank's stages. A rank without stages takes part in gradient sums only."""

    def __init__(self, part: RankPart) -> None:
        self.device = part.device
        self.owned = part.owned
        self.programs = dict(part.programs)
        self._part = part
        self._clock = clock_of(part.device)
        self._shards = part.group.shards
        if part.state is not None:
            self._shards = DataShards(part.state, part.group.shards)

    @property
    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """Parameters of this rank's stages by the user's names, for an optimizer.

        With sharded state they are this process's part parameters.
        """
        if self._part.state is not None:
            return dict(self._part.state.parameters)
        programs = self.programs.values()
        return {name: p for program in programs for name, p in stage_parameters(program).items()}

    @property
    def shared(self) -> Sequence[SharedParameters]:
        """Parameters that this rank shares with others, grouped by their holders."""
        return self._part.sums.shared

    def scatter_sums(self, sharding: ZeroSharding) -> None:
        """From now on sum only the elements that this rank's optimizer steps, as `sharding` says.

        Sums beside last backwards stay whole. Collective: all ranks do so, or none.
        """
        if self._part.sums.is_late:
            self._part = replace(self._part, sums=ScatteredSum(self._part.sums, sharding))

    def complete_gradients(self) -> None:
        """Make the summed gradients whole on this rank. Collective."""
        self._part.sums.complete()

    @property
    def shards(self) -> RankShards | DataShards | None:
        """This process's shards; None where a rank is one process."""
        return self._shards

    def whole_loss(self, share: torch.Tensor | None) -> torch.Tensor | None:
        """A microbatch's loss counts all samples: the sum of its processes' shares. Collective over them."""
        state = self._part.state
        return share if state is None or share is None else state.data.group.sum(share.clone())

    def written(self) -> None:
        """Complete the weights after an optimizer's step, or new ones. Collective over the rank's processes."""
        if self._part.state is not None:
            self._part.state.written()

    def parts_named(self, first_names: Mapping[str, str]) -> dict[str, torch.Tensor]:
        """The part parameters under all names of the model's own, from the first name of each; none without parts."""
        parts = {} if self._part.state is None else self._part.state.parameters
        return {
            name: parts[first].detach() for name, first in first_names.items() if first in parts
        }

    @property
    def is_in_one_world(self) -> bool:
        """Whether torch's default process group has all processes of all tensor groups."""
        return self._part.group.world is not None

    @property
    def is_first_place(self) -> bool:
        """Whether this process is the first of its tensor group."""
        return self.shards is None or self.shards.rank == 0

    def sum_over_processes(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum of a number over all processes of all ranks. Collective over them."""
        distributed.all_reduce(tensor)
        if self.shards is None or self.is_in_one_world:
            return tensor
        return self.shards.sum_over_group(tensor)

    @property
    def buffers(self) -> dict[str, torch.Tensor]:
        """Buffers of this rank's stages by the user's names."""
        programs = self.programs.values()
        return {name: b for program in programs for name, b in stage_buffers(program).items()}

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of batch tensors that this rank's stages read."""
        read = [name for program in self.programs.values() for name in program.inputs]
        return tuple(dict.fromkeys(read))


class StepExecutor(RankExecutor, ABC):
    """Runs one batch per step, each to its end."""

    def __init__(self, part: RankPart) -> None:
        super().__init__(part)
        self._marks: Marks | None = None
        self._sums = True
        """Whether the running step sums gradients."""
        self._weights: Mapping[int, float] | None = None
        """The running step's weight of each microbatch; None where all weigh 1."""
        self.meter: StashMeter | None = None
        """Counts stash bytes, if set and supported by the backend. It slows down every
        operation."""

    @property
    def borrowed(self) -> Sequence[torch.Tensor]:
        """The memory that this rank has for another rank's stash, between two steps."""
        return ()

    @property
    @abstractmethod
    def microbatches(self) -> tuple[int, ...]:
        """This rank's microbatches in each step."""

    def step(
        self,
        microbatches: Mapping[int, Leaves],
        *,
        scale: float = 1.0,
        sync: bool = True,
        weights: Mapping[int, float] | None = None,
    ) -> torch.Tensor | None:
        """Run one batch; add the gradients of `scale` times its mean loss to each ``grad``.

        `microbatches` maps each of this rank's microbatches to the tensors that its stages read. To
        accumulate several batches, set `sync` False for all except the last: gradients are summed
        over replicas and tied copies only once. After that sum, clear ``grad`` before the next
        step. With `weights`, the mean loss counts each microbatch's loss times its weight.

        Returns this rank's share of the mean loss, without `scale`: the sum over its own
        microbatches divided by the number of all microbatches. None on ranks without the last
        stage. Where processes share the rank's state by samples, it is this process's share
        (`whole_loss`). Raises LostRank if another rank is gone.
        """
        part, self._sums, self._weights = self._part, sync, weights
        # Step 1: run all actions. Each microbatch weighs 1 / num_microbatches in the mean loss.
        marks = self._marks = begin_marks(self._clock, self.device)
        # A thread that waits for its tensor group is on no core, though nobody else has it.
        marks.has_core_time &= self.shards is None
        share = 1.0 if part.group.data is None else part.group.data.loss_share
        loss = self._run(microbatches, share * scale / part.num_microbatches, marks)
        if sync and part.state is not None:
            part.state.end_step()
        marks.acted = self._clock.mark()
        # Step 2: sum gradients over replicas and tied copies, and parts over the tensor group.
        if sync:
            part.watcher.waiting("the sum of gradients", None)
            with_other_rank(part.sums.run, None, "the sum of gradients")
            marks.under_way = part.sums.under_way()
        marks.summed = self._clock.mark()
        if sync and self.shards is not None:
            self.shards.sum_gradients(self.parameters)
            marks.grouped = self._clock.mark()
        if sync and part.ties is not None:
            with_other_rank(part.ties.run, None, "the sum of gradients")
            marks.grouped = self._clock.mark()
        return None if loss is None else loss * share / part.num_microbatches

    def trace(self) -> StepTrace:
        """Times of the last step; waits until its work is done."""
        assert self._marks is not None
        return self._marks.trace(self._clock)

    @abstractmethod
    def _run(
        self, microbatches: Mapping[int, Leaves], loss_scale: float, marks: Marks
    ) -> torch.Tensor | None:
        """Run all actions in a step; return this rank's sum of losses, None without the last
        stage."""
