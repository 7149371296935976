"""Optimizers whose memory a plan predicts, built on torch's.

Parameters in 16 bits are stepped through float32 master copies, or directly if the plan has none.
With `ZeroSharding` a rank steps only its shards of shared parameters. Optimizer state of hosted
parameters stays in host memory. It is copied to the device for the step, one parameter after the
other.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import nn

from autopart.errors import UsageError
from autopart.runtime.transforms.host_copies import HostCopies
from autopart.runtime.update.weight_prediction import WeightPrediction
from autopart.runtime.update.zero_shards import HALF, Range, Shard, ZeroSharding

LEARNING_RATES = {"adamw": 1e-3, "sgd-momentum": 1e-2, "adafactor": 1e-2, "sgd": 1e-2}
"""Learning rates when the caller gives none; `records.training.MOMENTS` has the same keys."""

_NUM_GROUPS, _LEAST_GROUP_BYTES = 8, 1 << 16
"""A step handles shards in about 8 groups. Each has room for at least 64 KiB in master copies."""
_FLOAT32_BYTES = 4

_STATE_NAMES = {"adamw": ("exp_avg", "exp_avg_sq"), "sgd-momentum": ("momentum_buffer",), "sgd": ()}
"""Torch's names for optimizer state that has one value per element."""

NamedTensors = dict[str, torch.Tensor]

_NOTHING_SHARED = ZeroSharding(())
_MASTER = "master"


class _HostTensor(NamedTuple):
    """A tensor whose bytes are in host memory."""

    copy: torch.Tensor
    dtype: torch.dtype
    shape: torch.Size


