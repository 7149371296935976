"""One stage on one rank: torch's `PipelineStage` with our messages and our backward.

Torch runs the forward. We move the messages ourselves. Torch would keep one receive buffer per
microbatch during the stage's whole life; here the stage gets each message when it needs it. Torch
would also keep the forward's outputs until their backward. Here only their places in autograd's
graph stay, so an output is freed once it is sent, unless some backward needs it. We use only those
private parts that torch 2.10 to 2.13 have in common.
"""

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import NamedTuple, Protocol

import torch
from torch import distributed, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.distributed.pipelining import PipelineStage

from autopart.runtime.capture.autocast import entered
from autopart.runtime.capture.stage_modules import StageProgram, TensorMeta
from autopart.runtime.engine.no_gradient import is_no_gradient, no_gradient
from autopart.runtime.transforms import seeded_draws
from autopart.runtime.transforms.movable_stash import MovableStash
from autopart.runtime.transforms.offload import HostStash
from autopart.runtime.transforms.split_backward import DeferredWork, defer, run_deferred
from autopart.runtime.update.gradient_sum import Made

Leaves = Mapping[str, torch.Tensor]
"""One microbatch's batch tensors, by input name."""


class _Loss(NamedTuple):
    """The place of a microbatch's loss in autograd's graph; the number itself is free after its forward."""

    edge: GradientEdge
    shape: torch.Size
    dtype: torch.dtype

    @classmethod
    def of(cls, loss: torch.Tensor) -> "_Loss | None":
        """None where the loss depends on nothing that is trained."""
        if not loss.requires_grad:
            return None
        return cls(get_gradient_edge(loss), loss.shape, loss.dtype)


class _Waiting(NamedTuple):
    """A microbatch between its forward and its backward."""

    received: tuple[torch.Tensor, ...]
    edges: tuple[GradientEdge | None, ...]
    """The places in autograd's graph where the outputs' gradients enter, in their order."""
    loss: _Loss | None
    """The output of the last stage; None on others."""
    held: tuple[torch.Tensor, ...]
    """Outputs that stay until the backward is done."""


class StageBlocks(Protocol):
    """What surrounds the actions of a stage whose state is sharded (`sharded_stage.StageState`)."""

    def forward(self) -> AbstractContextManager[None]:
        """Surround a forward."""
        ...

    def backward(self, *, defers: bool) -> AbstractContextManager[None]:
        """Surround a backward, or with `defers` an I."""
        ...

    def surround(self, works: list[DeferredWork]) -> None:
        """Surround each work of a W."""
        ...

    def end_weights(self) -> None:
        """End a W."""
        ...


