"""Lower bounds on the step for a shape: ranks per pipeline, and replicas.

They hold however the graph's layers are ordered. For k stages under GPipe and 1F1B, m microbatches
per replica:

    step >= the work of all stages together              autopart/bounds/shared_work.py          (6)
    step >= m (f + b)_l + (f + b) over all layers before l, for each layer l                     (7)
    step >= T' + (m - 1) max(f, b)_l     for each layer l                                        (8)
    k * memory >= all state + all stash inside layers + k * reserve   (gradients: `least_bytes`)  (9)
    step >= T' + 2 k o + (m - y) (w + 2 o) + (y - 1) (share w + o)                               (11)

In (11) y = min(k, m), and some stage has w seconds of work: among the j k + 1 layers with most work
one stage has j + 1, for each j. So w is at least the work of the j + 1 shortest of them. This is (3)
for that stage, and GPipe's (2) is no smaller. share is as in autopart/bounds/shared_work.py.

Where GPUs differ, k places have at most the speeds v_1 >= v_2 >= ..., and W is all work at speed 1:

    step >= W / max over j of  (v_1 / a_1 + .. + v_j / a_j) / (1 + 1 / a_1 + .. + 1 / a_j)       (10)

T' is forward and backward on all layers, without fixed costs. By (2) and (3) a stage with t seconds
of work has S + a t <= step, with S the sum of all t. GPipe has a = m - 1. 1F1B has a = m - y + (y -
1) share on a stage with y in flight, in ascending order here; the longer direction has at least
that share. The work of all stages is largest where the fastest j places have t = (step - S) / a and
the others none: a vertex of the linear program. (1)-(5) stand in
autopart/bounds/classic_schedules.py.

Bounds for every order stand in autopart/bounds/any_order_shapes.py.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from autopart.activations.policies import most_freed, optimizer_places
from autopart.bounds.any_order_shapes import Shape, ancestors, any_order_shape_bounds
from autopart.bounds.pair_savings import without_savings_if_paired
from autopart.bounds.shared_work import least_share, shared_work_bounds
from autopart.cost.memory import largest_part
from autopart.cost.syncs import gradient_bytes, update_share
from autopart.records.cluster import fastest_places, fastest_speed, largest_memory
from autopart.records.problem import BIDIRECTIONAL, CLASSIC, LENDING, Problem, splits_backward
from autopart.records.training import makes_gradients, state_bytes
from autopart.schedules.actions import microbatches_per_replica


def quick_bounds(problem: Problem, shapes: Sequence[Shape]) -> dict[Shape, float | None]:
    """Seconds that no plan can beat, for each shape; None where its ranks cannot hold the model."""
    quick = classic_shape_bounds(problem, shapes)
    names = problem.demands.schedules
    if set(names) <= {*CLASSIC, *LENDING}:
        return quick
    able = [shape for shape, bound in quick.items() if bound is not None]
    split = any(splits_backward(name) for name in names)
    least = any_order_shape_bounds(without_savings_if_paired(problem), able, split=split)
    return {shape: least.get(shape) for shape in quick}


def classic_shape_bounds(problem: Problem, shapes: Sequence[Shape]) -> dict[Shape, float | None]:
    """(6)-(8) in seconds for each (stages, replicas).

    None where (9) says that the model does not fit.
    """
    layers, speed = problem.graph.layers, fastest_speed(problem.cluster)
    passes = [
        (la.forward_time / speed, (la.input_grad_time + la.weight_grad_time) / speed)
        for la in layers
    ]
    work = [forward + backward for forward, backward in passes]
    shared = _shared_work(problem, shapes)
    ahead = (ancestors(problem) @ np.array(work)).tolist()
    longest_pass = max(max(both) for both in passes)
    longest_first, share = sorted(work, reverse=True), least_share(problem.graph)
    fixed = 2 * problem.cluster.action_overhead
    usable = largest_memory(problem.cluster) - problem.cluster.reserve_bytes
    needed = {r: least_bytes(problem, r) for r in {r for _, r in shapes}}

    def bound(k: int, r: int) -> float | None:
        if needed[r] > k * usable:
            return None
        m = microbatches_per_replica(problem.num_microbatches, r)
        behind = max(m * own + before for own, before in zip(work, ahead, strict=True))
        along = sum(work) + (m - 1) * longest_pass
        fullest = _beside_fullest_stage(fullest_stage(longest_first, k), share, k, m, fixed / 2)
        differ = _on_different_gpus(problem, k, r, m) if problem.cluster.gpus else 0.0
        return max(
            shared[k, r], differ, max(behind, along) + m * fixed, sum(work) + k * fixed + fullest
        )

    return {(k, r): bound(k, r) for k, r in shapes}


def fullest_stage(longest_first: Sequence[float], num_stages: int) -> float:
    """Work that some stage has at least, in seconds, wherever the layers are cut.

    `longest_first` is the work of all layers in falling order.
    """
    return max(
        (
            sum(longest_first[j * num_stages - j : j * num_stages + 1])
            for j in range((len(longest_first) - 1) // num_stages + 1)
        ),
        default=0.0,
    )


def _beside_fullest_stage(work: float, share: float, k: int, m: int, overhead: float) -> float:
    """(11) without the path of one microbatch."""
    y = min(k, m)
    return (m - y) * (work + 2 * overhead) + (y - 1) * (share * work + overhead)


def _shared_work(problem: Problem, shapes: Sequence[Shape]) -> dict[Shape, float]:
    """(6) for each shape, under the best among the schedules that are allowed."""
    of = [(k, microbatches_per_replica(problem.num_microbatches, r)) for k, r in shapes]
    names = _classic_names(problem)
    bounds = [shared_work_bounds(problem, name, of) for name in names]
    return dict(zip(shapes, np.minimum.reduce(bounds).tolist(), strict=True))


def _classic_names(problem: Problem) -> Sequence[str]:
    """The classic schedules whose bounds hold: those allowed, and 1F1B for those that lend stash in its order."""
    asked = {"1f1b" if name in LENDING else name for name in problem.demands.schedules}
    return [name for name in CLASSIC if name in asked] or CLASSIC


def _on_different_gpus(problem: Problem, places: int, replicas: int, m: int) -> float:
    """(10) in seconds, under the best among the schedules that are allowed."""
    layers = problem.graph.layers
    forward = np.array([la.forward_time for la in layers])
    both = forward + [la.input_grad_time + la.weight_grad_time for la in layers]
    some = both > 0
    longer = np.maximum(forward, both - forward)
    share = float((longer[some] / both[some]).min(initial=1.0))
    speeds = np.array(fastest_places(problem.cluster, places, replicas))
    names = _classic_names(problem)
    rates: list[float] = []
    for name in names:
        # Step 1: a, the times that a stage runs its work beside one microbatch's path; fewest first.
        in_flight = np.minimum(np.arange(places, 0, -1), m) if name == "1f1b" else np.ones(places)
        others = np.sort(m - in_flight + (in_flight - 1) * share)
        # Step 2: the fastest j places take all that they can, for each j.
        per_path = np.cumsum(1 / np.maximum(others, 1e-300))
        done = np.cumsum(speeds / np.maximum(others, 1e-300)) / (1 + per_path)
        rates.append(float(done.max()))
    return float(both.sum()) / max(rates)


class LeastBytes(NamedTuple):
    """The fewest bytes of the whole model, over all ranks of a pipeline."""

    state: int
    """Weights, buffers, master copies and optimizer state."""
    gradients: int
    inner: int
    """One microbatch's stash that no policy frees, and the values that are kept."""
    together: bool
    """Whether some rank has its gradients and a microbatch's stash at once; else room for the larger of both."""

    @property
    def whole(self) -> int:
        """All of them."""
        both = self.gradients + self.inner
        return self.state + (both if self.together else max(self.gradients, self.inner))