class Optimizer:
    """Steps parameters and clears their gradients."""

    def __init__(
        self,
        name: str,
        parameters: Sequence[nn.Parameter],
        lr: float | None,
        *,
        sharding: ZeroSharding = _NOTHING_SHARED,
        hosted: Collection[nn.Parameter] = (),
        host_copies: HostCopies | None = None,
        has_masters: bool = True,
    ) -> None:
        """Make the optimizer called `name`, a key of `LEARNING_RATES`; `lr` defaults to its value.

        Optimizer state for `hosted` parameters stays in host memory and moves through
        `host_copies`. With `has_masters`, parameters in 16 bits have float32 master copies.
        """
        self.name = name
        self.lr = LEARNING_RATES[name] if lr is None else lr
        self._steps = 0
        self.written: Callable[[], None] | None = None
        """Called after each step."""
        self._sharding = sharding
        self._trained = [p for p in parameters if p.requires_grad]
        self._has_masters = has_masters
        on_host = {id(parameter) for parameter in hosted}
        ranges = sharding.own_ranges(self._trained)
        on_device = [own for own in ranges if id(own.parameter) not in on_host]
        if has_masters and name != "adafactor":
            on_device = _divided(on_device)
        self._on_device = [_shard(own, has_masters=has_masters) for own in on_device]
        self._groups = _grouped(self._on_device)
        masters = [shard.master for shard in self._on_device]
        self._torch = _torch_optimizer(name, masters, self.lr) if masters else None
        self._prediction: WeightPrediction | None = None
        hosted_shards = [
            _shard(own, has_masters=has_masters) for own in ranges if id(own.parameter) in on_host
        ]
        self._hosted = [
            _HostedShard(
                shard, _torch_optimizer(name, [shard.master], self.lr), host_copies or HostCopies()
            )
            for shard in hosted_shards
        ]

    @property
    def state(self) -> tuple[torch.Tensor, ...]:
        """Tensors on the device beside the parameters: master copies, and moments after a step."""
        copies = (shard.master for shard in self._on_device if shard.has_copy)
        return (*copies, *self._state_tensors(counters=False))

    @property
    def counters(self) -> tuple[torch.Tensor, ...]:
        """Torch's step counters: one number per parameter, on the host."""
        return tuple(self._state_tensors(counters=True))

    def _state_tensors(self, *, counters: bool) -> Iterator[torch.Tensor]:
        steppers = [self._torch, *(hosted.stepper for hosted in self._hosted)]
        for of in (state for one in steppers if one is not None for state in one.state.values()):
            for name, value in of.items():
                if isinstance(value, torch.Tensor) and (name == "step") == counters:
                    yield value

    def step(self) -> None:
        """Apply the gradients, then clear them. Collective with ZeRO sharding.

        Shards are stepped group by group: float32 gradient copies exist for one group at a time.
        """
        # Step 1: take the gradients off the parameters, so that each can be freed after its use.
        gradients = {id(parameter): parameter.grad for parameter in self._trained}
        for parameter in self._trained:
            parameter.grad = None
        # Step 2: step the shards on the device. Torch skips masters without a gradient, so only the
        # current group changes.
        last = {id(shard.parameter): shard for shard in self._on_device}
        for group in self._groups:
            assert self._torch is not None
            for shard in group:
                key = id(shard.parameter)
                shard.load_gradient(gradients[key])
                if shard is last[key]:
                    del gradients[key]
            self._torch.step()
            for shard in group:
                shard.write_back()
        # Step 3: step the shards whose state is on the host, one at a time.
        for hosted in self._hosted:
            hosted.step(gradients.pop(id(hosted.shard.parameter)))
        del gradients
        # Step 4: gather the elements that other ranks stepped.
        self._sharding.gather(lambda parameter: parameter)
        if self.written is not None:
            self.written()
        self._steps += 1

    def predict(self, parameter: nn.Parameter, updates: int, into: torch.Tensor) -> None:
        """Write the parameter's weights after `updates` more updates into a tensor of its shape.

        They are a guess from the state, which must be on the device and whole. Raises UsageError for
        sgd and Adafactor.
        """
        if self._prediction is None:
            assert self._torch is not None
            self._prediction = WeightPrediction(self._torch)
        for shard in self._on_device:
            if shard.parameter is parameter:
                self._prediction.weights(shard.master, updates, shard.elements_of(into))

    def state_dict(self, parameters: Mapping[str, nn.Parameter]) -> dict[str, torch.Tensor]:
        """The optimizer state, with keys ``<parameter>.<state name>`` and ``step``.

        Each tensor has its parameter's shape, so the state can be loaded under another plan.
        `parameters` must name all parameters of this optimizer. Collective with ZeRO sharding.
        Raises UsageError for Adafactor, whose state has other shapes.
        """
        own = list(self._states())
        found = {"step": torch.tensor(self._steps)}
        for name in self.state_names:
            # Step 1: one whole tensor per parameter, with this rank's elements filled in.
            whole = {
                id(p): torch.zeros_like(p, dtype=self._stepped_dtype(p)) for p in self._trained
            }
            for shard, state in own:
                if name in state:
                    shard.elements_of(whole[id(shard.parameter)]).copy_(state[name])
            # Step 2: fill in the elements of other ranks.
            self._sharding.gather(lambda p, made=whole: made[id(p)])
            found |= {f"{n}.{name}": whole[id(p)] for n, p in parameters.items() if id(p) in whole}
        return found

    def load_state_dict(
        self, state: Mapping[str, torch.Tensor], parameters: Mapping[str, nn.Parameter]
    ) -> None:
        """Load this rank's part of a state from `state_dict`, under any plan for the same model.

        `state` may hold more, such as all ranks' states together. Raises UsageError if a tensor is
        missing.
        """
        wanted = [
            f"{n}.{w}" for n, p in parameters.items() for w in self.state_names if p.requires_grad
        ]
        missing = [name for name in ("step", *wanted) if name not in state]
        if missing:
            raise UsageError(
                f"'{missing[0]}' is missing in the optimizer state to load; give a state of "
                f"{self.name} for the same model"
            )
        names = {id(p): name for name, p in parameters.items()}
        self._steps = int(state["step"])

        for shard in self._on_device:
            assert self._torch is not None
            _set_state(shard, self._torch, self._state_of(shard, state, names))
        for hosted in self._hosted:
            hosted.load(self._state_of(hosted.shard, state, names))

    def _state_of(
        self, shard: Shard, state: Mapping[str, torch.Tensor], names: Mapping[int, str]
    ) -> NamedTensors:
        """The shard's elements in a loaded state, and AdamW's step counter."""
        name, device = names[id(shard.parameter)], shard.parameter.device
        own = {
            kind: shard.elements_of(state[f"{name}.{kind}"]).to(device, copy=True)
            for kind in self.state_names
        }
        if self.name == "adamw":
            own["step"] = torch.tensor(float(self._steps), device=device)
        return own

    def _states(self) -> Iterator[tuple[Shard, NamedTensors]]:
        for shard in self._on_device:
            assert self._torch is not None
            yield shard, {**self._torch.state[shard.master], _MASTER: shard.master.detach()}
        for hosted in self._hosted:
            yield hosted.shard, hosted.state()

    @property
    def state_names(self) -> tuple[str, ...]:
        """Names of the values that each stepped element has in `state_dict`.

        Raises UsageError for Adafactor.
        """
        if self.name not in _STATE_NAMES:
            raise UsageError(f"{self.name} cannot save or load its state; take adamw or sgd")
        has_copies = any(self._stepped_dtype(p) != p.dtype for p in self._trained)
        return (*_STATE_NAMES[self.name], *([_MASTER] if has_copies else []))

    def _stepped_dtype(self, parameter: nn.Parameter) -> torch.dtype:
        is_copied = self._has_masters and parameter.dtype in HALF
        return torch.float32 if is_copied else parameter.dtype


