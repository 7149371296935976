"""Functions for a pool of ranks that run local graphs over real collectives."""

import gc

import torch
from torch import distributed

from autopart.runtime.capture.capture import Captured
from autopart.runtime.capture.stage_modules import split_stages
from autopart.runtime.sharding.groups import ProcessRanks, registered
from autopart.runtime.sharding.local_graph import GROUP
from autopart.runtime.sharding.local_model import local_model, whole_tensor
from tests.support.runtime.sharded_models import Case, known_model


def errors(rank: int, model: str, sequence_parallel: bool, num_stages: int) -> tuple[float, float]:
    """The largest relative differences of loss and gradients from the plain captured graph.

    The graph runs whole, or as stages one after another.
    """
    case = known_model(model)
    loss, wanted = _plain(case)
    degree = distributed.get_world_size()
    sharded = case.sharded(degree, sequence_parallel=sequence_parallel)
    local = local_model(sharded, rank)
    group = distributed.group.WORLD
    assert group is not None
    with registered(GROUP, ProcessRanks(group)):
        own = _in_stages(local, case, num_stages)
        own.backward()
    worst = 0.0
    for name, gradient in wanted.items():
        parameter = local.module.get_parameter(name)
        mine = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        found = [torch.empty_like(mine) for _ in range(degree)]
        distributed.all_gather(found, mine.contiguous())
        together = whole_tensor(sharded, name, found, is_gradient=True)
        scale = max(float(gradient.abs().max()), 1e-3 * max(map(_largest, wanted.values())))
        worst = max(worst, _largest(together - gradient) / scale)
    gc.collect()
    return abs(float(own.detach() - loss)) / float(loss), worst


def _largest(tensor: torch.Tensor) -> float:
    return float(tensor.abs().max())


def _plain(case: Case) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    module = case.captured.module
    module.zero_grad()
    loss = module(*case.leaves)
    loss.backward()
    named = module.named_parameters()
    found = {name: p.grad.clone() for name, p in named if p.grad is not None}
    module.zero_grad()
    return loss.detach(), found


def _in_stages(local: Captured, case: Case, num_stages: int) -> torch.Tensor:
    names = [layer.name for layer in local.layers]
    ends = [len(names) * (s + 1) // num_stages for s in range(num_stages)]
    layers = [names[a:b] for a, b in zip([0, *ends], ends, strict=False)]
    leaves = dict(zip([leaf.name for leaf in local.inputs], case.leaves, strict=True))
    received: tuple[torch.Tensor, ...] = ()
    for stage in split_stages(local, layers):
        received = stage.module(*received, *(leaves[name] for name in stage.inputs))
        shapes = [tuple(x.shape) for x in received]
        assert shapes == [meta.shape for meta in stage.output_meta]
    return received[0]
