"""Asynchronous schedules, as numbers: they update the weights and never empty the pipeline.

They compute other gradients than a synchronous step. So only their prices are compared, and no plan
uses them. All run one forward and one backward in turn. With stage s = 0 .. k - 1, n microbatches
per update, and 1F1B's k - s microbatches in flight:

    period        seconds between microbatches, the max over s of busy_s / r_s: no fill, no drain
    delay         updates applied between the weights that a microbatch is computed with, and the
                  update that its gradient joins; 0 in a synchronous schedule
    distance      the same for predicted weights: the further updates that the prediction covers
    copies        the stage's weights beside the current ones

F on stage s for microbatch j comes after j - (k - 1 - s) backwards. So with n per update, the first
microbatch in an update is ceil((k - 1 - s) / n) updates behind.
"""

import math

from autopart.errors import ScheduleError
from autopart.schedules.asynchronous_kind import MEMORY, Asynchronous, Setting
from autopart.schedules.named.one_f_one_b import warmup
from autopart.schedules.named.wpipe import most_in_flight


def asynchronous(name: str) -> Asynchronous:
    """The asynchronous schedule called `name`; raises ScheduleError for an unknown name."""
    if name not in ASYNCHRONOUS:
        raise ScheduleError(
            f"unknown asynchronous schedule '{name}'; known: {', '.join(ASYNCHRONOUS)}"
        )
    return ASYNCHRONOUS[name]


def _plain(setting: Setting, stage: int) -> int:
    return warmup(setting.num_stages - 1 - stage, 1)


def _plain_delay(setting: Setting, stage: int) -> int:
    return math.ceil((setting.num_stages - 1 - stage) / setting.num_microbatches)


def _stashed(setting: Setting, stage: int) -> int:
    return _plain(setting, stage) - 1


def _nothing(setting: Setting, stage: int) -> int:
    return 0


def _one(setting: Setting, stage: int) -> int:
    return 1


def _any_number(num_stages: int) -> int:
    return 1


def _as_many_as_stages(num_stages: int) -> int:
    return num_stages


PIPEDREAM = Asynchronous(
    name="pipedream",
    in_flight=_plain,
    extra_copies=_stashed,
    forward_delay=_plain_delay,
    backward_delay=_plain_delay,
    every_microbatch=True,
    least_microbatches=_any_number,
    held_against="the authors' code: k - 1 - s microbatches of warm-up, one version more",
    source="Narayanan et al., PipeDream, SOSP 2019: weight stashing, w_s of t - k + 1 + s",
)

TWO_BUFFERED = Asynchronous(
    name="pipedream-2bw",
    in_flight=_plain,
    extra_copies=_one,
    forward_delay=_one,
    backward_delay=_one,
    every_microbatch=False,
    least_microbatches=_as_many_as_stages,
    held_against="the authors' code: microbatches in flight at an update keep the older of two "
    "versions",
    source="Narayanan et al., Memory-Efficient Pipeline-Parallel DNN Training, ICML 2021: "
    "W(t+1) = W(t) - lr grad f(W(t-1))",
)


def _forward_and_backward_at_once(setting: Setting, stage: int) -> int:
    return 2 * (setting.num_stages - stage) - 1


def _pipemare_delay(setting: Setting, stage: int) -> float:
    return _forward_and_backward_at_once(setting, stage) / setting.num_microbatches


PIPEMARE = Asynchronous(
    name="pipemare",
    in_flight=_forward_and_backward_at_once,
    extra_copies=_one,
    forward_delay=_pipemare_delay,
    backward_delay=_nothing,
    every_microbatch=False,
    least_microbatches=_any_number,
    held_against=f"{MEMORY}; the same follows where equal slots are played",
    source="Yang et al., PipeMare, MLSys 2021: delay (2 (P - i) + 1) / N of stage i = 1 .. P; "
    "the copy is the velocity of its discrepancy correction, 0 without",
)


def _whole_way(setting: Setting, stage: int) -> int:
    """Microbatches that the stage finishes from a forward to the end of its microbatch, on stage 0.

    A backward takes as long as a forward, so the way back over s stages takes s / 2 of them.
    """
    return setting.num_stages - 1 - stage + stage // 2


def _way_back(setting: Setting, stage: int) -> int:
    """The same from a backward on."""
    return stage // 2


def _one_if_predicted(setting: Setting, stage: int) -> int:
    return min(1, _whole_way(setting, stage))


SPECTRAIN = Asynchronous(
    name="spectrain",
    in_flight=_plain,
    extra_copies=_one_if_predicted,
    forward_delay=_whole_way,
    backward_delay=_way_back,
    every_microbatch=True,
    least_microbatches=_any_number,
    held_against="the authors' code and its page",
    source="Chen et al., SpecTrain, 2018: weights predicted over s = floor(k/2) + N - k - 1 updates "
    "forward, floor(k/2) backward, on GPU k of N; the copy is the predicted weights",
    predicts_with=("sgd-momentum",),
)


