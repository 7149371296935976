"""A run without flushes, reported in steps like other runs; a step is one batch of the plan."""

from collections import Counter
from collections.abc import Callable, Sequence

from autopart.cost.asynchronous import price_of
from autopart.records.plan import Plan
from autopart.records.run_result import AsynchronousRun
from autopart.runtime.checking.comparison import Comparison
from autopart.runtime.engine.asynchronous import AsynchronousExecutor, TrainingRecord
from autopart.runtime.engine.asynchronous_rules import rules_of
from autopart.runtime.engine.stage import Leaves
from autopart.runtime.job.rank_results import RankRun, StepRun
from autopart.runtime.measuring.clock import DeviceClock, Mark
from autopart.runtime.measuring.peak_memory import peak_bytes
from autopart.runtime.measuring.step_trace import StepTrace
from autopart.runtime.update.optimizer import Optimizer


def run_without_flush(
    executor: AsynchronousExecutor,
    batches: Sequence[dict[int, Leaves]],
    batch_size: int,
    optimizer: Optimizer,
    clock: DeviceClock,
    note: Callable[[int], None],
    comparison: Comparison | None = None,
) -> RankRun:
    """Run all batches. Returns times and losses per batch, and the most weight versions at once.

    `batches` has this rank's microbatches for each batch; a batch has `batch_size` microbatches
    over all ranks. `note` is told the number of batches that have been applied to the weights.
    `comparison` keeps copies from the first update.
    """
    each = batch_size // executor.microbatches_per_update
    stages = Counter[int]()

    def step(number: int) -> None:
        if comparison is None:
            optimizer.step()
        else:
            comparison.keep(number, optimizer.step)
        stages[number] += 1
        if (number + 1) % each == 0 and stages[number] == len(executor.programs):
            note((number + 1) // each)

    def load(microbatch: int) -> Leaves:
        batch, of_batch = divmod(microbatch, batch_size)
        return batches[batch][of_batch]

    trained = executor.train(load, each * len(batches), step, optimizer.predict)
    clock.wait()
    steps = tuple(
        _step(
            trained,
            clock,
            range(b * batch_size, (b + 1) * batch_size),
            range(b * each, b * each + each),
        )
        for b in range(len(batches))
    )
    losses = _update_losses(trained, executor.microbatches_per_update, each * len(batches))
    peak = peak_bytes(executor.device)
    return RankRun(steps, peak, versions=trained.most_versions, update_losses=losses)


def _update_losses(trained: TrainingRecord, n: int, updates: int) -> tuple[float, ...]:
    shares = [0.0] * updates
    for microbatch, loss in trained.losses.items():
        shares[microbatch // n] += loss.item() / n
    return tuple(shares)


def _step(
    trained: TrainingRecord, clock: DeviceClock, microbatches: range, updates: range
) -> StepRun:
    """One batch as a step: it lasts from the previous batch's last update to its own last
    update."""
    marks, seconds = trained.marks, clock.seconds
    own = [one for one in trained.updates if one.number in updates]
    before = [one.done for one in trained.updates if one.number < updates[0]]
    begin: Mark = before[-1] if before else marks.begin
    window = seconds(begin, own[-1].done)
    slices = tuple(
        one._replace(action=one.action._replace(microbatch=one.action.microbatch - microbatches[0]))
        for one in marks.slices(clock)
        if one.action.microbatch in microbatches
    )
    blocked = sum(
        seconds(start, end)
        for start, end in marks.blocked
        if seconds(begin, start) >= 0.0 and seconds(end, own[-1].done) >= 0.0
    )
    update_time = sum(seconds(one.summed, one.done) for one in own)
    losses = [trained.losses[m] for m in microbatches if m in trained.losses]
    return StepRun(
        loss=sum(loss.item() for loss in losses) / len(microbatches) if losses else None,
        trace=StepTrace(
            slices=slices,
            blocked_time=blocked,
            sync_time=sum(seconds(one.begin, one.summed) for one in own),
            end=window - update_time,
            begun=marks.begun,
        ),
        time=window,
        update_time=update_time,
    )


def asynchronous_run(plan: Plan, name: str, steps: int, runs: Sequence[RankRun]) -> AsynchronousRun:
    """Measured weight versions per stage, next to the schedule's numbers and the prediction."""
    rules = rules_of(plan, name)
    price = price_of(plan, rules.kind)
    n = rules.setting.num_microbatches
    return AsynchronousRun(
        schedule=name,
        updates=steps * plan.num_microbatches // n,
        microbatches_per_update=n,
        versions=tuple(
            max(runs[rank].versions[index] for rank in s.ranks)
            for index, s in enumerate(plan.stages)
        ),
        predicted_versions=tuple(1 + copies for copies in price.extra_copies),
        predicted_period=price.period,
        predicted_peak_bytes=price.peak_bytes,
    )
