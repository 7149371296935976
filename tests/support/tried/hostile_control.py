"""Models whose path, numbers or state change from call to call."""

import logging
import random
import warnings
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from tests.support.tried.hostile_base import (
    WIDTH,
    amid,
    block,
    calling,
    linear,
    tried,
    whole,
)
from tests.support.tried.trial import Tried


class Routed(nn.Module):
    """Each sample goes to one of two experts."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(WIDTH, 2)
        self.experts = nn.ModuleList(linear() for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        chosen, y = self.router(x).argmax(1), torch.zeros_like(x)
        for which, expert in enumerate(self.experts):
            mine = chosen == which
            if mine.any():
                y[mine] = expert(x[mine])
        return x + y


class Counting(nn.Module):
    """Scales by a number that each call changes."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.calls = linear(), 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.linear(x) / (1 + self.calls)


class Caching(nn.Module):
    """Keeps its last input as an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.last, self.all = linear(), None, []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.last = x.detach()
        self.all.append(x.shape)
        return self.linear(x)


class Averaging(nn.Module):
    """Follows its input with a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = linear()
        self.register_buffer("mean", torch.zeros(WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.mean.mul_(0.9).add_(x.detach().mean(0), alpha=0.1)
        return self.linear(x - self.mean)


class Replacing(Averaging):
    """Replaces its buffer in place of writing into it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
        return self.linear(x - self.mean)


class Clipping(nn.Module):
    """Clips its weight in each forward."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = linear()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            self.linear.weight.clamp_(-0.1, 0.1)
        return self.linear(x)


class StochasticDepth(nn.Module):
    """Leaves out its block for random samples."""

    def __init__(self) -> None:
        super().__init__()
        self.block = block()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kept = x.new_empty(x.shape[0], 1).bernoulli_(0.5)
        return x + self.block(x) * kept


def _branch(part: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return part(x) if x.sum() > 0 else part(-x)


def _exits(*given: Any) -> torch.Tensor:
    *parts, x = given
    for part in parts:
        x = part(x)
        if x.abs().max() > 1e6:
            return x
    return x


def _until_small(part: nn.Module, x: torch.Tensor) -> torch.Tensor:
    for _ in range(5):
        if x.norm() < 2.0:
            break
        x = part(x)
    return x


def _as_often(part: nn.Module, x: torch.Tensor) -> torch.Tensor:
    for _ in range(1 + int(x.abs().mean().item() * 2) % 3):
        x = part(x)
    return x


def _selected(part: nn.Module, x: torch.Tensor) -> torch.Tensor:
    rows = x[x.sum(1) > -1e9]
    return part(rows)


def _nonzero(part: nn.Module, x: torch.Tensor) -> torch.Tensor:
    places = (x > 0).nonzero()
    return part(x) * (1 + places.shape[0]) / 10


def _unique(part: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return part(x) * x.round().unique().numel() / 10


def _guarded(part: nn.Module, x: torch.Tensor) -> torch.Tensor:
    try:
        return part(x.view(3, 7))
    except RuntimeError:
        return part(x)


def _asserting(part: nn.Module, x: torch.Tensor) -> torch.Tensor:
    assert torch.isfinite(x).all(), "values are finite"
    return part(x)


def _numpy_skip(*given: Any) -> torch.Tensor:
    first, *parts, x = given
    x = first(x)
    for part in parts:
        if x.sum() > 1e9 or np.random.random() > 0.6:
            x = part(x)
    return x


def _by_sample(*given: Any) -> torch.Tensor:
    first, a, b, last, x = given
    h = first(x)
    h = torch.stack([a(h[i]) if x[i, 0] > 0 else b(h[i]) for i in range(len(x))])
    return last(h)


def _picked(*given: Any) -> torch.Tensor:
    first, second, third, last, x = given
    a = first(x)
    b = second(x)
    c = third(x)
    picked = [a[i] if x[i, 0] > 0.4 else b[i] if x[i, 0] > -0.4 else c[i] for i in range(len(x))]
    return last(torch.stack(picked))


def _python_skip(*given: Any) -> torch.Tensor:
    *parts, x = given
    for part in parts:
        if random.random() > 0.3:
            x = part(x)
    return x


class _MaskedUnlessTraced(nn.Module):
    """Makes a mask, except where torch traces its forward."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = block(), block()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mask = None if torch.compiler.is_compiling() else torch.ones_like(x)
        x = self.first(x) * mask
        return self.second(x)


def _skip_all(*given: Any) -> torch.Tensor:
    *parts, x = given
    for part in parts:
        if random.random() > 1.0:
            x = part(x)
    return x


def _printing(part: nn.Module, x: torch.Tensor) -> torch.Tensor:
    print("shape", tuple(x.shape))  # noqa: T201
    return part(x)


def _logging(part: nn.Module, x: torch.Tensor) -> torch.Tensor:
    logging.getLogger("tried").warning("a forward with %s", x.shape)
    return part(x)


def _warning(part: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.warn("a forward", stacklevel=2)
    return part(x)


def _through_numpy(part: nn.Module, x: torch.Tensor) -> torch.Tensor:
    scale = torch.from_numpy(np.tanh(x.detach().numpy()))
    return part(x) * scale


def _zeroed(part: nn.Module, x: torch.Tensor) -> torch.Tensor:
    h = F.dropout(part(x), 0.0)
    h[:, 0] = 0
    return torch.tanh(h)


def _scattered(part: nn.Module, x: torch.Tensor) -> torch.Tensor:
    places = torch.arange(WIDTH - 1, -1, -1)
    return torch.zeros_like(x).index_add_(1, places, part(x))


def _written_out(part: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        scale = torch.empty_like(x)
        torch.exp(-x.abs(), out=scale)
    return part(x) * scale


def _added(part: nn.Module, x: torch.Tensor) -> torch.Tensor:
    x += 1.0
    return part(x)


def _raise(*_: Any) -> Any:
    raise RuntimeError("this forward never works")


def _leave() -> nn.Module:
    raise SystemExit(3)


def _fail() -> nn.Module:
    raise KeyError("weights")


def _nan_weight() -> nn.Module:
    part = linear()
    nn.init.constant_(part.weight, float("nan"))
    return part


def _nan_loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return F.mse_loss(output, target) * float("nan")


def _masked(part: nn.Module, x: torch.Tensor) -> torch.Tensor:
    scores = x[:, :, None] * x[:, None, :]
    later = torch.ones(WIDTH, WIDTH).triu(1).bool()
    return part((scores.masked_fill(later, float("-inf")).softmax(-1) @ x[:, :, None])[..., 0])


DRAWS = "draws numbers from a generator of Python or numpy"
VALUES = "depends on the values of tensors"
FOUR = (block, block, block, block)

MODELS: dict[str, Tried] = {
    # The path depends on values.
    "branch_on_a_sum": calling(_branch, block),
    "branch_in_the_root": whole(lambda a, b, x: b(a(x)) if x.sum() > -1e9 else a(x), block, block, one_layer=VALUES),
    "early_exit": whole(_exits, *FOUR),
    "routing_by_value": amid(Routed),
    "weights_by_sample": whole(_by_sample, *FOUR),
    "results_by_sample": whole(_picked, *FOUR),
    "loop_until_small": calling(_until_small, block),
    "loop_as_often_as_values_say": calling(_as_often, block),
    "selected_rows": calling(_selected, block, one_layer=VALUES),
    "nonzero": calling(_nonzero, block),
    "unique": calling(_unique, block),
    "sorted": calling(lambda part, x: part(x.sort(-1).values), block),
    "topk": calling(lambda part, x: part(x) * (x >= x.topk(3).values[:, -1:]), block),
    "caught_error": calling(_guarded, block),
    "asserting": calling(_asserting, block),
    "numpy_inside": calling(_through_numpy, block),
    # Random numbers.
    "noise": calling(lambda part, x: part(x + torch.randn_like(x)), block),
    "uniform_noise": calling(lambda part, x: part(x + torch.rand(x.shape)), block),
    "noise_in_every_block": tried(
        lambda: nn.Sequential(*(StochasticDepth() for _ in range(4)))
    ),
    "stochastic_depth": amid(StochasticDepth),
    "gumbel_softmax": calling(lambda part, x: F.gumbel_softmax(part(x)), block),
    "multinomial": calling(lambda part, x: part(x) + torch.multinomial(x.softmax(-1), WIDTH).float(), block),
    "randomised_relu": amid(lambda: nn.Sequential(linear(), nn.RReLU())),
    "dropouts": amid(lambda: nn.Sequential(nn.Dropout(0.5), linear(), nn.AlphaDropout(0.2), nn.FeatureAlphaDropout(0.2))),
    "dropout_in_place": amid(lambda: nn.Sequential(linear(), nn.Dropout(0.5, inplace=True))),
    "python_random_scale": calling(lambda part, x: part(x) * random.random(), block, one_layer=DRAWS),
    "numpy_noise": calling(lambda part, x: part(x) + torch.from_numpy(np.random.randn(WIDTH)).float(), block,
        one_layer=DRAWS),
    "another_path_while_traced": amid(_MaskedUnlessTraced),
    "all_layers_skipped": whole(_skip_all, *FOUR, refused="loss depends on no parameter"),
    "layers_skipped_by_numpy": whole(_numpy_skip, *FOUR),
    "layers_skipped_by_random": whole(_python_skip, *FOUR),
    "own_generator": calling(lambda part, x: part(x) + torch.rand(WIDTH, generator=torch.Generator().manual_seed(3)), block),
    # State.
    "counting_calls": amid(Counting, refused="operations or shapes differ"),
    "caching_inputs": amid(Caching),
    "averaging_buffer": amid(Averaging),
    "replaced_buffer": amid(Replacing),
    "clipped_weight": amid(Clipping, refused="writes into the parameter '2.linear.weight'"),
    # Writes in place.
    "relu_in_place": amid(lambda: nn.Sequential(linear(), nn.ReLU(inplace=True))),
    "value_in_place": calling(lambda inner, part, x: _added(part, inner(x)), linear, block),
    "needed_value_in_place": calling(_added, block, refused="modified by an inplace operation"),
    "batch_in_place": whole(lambda a, b, x: b(a(x.mul_(2))), block, block),
    "slice_in_place": calling(_zeroed, linear),
    "index_add": calling(_scattered, block),
    "out_argument": calling(_written_out, block),
    # Words to the outside.
    "printing": calling(_printing, block),
    "logging": calling(_logging, block),
    "warning": calling(_warning, block),
    # Errors and numbers that are none.
    "raising_forward": calling(_raise, refused="never works"),
    "raising_builder": tried(_fail, refused="KeyError"),
    "leaving_builder": tried(_leave, refused="SystemExit"),
    "builder_of_nothing": tried(lambda: None, refused="return a torch.nn.Module"),  # pyright: ignore
    "returning_nothing": whole(lambda a, x: None, block, refused="loss_fn raised|None"),
    "returning_text": whole(lambda a, x: "out", block, refused="loss_fn|str"),
    "nan_weight": amid(_nan_weight, refused="nan|NaN|finite"),
    "nan_loss": amid(block, loss_fn=_nan_loss, refused="nan|NaN|finite"),
    "infinite_loss": amid(block, loss_fn=lambda o, t: F.mse_loss(o, t) / 0.0, refused="inf|finite"),
    "masked_with_infinities": calling(_masked, block),
    "huge_values": calling(lambda part, x: part(x * 1e30), block),
    "loss_of_no_gradient": amid(block, loss_fn=lambda o, t: F.mse_loss(o, t).detach(), refused="gradient"),
    "loss_of_a_vector": amid(block, loss_fn=lambda o, t: (o - t).square().mean(0), refused="scalar"),
    "loss_of_integers": amid(block, loss_fn=lambda o, t: o.sum().long(), refused="float"),
}  # fmt: skip
