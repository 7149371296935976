"""One rank's part of a check: what it compares with the plain model, and when.

A run without flushes is compared with a plain model that trains with the same older weights. Its
stages are never at the same update. So a rank keeps copies from its first update until the end, and
compares them then.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TypeVar

import torch

from autopart.errors import RunError
from autopart.records.plan import Plan
from autopart.records.run_result import CheckResult
from autopart.runtime.checking import check as checks
from autopart.runtime.checking.check import CheckRecord
from autopart.runtime.checking.dropout import DropNothing
from autopart.runtime.checking.gradient_kinds import GradientKinds
from autopart.runtime.checking.reference_run import Tensors, copies
from autopart.runtime.checking.verdict import outcome
from autopart.runtime.engine.rank_executor import RankExecutor
from autopart.runtime.transforms.seeded_draws import SamplePart, SeededDraws
from autopart.runtime.transforms.seeded_parts import Parts, parts_seeded
from autopart.text import counted

T = TypeVar("T")

_OTHER_ORDER = (
    "a tensor group adds in another order than the plain model, so a ReLU with an input near 0 may switch in "
    "float32; autopart profile --tensor checks the shards in float64"
)

_OWN_SAMPLES = (
    "the processes of a rank divide the samples of a microbatch, so a layer in which samples meet sees only its own; "
    "solve with --shard none"
)


class Comparison:
    """One rank's part of a check. All ranks must call the same methods at the same points."""

    def __init__(
        self,
        plan: Plan,
        check: CheckRecord | None,
        executor: RankExecutor,
        waiting: Callable[[str, None], None],
        parts: Parts,
        *,
        draws: bool,
        samples: SamplePart | None = None,
    ) -> None:
        """`check` is None except on rank 0. `waiting` is called before each comparison.

        `parts` are those of the captured model, and `draws` tells whether it may draw random
        numbers. `samples` are those of each microbatch that this process has; None for all.
        """
        self._parts = parts
        self._seeded = SeededDraws(samples) if draws else None
        self._check, self._executor, self._waiting = check, executor, waiting
        self._reason = _OTHER_ORDER if samples is None else _OWN_SAMPLES
        """Why a rank group may differ from the plain model."""
        # Of each tensor group one process compares, with the whole tensors of all.
        self._compares = executor.is_first_place
        self._has_buffers = all(len(stage.ranks) == 1 for stage in plan.stages) and samples is None
        self._kept: list[dict[str, torch.Tensor]] = []
        self._kinds = GradientKinds()

    @contextmanager
    def repeatable(self) -> Generator[None]:
        """In this block the pipeline draws the plain model's random numbers."""
        with DropNothing(), ExitStack() as stack:
            if self._seeded is not None:
                stack.enter_context(parts_seeded(self._parts))
                stack.enter_context(self._seeded)
            yield

    def note_kinds(self) -> None:
        """Note which parameters have a gradient in this step. Call it before the optimizer's step."""
        self._kinds.add(self._executor.parameters)

    def gradients(self) -> None:
        """Compare gradients after the first step's backward, and after clipping."""
        self._waiting("the comparison of gradients", None)
        self._compare(checks.compare_gradients, self._gradients())

    def first_update(self) -> None:
        """Compare parameters after the first step's update."""
        self._waiting("the comparison of parameters", None)
        self._compare(checks.compare_first_update, self._parameters())

    def keep(self, update: int, step: Callable[[], None]) -> None:
        """Run `step` for an update. For update 0, keep copies that `last` compares.

        Stages of one rank have update 0 at different times. Only the stage that is stepped has
        gradients then.
        """
        if update > 0:
            step()
            return
        gradients = copies(self._gradients())
        step()
        parameters = copies(self._parameters())
        if self._kept:
            parameters = {name: parameters[name] for name in gradients}
        else:
            self._kept += [{}, {}]
        self._kept[0].update(gradients)
        self._kept[1].update(parameters)

    def last(self) -> None:
        """Compare parameters and buffers after the last step."""
        self._waiting("the comparison of parameters", None)
        if self._kept:
            gradients, first = self._kept
            self._compare(checks.compare_gradients, gradients)
            self._compare(checks.compare_first_update, first)
        self._compare(checks.compare_parameters, self._parameters())
        if self._has_buffers:
            self._compare(checks.compare_buffers, self._executor.buffers)
        self._compare(checks.compare_kinds, self._kinds.of_steps())
        self._compare(checks.compare_draws, {} if self._seeded is None else self._seeded.counts)

    def _compare(
        self,
        compare: Callable[[CheckRecord | None, Mapping[str, T]], None],
        mine: Mapping[str, T],
    ) -> None:
        if self._compares:
            compare(self._check, mine)
        elif self._executor.is_in_one_world:
            # The others of the group are in the world that compares, and have nothing to add.
            compare(None, {})

    def outcome(self, losses: Sequence[float], dropouts: int) -> CheckResult | None:
        """The check's result on rank 0, None on others; raises RunError if the check fails.

        `losses` has one mean loss per update.
        """
        if self._check is None:
            return None
        notes: list[str] = []
        if self._kept:
            weights = self._check.weights
            notes.append(f"the plain model was trained with the same {weights} weights")
        notes += draw_notes(self._check.reference.draws)
        if dropouts:
            notes.append(
                f"recurrent dropout was off in both models ({counted(dropouts, 'operation')})"
            )
        if not self._has_buffers:
            notes.append("buffers were not compared: each process sees its own samples only")
        try:
            return outcome(self._check, losses, dropouts, notes)
        except RunError as error:
            if self._executor.shards is None:
                raise
            raise RunError(f"{error}; {self._reason}") from None

    def _gradients(self) -> Tensors:
        self._executor.complete_gradients()
        named = self._executor.parameters.items()
        return self._whole({name: p.grad for name, p in named if p.grad is not None})

    def _parameters(self) -> Tensors:
        return self._whole(self._executor.parameters)

    def _whole(self, tensors: Tensors) -> Tensors:
        """The whole tensors where a tensor group holds shards. Collective in the group."""
        shards = self._executor.shards
        return tensors if shards is None else shards.whole(tensors)


def draw_notes(draws: Mapping[str, int]) -> list[str]:
    """A note on seeded random numbers, for the user; none without draws."""
    if not draws:
        return []
    told = ", ".join(f"{name} {count}" for name, count in sorted(draws.items()))
    times = "time" if sum(draws.values()) == 1 else "times"
    return [f"random numbers were seeded alike in both models ({told} {times})"]