class TorchStage(PipelineStage):
    """Stage `index` of a pipeline, on `device`. Methods name microbatches by number."""

    def __init__(
        self,
        program: StageProgram,
        index: int,
        num_stages: int,
        num_microbatches: int,
        device: torch.device,
        group: distributed.ProcessGroup,
        host: HostStash | None = None,
    ) -> None:
        """`host` is the host memory for the stashes of offloaded layers.

        `group` has this rank only, because torch refuses groups with more ranks than stages. The
        executor sends and receives, so torch needs no peers.
        """
        super().__init__(
            ByName(program),
            index,
            num_stages,
            device,
            input_args=examples(program.received_meta),
            output_args=examples(program.output_meta),
            group=group,
        )
        self.program = program
        self._host = host
        self.has_backward = True
        self.chunks = num_microbatches
        self._arrived: dict[int, tuple[torch.Tensor, ...]] = {}
        self._waiting: dict[int, _Waiting] = {}
        self._deferred: dict[int, list[DeferredWork]] = {}
        self.lends: Collection[int] = ()
        """Microbatches whose stash leaves this rank for a while."""
        self.movable: dict[int, MovableStash] = {}
        """Their stash, from their forwards until it leaves."""
        self.held: Collection[str] = ()
        """Names of outputs that stay until their backward is done (`held` of a plan's stage)."""
        self.state: StageBlocks | None = None
        """Gathers weights and scatters gradients, where the rank's state is sharded."""
        self.use_varies = False
        """Whether each microbatch may use other weights and values."""
        self.made: Made | None = None
        """Told about each parameter whose gradient a deferred operation added to."""
        self._fix_metadata()

    def forward(
        self, microbatch: int, received: Sequence[torch.Tensor], leaves: Leaves
    ) -> tuple[torch.Tensor, ...]:
        """Run one microbatch forward; returns the outputs, detached from autograd."""
        for tensor, meta in zip(received, self.program.received_meta, strict=True):
            tensor.requires_grad_(meta.requires_grad)
        self._arrived[microbatch] = given = tuple(received)
        seeded_draws.starts(microbatch)
        inputs = {name: leaves[name] for name in self.program.inputs}
        movable = self._new_movable(microbatch, inputs)
        with ExitStack() as around:
            if self._host:
                around.enter_context(self._host.forward(microbatch))
            if movable is not None:
                around.enter_context(movable)
            if self.state is not None:
                around.enter_context(self.state.forward())
            outputs = self.forward_one_chunk(microbatch, (), inputs)
        self.output_chunks.clear()
        self.fwd_cache.clear()
        loss = _Loss.of(outputs[0]) if self.is_last else None
        edges = () if self.is_last else _edges(outputs, self.program.output_meta)
        names = zip(self.program.outputs, outputs, strict=True)
        held = tuple(output.detach() for name, output in names if name in self.held)
        self._waiting[microbatch] = _Waiting(given, edges, loss, held)
        if movable is not None:
            movable.keep((*given, *held))
        return tuple(output.detach() for output in outputs)

    def backward(
        self,
        microbatch: int,
        gradients: Sequence[torch.Tensor],
        loss_scale: float,
        *,
        defers: bool = False,
    ) -> tuple[torch.Tensor, ...]:
        """Run one microbatch backward; adds to each parameter's ``grad``.

        `gradients` are for the outputs that require gradients, in order. The last stage needs none,
        and multiplies its loss by `loss_scale`. Returns gradients for the received tensors that
        require gradients. Where nothing depends on the tensor they are zero, or with `use_varies`
        `no_gradient`. With `defers`, weight gradients that can be deferred wait for `weight_backward`.
        """
        metas = self.program.received_meta
        seeded_draws.starts(microbatch, is_backward=True)
        with ExitStack() as around:
            if self._host:
                around.enter_context(self._host.backward(microbatch))
            if self.state is not None:
                around.enter_context(self.state.backward(defers=defers))
            if defers:
                around.enter_context(defer(self._deferred.setdefault(microbatch, [])))
            of_received = self._backward(microbatch, gradients, loss_scale)
        nothing = no_gradient if self.use_varies else _zeros
        return tuple(
            nothing(meta.shape, meta.dtype, self.device) if grad is None else grad
            for grad, meta in zip(of_received, metas, strict=True)
            if meta.requires_grad
        )

    def weight_backward(self, microbatch: int) -> None:
        """Compute the weight gradients that `backward` deferred; adds to each ``grad``."""
        works = self._deferred.pop(microbatch)
        if self.state is None:
            run_deferred(works, self.made)
            return
        self.state.surround(works)
        run_deferred(works)
        self.state.end_weights()

    def forget(self, microbatch: int) -> None:
        """Drop what a forward keeps for its backward, where none follows."""
        self._waiting.pop(microbatch)

    def _new_movable(self, microbatch: int, inputs: Leaves) -> MovableStash | None:
        """A record of the microbatch's stash; None where it stays."""
        if microbatch not in self.lends:
            return None
        module = self.program.module
        staying = (*module.parameters(), *module.buffers(), *inputs.values())
        movable = self.movable[microbatch] = MovableStash(staying, self.device)
        return movable

    def _backward(
        self, microbatch: int, gradients: Sequence[torch.Tensor], loss_scale: float
    ) -> Sequence[torch.Tensor | None]:
        received, edges, loss, _held = self._waiting.pop(microbatch)
        # An output without an edge depends on nothing that is trained.
        pairs = zip(edges, gradients, strict=False)
        roots = [
            (edge, gradient)
            for edge, gradient in pairs
            if edge is not None and not (self.use_varies and is_no_gradient(gradient))
        ]
        if loss is not None:
            own = torch.full(loss.shape, loss_scale, dtype=loss.dtype, device=self.device)
            torch.autograd.backward([loss.edge], [own])
        elif roots:
            torch.autograd.backward([edge for edge, _ in roots], [given for _, given in roots])
        of_received = [tensor.grad for tensor in received]
        for tensor in received:
            tensor.grad = None
        return of_received

    def _retrieve_recv_activations(self, fwd_chunk_id: int) -> tuple[torch.Tensor, ...]:
        return self._arrived.pop(fwd_chunk_id)

    def _fix_metadata(self) -> None:
        """Tell torch that all shapes are known.

        Torch would otherwise run the stage on uninitialised memory, which spoils BatchNorm's
        statistics.
        """
        known = getattr(self, "_user_meta", None)
        if known is not None:
            self._stage_meta = known
        else:  # Before 2.12 the first stage checks positional arguments, and here it has none.
            self.args_recv_info[0] = ()


def stage_parameters(program: StageProgram) -> dict[str, torch.nn.Parameter]:
    """The stage's parameters by the user's names; a tied parameter has its first name."""
    found = dict(program.module.named_parameters(remove_duplicate=False))
    return {name: found[name] for name in program.parameters}


def stage_buffers(program: StageProgram) -> dict[str, torch.Tensor]:
    """The stage's buffers by the user's names."""
    found = dict(program.module.named_buffers(remove_duplicate=False))
    return {name: found[name] for name in program.buffers}


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    return torch.zeros(shape, dtype=dtype, device=device)


def examples(metas: Sequence[TensorMeta]) -> tuple[torch.Tensor, ...]:
    """Tensors on the meta device with the shapes, dtypes and gradient flags that torch asks for."""
    return tuple(
        torch.empty(meta.shape, dtype=meta.dtype, device="meta").requires_grad_(meta.requires_grad)
        for meta in metas
    )


class ByName(nn.Module):
    """Calls a stage's module with received tensors by position and batch tensors by name."""

    def __init__(self, program: StageProgram) -> None:
        super().__init__()
        self.module = program.module
        self.inputs = program.inputs
        self._autocast = program.autocast

    def forward(self, *received: torch.Tensor, **leaves: torch.Tensor) -> tuple[torch.Tensor, ...]:
        with entered(self._autocast):
            return self.module(*received, *(self.leaf(leaves, name) for name in self.inputs))

    def leaf(self, leaves: Mapping[str, torch.Tensor], name: str) -> torch.Tensor:
        """The batch tensor called `name`."""
        return leaves[name]


def _edges(
    outputs: Sequence[torch.Tensor], metas: Sequence[TensorMeta]
) -> tuple[GradientEdge | None, ...]:
    """The places in autograd's graph of the outputs for which gradients come back."""
    return tuple(
        get_gradient_edge(output) if output.requires_grad else None
        for output, meta in zip(outputs, metas, strict=True)
        if meta.requires_grad
    )
