"""Gradient sums beside the last backward: each bucket goes out when its gradients are made.

The first step sums at its end. Meanwhile each stage notes the order in which its last backward
makes gradients, and how often it adds to each: a parameter that several operations read gets
several parts. Replicas take the order of their stage's first rank, so all have equal buckets. From
the second step on, a bucket is laid end to end and summed in the background as soon as all its
gradients are complete. Buckets go out in their fixed order. Gradients become views into their
bucket, so it needs no second copy of them.

Where each step may use other parameters, no gradient is known to be complete before its block's end.
All buckets go out then. Afterwards the replicas agree on the parameters that any of them used.

Parameters that several stages hold are summed after all actions, as in the base class.
"""

import time
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import torch
from torch import distributed, nn

from autopart.runtime.update.gradient_sum import (
    GradientSum,
    Made,
    NamedParameters,
    buckets,
    on_any_holder,
)


class StageCopies(NamedTuple):
    """One stage's parameters and the ranks that have a copy of each."""

    stage: int
    names: Sequence[str]
    ranks: Sequence[int]


class OverlappedSum(GradientSum):
    """Sums the gradients of each stage's replicas beside its last backward."""

    is_late = False

    def __init__(
        self,
        whole: GradientSum,
        parameters: NamedParameters,
        stages: Sequence[StageCopies],
        bucket_bytes: int,
    ) -> None:
        """Collective: all ranks call this with equal `stages`, because it creates process groups.

        `whole` sums after all actions. `stages` has all stages of the pipeline; where ranks are several processes, a
        stage has an entry for each place in their tensor groups.
        """
        super().__init__((), {}, 0, use_varies=whole.use_varies)
        self.shared, rank = whole.shared, distributed.get_rank()
        self._stages: dict[int, _StageSum] = {}
        named = {stage.stage: stage.names for stage in stages}
        homes = Counter(name for names in named.values() for name in set(names))
        for index, names, ranks in stages:
            if len(ranks) == 1:
                continue
            group = distributed.new_group(list(ranks))
            if rank in ranks:
                own = [parameters[n] for n in names if homes[n] == 1]
                trained = [p for p in own if p.requires_grad]
                self._stages[index] = _StageSum(
                    group, ranks[0], trained, bucket_bytes, use_varies=self.use_varies
                )
        self._is_first = True

    @contextmanager
    def beside(self, stage: int) -> Generator[Made | None]:
        """In this block the stage's last backward runs; gives a function to be told about W's parts."""
        own = self._stages.get(stage)
        if own is None:
            yield None
            return
        with own.noting() if self._is_first else own.sending() as made:
            yield made

    def run(self) -> None:
        """Finish all sums. Collective: all holders must call this."""
        if self._is_first:
            super().run()
            used = {id(p) for shared in self.shared for p in shared.used}
            for stage in self._stages.values():
                stage.agree(used)
            self._is_first = False
            return
        # Step 1: a replica without microbatches has sent nothing yet.
        for stage in self._stages.values():
            stage.send_rest()
        for stage in self._stages.values():
            stage.wait()
        # Step 2: parameters that several stages hold.
        early = {id(p) for stage in self._stages.values() for p in stage.parameters}
        self.agree_on_used()
        self.sum_used(lambda p: id(p) not in early)

    def under_way(self) -> list[tuple[float, float]]:
        """When each bucket of the last step went out and was summed, on `time.perf_counter`'s clock."""
        return [times for stage in self._stages.values() for times in stage.times()]


class _SentBucket(NamedTuple):
    """Gradients that were sent together."""

    flat: torch.Tensor
    work: distributed.Work
    sent: float
    done: list[float]
    """When the sum was complete; empty until then."""
    copies: list[tuple[torch.Tensor, torch.Tensor]]
    """Gradients in another layout than the bucket's, each with its part."""


