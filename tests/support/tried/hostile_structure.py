"""Models with odd parts, weights, inputs, outputs and dtypes."""

import dataclasses
import typing
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, prune
from torch.utils import _pytree as pytree

from tests.support.tried.hostile_base import (
    WIDTH,
    Calls,
    amid,
    block,
    calling,
    linear,
    tried,
    whole,
)
from tests.support.tried.trial import Tried

FOUR = (block, block, block, block)


@dataclasses.dataclass
class Answer:
    """An output that no container of torch is."""

    mean: torch.Tensor
    words: str = "mean"


class Pair(typing.NamedTuple):
    """Two inputs with names."""

    left: torch.Tensor
    right: torch.Tensor


@dataclasses.dataclass
class Known:
    """A batch that torch knows as a container."""

    x: torch.Tensor
    scale: float


pytree.register_dataclass(Known)


class Marked(torch.Tensor):
    """A subclass of tensors without any difference."""


class Symmetric(nn.Module):
    """The symmetric part of a matrix."""

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight.triu() + weight.triu(1).transpose(-1, -2)


class Recurrent(nn.Module):
    """A recurrent net over packed sequences."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.LSTM(WIDTH, WIDTH, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        steps = x[:, None].expand(-1, 3, -1)
        packed = nn.utils.rnn.pack_padded_sequence(
            steps, torch.tensor([3] + [2] * (len(x) - 1)), batch_first=True, enforce_sorted=False
        )
        return nn.utils.rnn.pad_packed_sequence(self.net(packed)[0], batch_first=True)[0][:, 0]


class Sequence(nn.Module):
    """A recurrent net whose last step is the output."""

    def __init__(self, net: nn.Module, bent: int = 1) -> None:
        super().__init__()
        self.net, self.out = net, nn.Linear(bent * WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.net(x[:, None].expand(-1, 3, -1))[0][:, -1])


class Attending(nn.Module):
    """Attention that also returns its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        steps = x[:, None].expand(-1, 3, -1)
        y, weights = self.attention(steps, steps, steps, need_weights=True)
        return y[:, 0] * weights.mean()


class Odd(nn.Module):
    """Parts with names that Python or torch use themselves."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("loss", "model", "größe", "0", "self"):
            self.add_module(name, block())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for part in self.children():
            x = part(x)
        return x


class Reserved(Odd):
    """One more part, with a name that a graph module cannot have."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.add_module(name, block())


class Listed(nn.Module):
    """Weights in a list and in a dict of parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.many = nn.ParameterList(torch.randn(WIDTH, WIDTH) / 3 for _ in range(3))
        self.named = nn.ParameterDict({"scale": torch.ones(WIDTH), "shift": torch.zeros(WIDTH)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for weight in self.many:
            x = torch.tanh(x @ weight)
        return x * self.named["scale"] + self.named["shift"]


class Flat(nn.Module):
    """Weights that are views of one flat parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.flat = nn.Parameter(torch.randn(2 * WIDTH * WIDTH) / 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, second = self.flat.view(2, WIDTH, WIDTH)
        return torch.tanh(x @ first) @ second


class Complex(nn.Module):
    """A complex weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(WIDTH, WIDTH, dtype=torch.complex64) / 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x.to(torch.complex64) @ self.weight).abs()


class HalfBody(nn.Module):
    """A body in bfloat16 and a head in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(*(block() for _ in range(4))).to(torch.bfloat16)
        self.head = linear()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x.to(torch.bfloat16)).float())


class Stubs(nn.Module):
    """Stubs for a quantization to come."""

    def __init__(self) -> None:
        super().__init__()
        quantization = torch.ao.quantization
        self.enter, self.leave = quantization.QuantStub(), quantization.DeQuantStub()
        self.inner = block()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.leave(self.inner(self.enter(x)))


class FakeQuantized(nn.Module):
    """A weight that is rounded in each forward."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = linear()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = torch.fake_quantize_per_tensor_affine(self.inner.weight, 0.05, 0, -8, 7)
        return F.linear(x, weight, self.inner.bias)


class Generating(nn.Module):
    """A forward that yields."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList(block() for _ in range(4))

    def _steps(self, x: torch.Tensor) -> Iterator[torch.Tensor]:
        for part in self.parts:
            x = part(x)
            yield x

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack(list(self._steps(x))).mean(0)


