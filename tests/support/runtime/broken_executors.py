"""Faults of schedules, messages, updates, recomputation and offload, for tests of the check."""

from collections.abc import Generator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

from autopart.records.plan import Plan
from autopart.runtime.engine import asynchronous, local_model, rank_executor
from autopart.runtime.engine import stage as stages
from autopart.runtime.engine.run_settings import RunSettings
from autopart.runtime.engine.stage import TorchStage
from autopart.runtime.job import training
from autopart.runtime.transforms import offload, recomputed_layer
from autopart.runtime.update import gradient_sum, overlapped_sum
from autopart.runtime.update.optimizer import Optimizer
from autopart.runtime.update.zero_shards import ZeroSharding
from tests.support.runtime.faults import Faults, Replace, collector, on_rank_1, with_fault
from tests.support.runtime.on_ranks import complaint_of

FAULTS: Faults = {}
_fault = collector(FAULTS)


def complaint_with(rank: int, plan: Plan, settings: RunSettings, fault: str) -> str:
    """The error of a run with a broken executor on this rank, empty without one."""
    return with_fault(FAULTS[fault] if fault else None, complaint_of, rank, plan, settings)


@_fault
def _wrong_microbatch_scaling(replace: Replace) -> None:
    step = rank_executor.StepExecutor.step

    def scaled(self: Any, microbatches: Any, *, scale: float = 1.0, sync: bool = True) -> Any:
        n = self._part.num_microbatches
        return step(self, microbatches, scale=scale * n / (n - 1), sync=sync)

    replace(rank_executor.StepExecutor, "step", scaled)


@_fault
def _wrong_loss_scale_of_one_microbatch(replace: Replace) -> None:
    backward = TorchStage.backward
    replace(
        TorchStage,
        "backward",
        lambda self, m, given, scale, **how: backward(
            self, m, given, scale * (1.001 if m == 2 else 1.0), **how
        ),
    )


@_fault
def _wrong_loss_that_is_reported(replace: Replace) -> None:
    step = rank_executor.StepExecutor.step

    def reported(self: Any, *given: Any, **how: Any) -> Any:
        loss = step(self, *given, **how)
        return None if loss is None else loss * 1.0001

    replace(rank_executor.StepExecutor, "step", reported)


@_fault
def _dropped_message_of_gradients(replace: Replace) -> None:
    backward = TorchStage.backward

    def dropped(self: Any, m: int, *given: Any, **how: Any) -> Any:
        made = backward(self, m, *given, **how)
        return tuple(map(torch.zeros_like, made)) if m == 1 else made

    replace(TorchStage, "backward", dropped)


@_fault
def _dropped_gradient_of_one_parameter(replace: Replace) -> None:
    step = rank_executor.StepExecutor.step

    def forgetful(self: Any, *given: Any, **how: Any) -> Any:
        loss = step(self, *given, **how)
        if on_rank_1():
            next(iter(self.parameters.values())).grad = None
        return loss

    replace(rank_executor.StepExecutor, "step", forgetful)


@_fault
def _dropped_update_of_one_rank(replace: Replace) -> None:
    step = Optimizer.step

    def lazy(self: Optimizer) -> None:
        if not on_rank_1():
            return step(self)
        for parameter in self._trained:
            parameter.grad = None
        return None

    replace(Optimizer, "step", lazy)


@_fault
def _gradients_that_are_not_cleared(replace: Replace) -> None:
    step = Optimizer.step

    def keeping(self: Optimizer) -> None:
        kept = [(p, p.grad) for p in self._trained]
        step(self)
        for parameter, gradient in kept:
            parameter.grad = gradient

    replace(Optimizer, "step", keeping)


@_fault
def _stale_weights(replace: Replace) -> None:
    """From the second step on, rank 1 runs one microbatch with the weights of the start."""
    forward, start = TorchStage.forward, dict[int, torch.Tensor]()

    def stale(self: Any, m: int, *given: Any) -> Any:
        parameters = list(self.program.module.parameters())
        now = [p.detach().clone() for p in parameters]
        for p in parameters:
            start.setdefault(id(p), p.detach().clone())
        if m == 3 and on_rank_1():
            for p in parameters:
                p.data.copy_(start[id(p)])
        made = forward(self, m, *given)
        for p, value in zip(parameters, now, strict=True):
            p.data.copy_(value)
        return made

    replace(TorchStage, "forward", stale)


@_fault
def _weights_one_version_too_old(replace: Replace) -> None:
    version = asynchronous.weight_version
    replace(asynchronous, "weight_version", lambda *given: max(0, version(*given) - 1))


@_fault
def _swapped_stages(replace: Replace) -> None:
    split = local_model.split_stages

    def swapped(captured: Any, stages: Any) -> Any:
        programs = list(split(captured, stages))
        programs[1], programs[2] = programs[2], programs[1]
        return tuple(programs)

    replace(local_model, "split_stages", swapped)