class _StageSum:
    """One stage's buckets on this rank."""

    def __init__(
        self,
        group: object,
        source: int,
        parameters: Sequence[nn.Parameter],
        bucket_bytes: int,
        *,
        use_varies: bool,
    ) -> None:
        assert isinstance(group, distributed.ProcessGroup)
        self._use_varies = use_varies
        self._made: set[int] = set()
        """Parameters whose gradients this replica made in the running step, where each step may use others."""
        self.group, self.parameters = group, list(parameters)
        self._source, self._bucket_bytes = source, bucket_bytes
        self._parts: dict[int, int] = {}
        """For each parameter whose gradient surely is complete then, the parts that are added to it."""
        self._order = list(parameters)
        self._buckets: list[list[nn.Parameter]] = []
        self._left: dict[int, int] = {}
        self._sent: list[_SentBucket] = []
        self._times: list[tuple[float, list[float]]] = []
        """When each bucket of the last step went out, and when it was summed."""

    @contextmanager
    def noting(self) -> Generator[Made]:
        """Note which gradients the block makes, in which order, in how many parts."""
        before, after = {id(p): _version(p) for p in self.parameters}, dict[int, object]()
        counts = Counter[int]()

        def made(parameter: nn.Parameter) -> None:
            counts[id(parameter)] += 1
            after.pop(id(parameter), None)
            after[id(parameter)] = _version(parameter)

        with _told(self.parameters, made):
            yield made
        # A gradient that changed without a word is known to be complete at the block's end only.
        last = before | after
        known = [] if self._use_varies else self.parameters
        self._parts = {id(p): counts[id(p)] for p in known if _version(p) == last[id(p)]}
        place = {key: at for at, key in enumerate(after)}
        self._order.sort(key=lambda p: place.get(id(p), -1) if id(p) in self._parts else len(place))

    def agree(self, used: set[int]) -> None:
        """Take the order of the stage's first rank, and divide gradients into buckets."""
        if not self.parameters:
            return
        number = {id(p): at for at, p in enumerate(self.parameters)}
        order = torch.tensor([number[id(p)] for p in self._order], device=self.parameters[0].device)
        distributed.broadcast(order, self._source, group=self.group)
        ordered = [self.parameters[at] for at in order.tolist()]
        sent = [p for p in ordered if self._use_varies or id(p) in used]
        self._buckets = list(buckets(sent, self._bucket_bytes))

    @contextmanager
    def sending(self) -> Generator[Made]:
        """Send each bucket as soon as the block has made its gradients, and the rest at its end."""
        self._left = {id(p): self._parts.get(id(p), -1) for p in self.parameters}

        def made(parameter: nn.Parameter) -> None:
            if id(parameter) not in self._left:
                return  # Other stages hold it too.
            self._left[id(parameter)] -= 1
            assert self._left[id(parameter)] != -1, "a gradient changed after it was complete"
            self._send_complete()

        with _told(self.parameters, made):
            self._send_complete()
            yield made
        self.send_rest()

    def send_rest(self) -> None:
        """Send all buckets that were not sent yet."""
        self._left = {}
        self._send_complete()

    def wait(self) -> None:
        """Wait until all buckets are summed. The next step sends them anew."""
        for bucket in self._sent:
            bucket.work.wait()
            for gradient, part in bucket.copies:
                gradient.copy_(part)
        self._times = [(bucket.sent, bucket.done) for bucket in self._sent]
        self._sent = []
        if self._use_varies and self.parameters:
            has = [id(p) in self._made for p in self.parameters]
            used = set(map(id, on_any_holder(self.parameters, has, self.group)))
            for parameter in self.parameters:
                if id(parameter) not in used:
                    parameter.grad = None
            self._made = set()

    def times(self) -> Iterator[tuple[float, float]]:
        """When each bucket of the last step went out and was summed, where that is known."""
        for sent, done in self._times:
            if done:
                yield sent, done[0]

    def _send_complete(self) -> None:
        while len(self._sent) < len(self._buckets):
            bucket = self._buckets[len(self._sent)]
            if any(self._left.get(id(p), 0) for p in bucket):
                return
            self._made |= {id(p) for p in bucket if p.grad is not None}
            self._sent.append(_send(bucket, self.group))


@torch.no_grad()
def _send(bucket: Sequence[nn.Parameter], group: distributed.ProcessGroup) -> _SentBucket:
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in bucket]
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    copies: list[tuple[torch.Tensor, torch.Tensor]] = []
    parts = flat.split([gradient.numel() for gradient in gradients])
    for parameter, gradient, part in zip(bucket, gradients, parts, strict=True):
        if gradient.is_contiguous():
            parameter.grad = part.view(parameter.shape)
        else:
            parameter.grad = gradient
            copies.append((gradient, part.view(parameter.shape)))
    done: list[float] = []
    sent = time.perf_counter()
    work = distributed.all_reduce(flat, group=group, async_op=True)
    assert work is not None
    if flat.device.type == "cpu":
        work.get_future().add_done_callback(partial(_note_time, done))
    return _SentBucket(flat, work, sent, done, copies)


def _note_time(done: list[float], _: object) -> None:
    done.append(time.perf_counter())


@contextmanager
def _told(parameters: Sequence[nn.Parameter], made: Made) -> Generator[None]:
    """In this block autograd tells `made` about each gradient that it adds to."""
    hooks = [p.register_post_accumulate_grad_hook(made) for p in parameters]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _version(parameter: nn.Parameter) -> object:
    """A value that changes with the parameter's gradient."""
    gradient = parameter.grad
    return None if gradient is None else (id(gradient), gradient._version)