def least_bytes(problem: Problem, replicas: int, *, any_order: bool = False) -> int:
    """Bytes for the whole model's state, its gradients and one microbatch's inner stash."""
    return least_parts(problem, replicas, any_order=any_order).whole


def least_parts(problem: Problem, replicas: int, *, any_order: bool = False) -> LeastBytes:
    """The parts of `least_bytes`.

    Where a step's first backward makes the gradients, a rank under GPipe or 1F1B has both in its last backward, if it is not its
    first one. Else each rank has room for the larger of both. `any_order` says whether all orders count. Each tied parameter counts once. Where two pipelines share their ranks, a microbatch is on one of
    the two ranks of each stage, and state on both: half of its stash counts.
    """
    graph, training = problem.graph, problem.training
    spare = [(t, len(set(t.layers)) - 1) for t in graph.tied]
    weights = sum(la.param_bytes + la.buffer_bytes for la in graph.layers)
    weights -= sum(t.param_bytes * copies for t, copies in spare)
    gradients = sum(gradient_bytes(la, training) for la in graph.layers)
    gradients -= sum(gradient_bytes(t, training) * copies for t, copies in spare)
    gradients += sum(la.unscattered_grad_bytes or 0 for la in graph.layers)
    gradients -= sum((t.unscattered_grad_bytes or 0) * copies for t, copies in spare)
    trained = sum(la.num_trainable for la in graph.layers)
    trained -= sum(t.num_trainable * copies for t, copies in spare)
    stepped = largest_part(trained, update_share(training, replicas))
    on_host = True in optimizer_places(problem.demands)
    state = 0 if on_host else stepped * state_bytes(training)
    stash = sum(la.stash_bytes for la in graph.layers) - sum(most_freed(graph, problem.demands))
    inner = stash + sum(v.bytes for v in graph.values if v.kept_by)
    names = problem.demands.schedules
    both_ways = not set(names).isdisjoint(BIDIRECTIONAL)
    inner = inner // 2 if both_ways else inner
    classic = not any_order and set(names) <= set(CLASSIC)
    several = microbatches_per_replica(problem.num_microbatches, replicas) > 1
    together = not makes_gradients(training) or (classic and several)
    return LeastBytes(weights + state, gradients, inner, together)