class _HostedShard:
    """A shard whose optimizer state and master copy wait in host memory."""

    def __init__(
        self, shard: Shard, stepper: torch.optim.Optimizer, host_copies: HostCopies
    ) -> None:
        self.shard = shard
        self.stepper, self._host_copies = stepper, host_copies
        self._state_on_host: dict[str, _HostTensor] = {}
        self._offload()

    def step(self, gradient: torch.Tensor | None) -> None:
        """Copy the state to the device, step, and copy it back to the host."""
        self._fetch()
        self.shard.load_gradient(gradient)
        self.stepper.step()
        self.shard.write_back()
        self._offload()

    def state(self) -> NamedTensors:
        """The state on the host, by name."""
        return {
            name: tensor.copy.view(tensor.dtype).view(tensor.shape)
            for name, tensor in self._state_on_host.items()
        }

    def load(self, state: NamedTensors) -> None:
        """Replace the state on the host by `state`."""
        self._host_copies.free([tensor.copy for tensor in self._state_on_host.values()])
        _set_state(self.shard, self.stepper, state)
        self._offload()

    def _fetch(self) -> None:
        on_host = [tensor.copy for tensor in self._state_on_host.values()]
        pending = self._host_copies.to_device(on_host)
        pending.wait()
        self._host_copies.free(on_host)
        for (name, former), copy in zip(self._state_on_host.items(), pending.copies, strict=True):
            tensor = copy.view(former.dtype).view(former.shape)
            if name == _MASTER:
                self.shard.master.data = tensor
            else:
                self.stepper.state[self.shard.master][name] = tensor

    def _offload(self) -> None:
        """Copy the master and the moments to the host and drop them here; step counters stay."""
        master, state = self.shard.master, self.stepper.state[self.shard.master]
        leaving = {name: value for name, value in state.items() if _moves(name, value)}
        if self.shard.has_copy:
            leaving[_MASTER] = master.detach()
        pending = self._host_copies.to_host(
            [tensor.reshape(-1).view(torch.uint8) for tensor in leaving.values()]
        )
        pending.wait()
        self._state_on_host = {
            name: _HostTensor(copy, tensor.dtype, tensor.shape)
            for (name, tensor), copy in zip(leaving.items(), pending.copies, strict=True)
        }
        for name in leaving.keys() - {_MASTER}:
            del state[name]
        if self.shard.has_copy:
            master.data = master.new_empty(0)


def _shard(own: Range, *, has_masters: bool) -> Shard:
    return Shard(*own, has_copy=has_masters and own.parameter.dtype in HALF)


def _divided(ranges: Sequence[Range]) -> list[Range]:
    """Divide large parameters in 16 bits into parts, none larger than a group's room.

    The optimizer must update each element independently. Parts are views into a contiguous parameter.
    """
    copied = [own.stop - own.start for own in ranges if own.parameter.dtype in HALF]
    most = _group_bytes(sum(copied) * _FLOAT32_BYTES) // _FLOAT32_BYTES
    found: list[Range] = []
    for parameter, start, stop in ranges:
        divides = parameter.dtype in HALF and parameter.is_contiguous()
        cuts = range(start, stop, most) if divides else [start]
        found += [Range(parameter, a, b) for a, b in pairwise([*cuts, stop])]
    return found


def _group_bytes(master_bytes: int) -> int:
    """Room for master copies in one group, where there are so many bytes of them."""
    return max(_LEAST_GROUP_BYTES, -(-master_bytes // _NUM_GROUPS))


def _grouped(shards: Sequence[Shard]) -> list[list[Shard]]:
    """Divide shards into groups that are stepped together.

    A master copy needs a float32 gradient beside the parameter's own gradient during its step.
    Small groups bound this extra memory. Without master copies one group is enough.
    """
    if not any(shard.has_copy for shard in shards):
        return [list(shards)] if shards else []
    capacity = _group_bytes(sum(shard.master.nbytes for shard in shards))
    groups: list[list[Shard]] = []
    free = 0
    for shard in shards:
        # A shard opens a new group if it does not fit into the last one.
        if not groups or shard.master.nbytes > free:
            groups.append([])
            free = capacity
        groups[-1].append(shard)
        free -= shard.master.nbytes
    return groups


def _set_state(shard: Shard, stepper: torch.optim.Optimizer, state: NamedTensors) -> None:
    """Set the stepper's state for a shard, and the shard's master copy if it has one."""
    if shard.has_copy:
        shard.master.data = state[_MASTER]
    stepper.state[shard.master] = {n: value for n, value in state.items() if n != _MASTER}


def _moves(name: str, value: object) -> bool:
    return name != "step" and isinstance(value, torch.Tensor)


def _torch_optimizer(name: str, parameters: list[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    if name == "adamw":
        # The fused kernel needs no scratch memory. Torch's other implementations need up to two
        # more copies of all parameters. It takes no complex parameters.
        is_fused = not any(parameter.is_complex() for parameter in parameters)
        return torch.optim.AdamW(parameters, lr=lr, fused=is_fused)
    if name == "adafactor":
        return torch.optim.Adafactor(parameters, lr=lr)
    return torch.optim.SGD(parameters, lr=lr, momentum=0.9 if name == "sgd-momentum" else 0.0)