@_fault
def _swapped_microbatches(replace: Replace) -> None:
    """The first stage and the last one read different microbatches."""
    forward, seen = TorchStage.forward, dict[str, Any]()

    def swapped(self: Any, m: int, received: Any, leaves: Any) -> Any:
        last = seen.get("leaves", leaves)
        seen["leaves"] = leaves
        return forward(self, m, received, last if self.is_last else leaves)

    replace(TorchStage, "forward", swapped)


@_fault
def _message_of_another_microbatch(replace: Replace) -> None:
    forward, seen = TorchStage.forward, dict[int, Any]()

    def mixed(self: Any, m: int, received: Any, leaves: Any) -> Any:
        copied = [tensor.clone() for tensor in received]
        given = seen.get(self.stage_index, copied) if m == 2 else received
        seen[self.stage_index] = copied
        return forward(self, m, given, leaves)

    replace(TorchStage, "forward", mixed)


@_fault
def _missing_sum_of_gradients(replace: Replace) -> None:
    replace(gradient_sum.GradientSum, "run", lambda self: None)


@_fault
def _sum_that_begins_before_the_last_backward(replace: Replace) -> None:
    """Of the second step on, buckets go out first. The last backward then adds to sums."""
    sending = overlapped_sum._StageSum.sending

    @contextmanager
    def early(self: Any) -> Generator[Any]:
        self.send_rest()
        # A sum that is still under way may read what the last backward adds.
        for bucket in self._sent:
            bucket.work.wait()
        with sending(self):
            yield None

    replace(overlapped_sum._StageSum, "sending", early)


@_fault
def _norm_that_leaves_out_one_rank(replace: Replace) -> None:
    whole = rank_executor.RankExecutor.sum_over_processes

    def without(self: Any, tensor: torch.Tensor) -> torch.Tensor:
        return whole(self, torch.zeros_like(tensor) if on_rank_1() else tensor)

    replace(rank_executor.RankExecutor, "sum_over_processes", without)


@_fault
def _gradients_that_are_not_clipped(replace: Replace) -> None:
    replace(training, "clip", lambda executor, max_norm: None)


@_fault
def _mean_in_place_of_a_sum(replace: Replace) -> None:
    bucket_sum = gradient_sum._sum_bucket

    def mean(bucket: Any, group: Any) -> None:
        bucket_sum(bucket, group)
        for parameter in bucket:
            parameter.grad /= group.size()

    replace(gradient_sum, "_sum_bucket", mean)


@_fault
def _missing_gather_of_shards(replace: Replace) -> None:
    replace(ZeroSharding, "gather", lambda self, tensor_of: None)


@_fault
def _missing_sum_of_shards(replace: Replace) -> None:
    replace(ZeroSharding, "scatter_sums", lambda self, used: None)


@_fault
def _other_random_numbers_in_the_second_run(replace: Replace) -> None:
    replace(recomputed_layer, "_is_random", lambda part: False)


@_fault
def _other_numbers_of_python_in_the_second_run(replace: Replace) -> None:
    replace(recomputed_layer, "_drawing_again", lambda generators, states: nullcontext())


@_fault
def _second_run_with_another_input(replace: Replace) -> None:
    """Torch calls the layer's function again; the second time its first tensor is another."""
    checkpoint = recomputed_layer.checkpoint

    def other(function: Any, first: torch.Tensor, *rest: Any, **how: Any) -> Any:
        runs: list[None] = []

        def run(value: torch.Tensor, *others: Any) -> Any:
            runs.append(None)
            return function(value * 1.001 if len(runs) > 1 else value, *others)

        return checkpoint(run, first, *rest, **how)

    replace(recomputed_layer, "checkpoint", other)


@_fault
def _statistics_that_count_twice(replace: Replace) -> None:
    replace(recomputed_layer, "_restored", lambda buffers: nullcontext())


@_fault
def _weight_gradient_that_is_left_out(replace: Replace) -> None:
    weight_backward = TorchStage.weight_backward

    def left_out(self: Any, m: int) -> None:
        if m == 1:
            self._deferred.pop(m)
        else:
            weight_backward(self, m)

    replace(TorchStage, "weight_backward", left_out)


@_fault
def _zeros_in_place_of_no_gradient(replace: Replace) -> None:
    replace(stages, "no_gradient", lambda shape, dtype, device: torch.zeros(shape, dtype=dtype))


@_fault
def _stash_that_comes_back_wrong(replace: Replace) -> None:
    tensor = offload._SavedTensor.tensor
    replace(offload._SavedTensor, "tensor", lambda self: tensor(self).roll(1, 0))
