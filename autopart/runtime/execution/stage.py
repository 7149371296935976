"""One stage on one rank: torch's `PipelineStage`, fed by us.

Torch keeps the forward's outputs until their backward, runs the backward over them and hands out
the gradients of what was received. What arrives and leaves is ours: torch would keep one receive
buffer for every microbatch for as long as the stage lives, a stage here is handed each message
when it is needed. Of torch's stage only what versions 2.10 to 2.13 agree on is used.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, nullcontext
from typing import cast

import torch
from torch import distributed, nn
from torch.distributed.pipelining import PipelineStage

from autopart.runtime.capture.autocast import entered
from autopart.runtime.capture.split import StageProgram, TensorMeta
from autopart.runtime.execution.offload import HostStash
from autopart.runtime.execution.weight_gradients import Deed, put_off, run_put_off

Leaves = Mapping[str, torch.Tensor]
"""The tensors of one microbatch by input name."""


class TorchStage(PipelineStage):
    """The stage `index` of a pipeline, on `device`; every microbatch is named by its number."""

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
        """`group` holds this rank alone: torch would refuse more ranks than stages, and the peers
        are not its business. Whoever waits for results sends and receives through the executor.
        `host` is where the program's offloaded layers keep their stash."""
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
        self._gradients: dict[int, tuple[torch.Tensor | None, ...]] = {}
        self._put_off: dict[int, list[Deed]] = {}
        self._fix_metadata()

    def forward(
        self, microbatch: int, received: Sequence[torch.Tensor], leaves: Leaves
    ) -> tuple[torch.Tensor, ...]:
        """Run one microbatch; gives the outputs, cut off from autograd."""
        for tensor, meta in zip(received, self.program.received_meta, strict=True):
            tensor.requires_grad_(meta.requires_grad)
        self._arrived[microbatch] = tuple(received)
        inputs = {name: leaves[name] for name in self.program.inputs}
        with self._host.forward(microbatch) if self._host else nullcontext():
            outputs = self.forward_one_chunk(microbatch, (), inputs)
        self.output_chunks.clear()
        return tuple(output.detach() for output in outputs)

    def backward(
        self,
        microbatch: int,
        gradients: Sequence[torch.Tensor],
        loss_scale: float,
        *,
        puts_off: bool = False,
    ) -> tuple[torch.Tensor, ...]:
        """Add the microbatch's gradients to the parameters' ``grad``.

        `gradients` belong to the outputs that require one, in their order; the last stage needs
        none and multiplies its loss by `loss_scale`. Gives the gradients of the received tensors
        that require one, zeros where nothing depends on them. With `puts_off`, what of the weights'
        gradients can wait does so until `weight_backward` is called.
        """
        metas = self.program.received_meta
        with ExitStack() as around:
            if self._host:
                around.enter_context(self._host.backward(microbatch))
            if puts_off:
                around.enter_context(put_off(self._put_off.setdefault(microbatch, [])))
            of_received = self._backward(microbatch, gradients, loss_scale)
        return tuple(
            torch.zeros(meta.shape, dtype=meta.dtype, device=self.device) if grad is None else grad
            for grad, meta in zip(of_received, metas, strict=True)
            if meta.requires_grad
        )

    def weight_backward(self, microbatch: int) -> None:
        """Add the gradients that `backward` has put off to the parameters' ``grad``."""
        run_put_off(self._put_off.pop(microbatch))

    def _backward(
        self, microbatch: int, gradients: Sequence[torch.Tensor], loss_scale: float
    ) -> Sequence[torch.Tensor | None]:
        num_received = len(self.program.received_meta)
        if self.is_last:
            (loss,) = cast(tuple[torch.Tensor], self.fwd_cache[microbatch][0])
            self.backward_one_chunk(microbatch, loss=loss * loss_scale)
        elif any(meta.requires_grad for meta in self.program.output_meta):
            self._gradients[microbatch] = _spread(gradients, self.program.output_meta)
            self.backward_one_chunk(microbatch)
        else:  # Nothing here is trained, and autograd has no backward of nothing.
            self.fwd_cache.pop(microbatch)
            return [None] * num_received
        return self.bwd_cache.pop(microbatch)[:num_received]

    def _retrieve_recv_activations(self, fwd_chunk_id: int) -> tuple[torch.Tensor, ...]:
        return self._arrived.pop(fwd_chunk_id)

    def _retrieve_recv_grads(self, bwd_chunk_id: int) -> tuple[torch.Tensor | None, ...]:
        return self._gradients.pop(bwd_chunk_id)

    def _fix_metadata(self) -> None:
        """Tell torch that shapes are known: a stage that is asked to find them out runs itself on
        uninitialised memory, which spoils BatchNorm's statistics."""
        known = getattr(self, "_user_meta", None)
        if known is not None:
            self._stage_meta = known
        else:  # Before 2.12: the first stage compares its positional arguments, of which it has none.
            self.args_recv_info[0] = ()


def stage_parameters(program: StageProgram) -> dict[str, torch.nn.Parameter]:
    """The stage's parameters by the user's names; a tied one has the first of its names."""
    found = dict(program.module.named_parameters(remove_duplicate=False))
    return {name: found[name] for name in program.parameters}


def stage_buffers(program: StageProgram) -> dict[str, torch.Tensor]:
    """The stage's buffers by the user's names."""
    found = dict(program.module.named_buffers(remove_duplicate=False))
    return {name: found[name] for name in program.buffers}


def examples(metas: Sequence[TensorMeta]) -> tuple[torch.Tensor, ...]:
    """Tensors without data that say what torch's stages ask: shape, dtype, whether trained."""
    return tuple(
        torch.empty(meta.shape, dtype=meta.dtype, device="meta").requires_grad_(meta.requires_grad)
        for meta in metas
    )


class ByName(nn.Module):
    """A stage's module that takes its batch tensors by name."""

    def __init__(self, program: StageProgram) -> None:
        super().__init__()
        self.module = program.module
        self.inputs = program.inputs
        self._autocast = program.autocast

    def forward(self, *received: torch.Tensor, **leaves: torch.Tensor) -> tuple[torch.Tensor, ...]:
        with entered(self._autocast):
            return self.module(*received, *(self.leaf(leaves, name) for name in self.inputs))

    def leaf(self, leaves: Mapping[str, torch.Tensor], name: str) -> torch.Tensor:
        """The batch tensor of a name, among those that the stage was called with."""
        return leaves[name]


def _spread(
    gradients: Sequence[torch.Tensor], metas: Sequence[TensorMeta]
) -> tuple[torch.Tensor | None, ...]:
    """One place for each output, None where it requires no gradient."""
    given = iter(gradients)
    return tuple(next(given) if meta.requires_grad else None for meta in metas)