def _tied() -> nn.Module:
    parts = [block() for _ in range(4)]
    for part in parts[1:3]:
        part[0].weight = parts[0][0].weight  # pyright: ignore
    return nn.Sequential(*parts)


def _tied_bias() -> nn.Module:
    parts = [block() for _ in range(4)]
    parts[3][0].bias = parts[0][0].bias  # pyright: ignore
    return nn.Sequential(*parts)


def _tied_turned(first: nn.Module, *rest: Any) -> torch.Tensor:
    *parts, x = rest
    y = first(x)
    for part in parts:
        y = part(y)
    return y @ first[0].weight.t()  # pyright: ignore


def _repeated(part: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return part(part(part(x)))


def _one_for_all() -> nn.Module:
    part = block()
    return nn.Sequential(part, part, part, part)


def _frozen(first: int, last: int) -> Any:
    def build() -> nn.Module:
        parts = nn.Sequential(*(block() for _ in range(4)))
        for part in parts[first:last]:
            part.requires_grad_(False)
        return parts

    return build


def _evaluated() -> nn.Module:
    norm = nn.BatchNorm1d(WIDTH)
    norm.running_mean += 1.0  # pyright: ignore
    return norm.eval()


def _normed(how: Any) -> Any:
    return lambda: nn.Sequential(how(linear()), nn.Tanh())


def _pruned() -> nn.Module:
    part = linear()
    prune.l1_unstructured(part, "weight", 0.5)
    return part


def _parametrized() -> nn.Module:
    part = linear()
    parametrize.register_parametrization(part, "weight", Symmetric())
    return part


def _deep() -> nn.Module:
    part = linear()
    for _ in range(40):
        part = nn.Sequential(part)
    return part


def _unused() -> nn.Module:
    part = block()
    part.register_parameter("idle", nn.Parameter(torch.ones(3)))
    return part


def _marked() -> nn.Module:
    part = linear()
    part.weight = nn.Parameter(part.weight.detach().as_subclass(Marked))
    return part


def _symbolic() -> nn.Module:
    return torch.fx.symbolic_trace(nn.Sequential(*(block() for _ in range(4))))


def _copied(part: nn.Module, x: torch.Tensor) -> torch.Tensor:
    state = {name: value * 2 for name, value in part.named_parameters()}
    return torch.func.functional_call(part, state, (x,))


def _spectrum(part: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return part(torch.fft.irfft(torch.fft.rfft(x) * 1j, n=WIDTH))


def _autocast(part: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        y = part(x)
    return y.float()


def _in_half(part: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return part(x.double().square().float())


def _mask_crosses(a: nn.Module, b: nn.Module, c: nn.Module, x: torch.Tensor) -> torch.Tensor:
    h = a(x)
    positive, best = h > 0, h.argmax(-1, keepdim=True)
    h = c(b(h))
    return torch.where(positive, h, -h) + h.gather(-1, best)


def _words(*parts: nn.Module, x: Any, how: str, times: int, mask: Any) -> torch.Tensor:
    for part in parts:
        x = part(x) * times if how == "scaled" else part(x)
    return x if mask is None else x * mask


def _listed(*given: Any) -> torch.Tensor:
    *parts, several = given
    x = torch.stack(several).sum(0)
    for part in parts:
        x = part(x)
    return x


def _nested(*given: Any) -> torch.Tensor:
    *parts, nested = given
    (x, more), inner = nested
    x = x + more["a"] + inner[0][0]
    for part in parts:
        x = part(x)
    return x


def _through(*given: Any) -> torch.Tensor:
    *parts, x = given
    for part in parts:
        x = part(x)
    return x


def _as(container: Any) -> Any:
    return lambda *given: container(_through(*given))


def _pair(*given: Any) -> torch.Tensor:
    *parts, pair = given
    return _through(*parts, pair.left + pair.right)


def _known(*given: Any) -> torch.Tensor:
    *parts, known = given
    return _through(*parts, known.x * known.scale)


def _sum_of_sequences(*given: Any) -> torch.Tensor:
    *parts, packed = given
    return _through(*parts, nn.utils.rnn.pad_packed_sequence(packed)[0].sum(0))


def _packed(count: int) -> Any:
    return (nn.utils.rnn.pack_sequence([torch.randn(3, WIDTH) for _ in range(count)]),)


def _x(count: int) -> torch.Tensor:
    return torch.randn(count, WIDTH)


def _ragged(*given: Any) -> torch.Tensor:
    *parts, x = given
    rows = torch.nested.nested_tensor([row[None] for row in x], layout=torch.jagged)
    return _through(*parts, rows.values())


def _own_loss(*given: Any) -> dict[str, Any]:
    *parts, x, y = given
    return {"loss": F.mse_loss(_through(*parts, x), y), "words": ("a", 1, None)}


MODELS: dict[str, Tried] = {
    # Weights.
    "tied_thrice": tried(_tied),
    "tied_bias": tried(_tied_bias),
    "tied_and_turned": whole(_tied_turned, *FOUR),
    "called_three_times": calling(_repeated, block),
    "one_block_for_all": tried(_one_for_all),
    "lists_of_parameters": amid(Listed),
    "flat_parameter": amid(Flat),
    "frozen_first_half": tried(_frozen(0, 2)),
    "frozen_last_half": tried(_frozen(2, 4)),
    "frozen_all": tried(_frozen(0, 4), refused="requires a gradient"),
    "no_parameters": tried(lambda: nn.Sequential(nn.Tanh(), nn.ReLU()), refused="requires a gradient"),
    "unused_parameter": amid(_unused),
    "lazy_linear": tried(lambda: nn.Sequential(*(nn.Sequential(nn.LazyLinear(WIDTH), nn.Tanh()) for _ in range(4)))),
    "lazy_norm": amid(nn.LazyBatchNorm1d),
    "weight_norm": amid(_normed(parametrizations.weight_norm)),
    "spectral_norm": amid(_normed(parametrizations.spectral_norm)),
    "old_spectral_norm": amid(_normed(nn.utils.spectral_norm)),
    "orthogonal": amid(_normed(parametrizations.orthogonal)),
    "parametrized": amid(_parametrized),
    "pruned": amid(_pruned),
    "marked_weight": amid(_marked),
    # Parts.
    "batch_norm": amid(lambda: nn.BatchNorm1d(WIDTH)),
    "batch_norm_in_eval": amid(_evaluated),
    "instance_norm": amid(lambda: nn.Sequential(nn.Unflatten(1, (2, 4)), nn.InstanceNorm1d(2, affine=True), nn.Flatten())),
    "quantization_stubs": amid(Stubs),
    "rounded_weights": amid(FakeQuantized),
    "data_parallel": amid(lambda: nn.DataParallel(block())),
    "data_parallel_root": tried(lambda: nn.DataParallel(nn.Sequential(*(block() for _ in range(4))))),
    "scripted_part": amid(lambda: torch.jit.script(block()), refused="without torch.jit.script"),
    "scripted_root": tried(lambda: torch.jit.script(nn.Sequential(*(block() for _ in range(4)))),
        refused="without torch.jit.script"),
    "traced_part": amid(lambda: torch.jit.trace(block(), (torch.zeros(2, WIDTH),))),
    "graph_module": tried(_symbolic),
    "deep_nesting": amid(_deep),
    "sixty_layers": tried(lambda: nn.Sequential(*(linear() for _ in range(60)))),
    "odd_names": tried(Odd),
    "reserved_name": tried(lambda: Reserved("graph"), refused="graph modules use themselves .* rename it"),
    "name_of_python": tried(lambda: Reserved("class"), refused="'class' is a word of Python .* rename it"),
    "closures": calling(lambda *parts: in_turn(parts), block, block),
    "functional_call": calling(_copied, block),
    "module_dict": tried(lambda: Calls(lambda d, x: d["b"](d["a"](x)), nn.ModuleDict({"a": block(), "b": block()}))),
    "lstm": amid(lambda: Sequence(nn.LSTM(WIDTH, WIDTH, 2, batch_first=True))),
    "lstm_with_dropout": amid(lambda: Sequence(nn.LSTM(WIDTH, WIDTH, 2, batch_first=True, dropout=0.5))),
    "gru_both_ways": amid(lambda: Sequence(nn.GRU(WIDTH, WIDTH, batch_first=True, bidirectional=True), 2)),
    "packed_inside": amid(Recurrent),
    "attention_with_weights": amid(Attending),
    "encoder_layers": tried(lambda: nn.Sequential(nn.Unflatten(1, (1, WIDTH)), nn.TransformerEncoder(
        nn.TransformerEncoderLayer(WIDTH, 2, 16, batch_first=True), 3), nn.Flatten())),
    # Dtypes.
    "half_body": tried(HalfBody),
    "double_inputs": whole(lambda a, b, x: b(a(x.float())), block, block, inputs=lambda n: (_x(n).double(),)),
    "all_double": tried(lambda: nn.Sequential(*(block() for _ in range(4))).double(), inputs=lambda n: (_x(n).double(),),
        target=lambda n: _x(n).double()),
    "complex_weight": amid(Complex),
    "complex_inside": calling(_spectrum, block),
    "autocast_inside": calling(_autocast, block),
    "double_inside": calling(_in_half, block),
    "masks_cross": whole(_mask_crosses, block, block, block),
    # Inputs.
    "words_as_inputs": whole(_words, *FOUR, inputs=lambda n: {"x": _x(n), "how": "scaled", "times": 2, "mask": None}),
    "dict_of_inputs": whole(lambda a, b, **named: b(a(named["x"])) * named["y"], block, block,
        inputs=lambda n: {"x": _x(n), "y": _x(n), "kind": "any", "none": None, "flag": True}),
    "list_of_tensors": whole(_listed, *FOUR, inputs=lambda n: ([_x(n), _x(n), _x(n)],)),
    "nested_inputs": whole(_nested, *FOUR, inputs=lambda n: (((_x(n), {"a": _x(n)}), [[_x(n)]]),)),
    "named_pair": whole(_pair, *FOUR, inputs=lambda n: (Pair(_x(n), _x(n)),)),
    "known_dataclass": whole(_known, *FOUR, inputs=lambda n: (Known(_x(n), 2.0),)),
    "unknown_dataclass": whole(lambda a, b, answer: b(a(answer.mean)), block, block,
        inputs=lambda n: (Answer(_x(n)),), refused="no tensor"),
    "packed_input": whole(_sum_of_sequences, *FOUR, inputs=_packed),
    "sparse_input": whole(lambda a, b, x: b(a(x.to_dense())), block, block, inputs=lambda n: (_x(n).to_sparse(),),
        refused="layout sparse_coo"),
    "no_tensor": whole(lambda a, x: a(torch.ones(2, WIDTH) * x), block, inputs=lambda n: (3.0,), refused="no tensor"),
    "set_of_inputs": whole(_through, *FOUR, inputs=lambda n: {_x(n)}, refused="return a tuple"),
    "empty_inputs": whole(_through, *FOUR, inputs=lambda n: (), refused="no tensor"),
    "same_tensor_twice": whole(lambda a, b, x, y: b(a(x)) + y, block, block, inputs=lambda n: (_x(n),) * 2),
    "input_with_a_gradient": whole(_through, *FOUR, inputs=lambda n: (_x(n).requires_grad_(),)),
    "jagged_inside": whole(_ragged, *FOUR),
    # Outputs.
    "dict_output": whole(_as(lambda y: {"mean": y}), *FOUR, loss_fn=lambda o, t: F.mse_loss(o["mean"], t)),
    "ordered_dict_output": whole(_as(lambda y: OrderedDict(mean=y)), *FOUR, loss_fn=lambda o, t: F.mse_loss(o["mean"], t)),
    "dataclass_output": whole(_as(Answer), *FOUR, loss_fn=lambda o, t: F.mse_loss(o.mean, t)),
    "nested_output": whole(_as(lambda y: ((y, [y * 2]), None)), *FOUR, loss_fn=lambda o, t: F.mse_loss(o[0][1][0], t)),
    "generator_inside": tried(Generating),
    "generator_output": whole(_as(lambda y: (one for one in (y, y))), *FOUR, loss_fn=lambda o, t: F.mse_loss(next(o), t)),
    "own_loss": whole(_own_loss, *FOUR, inputs=lambda n: (_x(n), _x(n)), target=None, loss_fn=None),
    "own_tuple_loss": whole(lambda *given: (_own_loss(*given)["loss"], "more"), *FOUR, inputs=lambda n: (_x(n), _x(n)),
        target=None, loss_fn=None),
    "no_loss": whole(_through, *FOUR, target=None, loss_fn=None, refused="loss"),
    "nested_target": whole(_through, *FOUR, target=lambda n: {"y": (_x(n), "words")},
        loss_fn=lambda o, t: F.mse_loss(o, t["y"][0])),
}  # fmt: skip


def in_turn(given: Any) -> torch.Tensor:
    """The parts one after another, each inside a function of its own."""
    *parts, x = given
    for step in [lambda y, part=part: part(y) for part in parts]:
        x = step(x)
    return x