def _way_in_updates(setting: Setting, stage: int) -> int:
    return math.ceil(_whole_way(setting, stage) / setting.num_microbatches)


def _way_back_in_updates(setting: Setting, stage: int) -> int:
    return math.ceil(_way_back(setting, stage) / setting.num_microbatches)


def _one_and_kept(setting: Setting, stage: int) -> int:
    """An update among the forwards of one batch makes the batch's predicted weights a copy more."""
    is_between = (setting.num_stages - 1 - stage) % setting.num_microbatches > 0
    return _one_if_predicted(setting, stage) + is_between


XPIPE = Asynchronous(
    name="xpipe",
    in_flight=_plain,
    extra_copies=_one_and_kept,
    forward_delay=_way_in_updates,
    backward_delay=_way_back_in_updates,
    every_microbatch=False,
    least_microbatches=_any_number,
    held_against=f"{MEMORY}; fairscale's AMPNet benchmark has the same terms, and rounds to nearest",
    source="Guan et al., XPipe, 2019: all microbatches of an update use the weights predicted for "
    "its first; SpecTrain's distances, in updates of T microbatches and rounded up",
    predicts_with=("adamw",),
)


def _first_group(setting: Setting, stage: int) -> int:
    return 1 if stage < setting.num_stages // 2 else 0


def _two_groups(setting: Setting, stage: int) -> int:
    return most_in_flight(setting.num_stages, stage)


WPIPE = Asynchronous(
    name="wpipe",
    in_flight=_two_groups,
    extra_copies=_first_group,
    forward_delay=_first_group,
    backward_delay=_first_group,
    every_microbatch=False,
    least_microbatches=_as_many_as_stages,
    held_against="the paper's abstract; the order and the microbatches in flight are ours",
    source="Yang et al., Group-based Interleaved Pipeline Parallelism, ICLR 2022: half of the "
    "delays and of the copies of PipeDream-2BW; the first half of the stages is the first group",
)


def _one_before_the_last(setting: Setting, stage: int) -> int:
    return min(1, _plain_delay(setting, stage))


PIPEOPTIM = Asynchronous(
    name="pipeoptim",
    in_flight=_plain,
    extra_copies=_one_before_the_last,
    forward_delay=_plain_delay,
    backward_delay=_nothing,
    every_microbatch=True,
    least_microbatches=_any_number,
    held_against="the page of the authors' code; the code itself predicts one update further",
    source="Guan et al., PipeOptim, 2023: weights predicted over D - rank - 1 updates by the rule of "
    "the optimizer; the copy is the predicted weights",
    predicts_with=("sgd-momentum", "adamw"),
)


def _side_by_side(setting: Setting, stage: int) -> int:
    return setting.num_pipelines * _plain(setting, stage)


def _pipelines(setting: Setting, stage: int) -> int:
    return setting.num_pipelines


AVGPIPE = Asynchronous(
    name="avgpipe",
    in_flight=_side_by_side,
    extra_copies=_pipelines,
    forward_delay=_nothing,
    backward_delay=_nothing,
    every_microbatch=False,
    least_microbatches=_any_number,
    held_against=MEMORY,
    source="Chen et al., Elastic Averaging for Efficient Pipelined DNN Training, PPoPP 2023: copies "
    "of the other pipelines and of the reference model that all are pulled to",
)


def _wave(setting: Setting, stage: int) -> int:
    """A wave has Nm = k microbatches. HetPipe's pipelines hand in a wave at a time."""
    return setting.num_stages


def _local_and_global(setting: Setting, stage: int) -> int:
    local = _wave(setting, stage) - 1
    return (setting.clock_distance + 1) * (local + 1) + local - 1


HETPIPE = Asynchronous(
    name="hetpipe",
    in_flight=_plain,
    extra_copies=_stashed,
    forward_delay=_local_and_global,
    backward_delay=_local_and_global,
    every_microbatch=True,
    least_microbatches=_any_number,
    held_against="a copy of the paper's section on waves, for s_local + 1 microbatches; the sum from memory",
    source="Park et al., HetPipe, ATC 2020: at most (D + 1) (s_local + 1) + s_local - 1 updates of "
    "the other pipelines are missing, s_local = Nm - 1 of the own; here Nm = k",
)

ASYNCHRONOUS: dict[str, Asynchronous] = {
    kind.name: kind
    for kind in (
        PIPEDREAM,
        TWO_BUFFERED,
        PIPEMARE,
        SPECTRAIN,
        XPIPE,
        WPIPE,
        PIPEOPTIM,
        AVGPIPE,
        HETPIPE,
    )
}
