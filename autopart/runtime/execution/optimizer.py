"""The optimizers that a plan's memory is reckoned for, made by torch.

Parameters in 16 bits are stepped through a float32 master copy, or as they are where the plan has none.
With `Shares` a rank steps its part of what others hold too; the state of hosted parameters stays in the
host's memory and comes to the device for the step, one parameter after the other.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import nn

from autopart.errors import UsageError
from autopart.runtime.execution.host_link import HostLink
from autopart.runtime.execution.pieces import HALF, Piece, Shares

LEARNING_RATES = {"adamw": 1e-3, "sgd-momentum": 1e-2, "adafactor": 1e-2, "sgd": 1e-2}
"""Used where the caller names none; the keys are those of `training.MOMENTS`."""

_PARTS, _PART_BYTES = 8, 1 << 20
"""About so many parts of a step, of at least so many bytes each."""

_KINDS = {"adamw": ("exp_avg", "exp_avg_sq"), "sgd-momentum": ("momentum_buffer",), "sgd": ()}
"""What torch calls the state of one element."""

Named = dict[str, torch.Tensor]

_NOTHING_SHARED = Shares(())
_MASTER = "master"


class _Away(NamedTuple):
    """A tensor whose bytes are in the host's memory."""

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
        shares: Shares = _NOTHING_SHARED,
        hosted: Collection[nn.Parameter] = (),
        link: HostLink | None = None,
        has_masters: bool = True,
    ) -> None:
        """`name` is a key of `LEARNING_RATES`, and so is the default of `lr`. The state of `hosted` is
        kept behind `link`. With `has_masters` parameters in 16 bits have float32 master copies."""
        self.name = name
        self.lr = LEARNING_RATES[name] if lr is None else lr
        self._steps = 0
        self._shares = shares
        self._trained = [p for p in parameters if p.requires_grad]
        self._has_masters = has_masters
        pieces = shares.pieces(self._trained, has_masters=has_masters)
        away = {id(parameter) for parameter in hosted}
        self._here = [piece for piece in pieces if id(piece.parameter) not in away]
        self._parts = _in_parts(self._here)
        masters = [piece.master for piece in self._here]
        self._torch = _torch_optimizer(name, masters, self.lr) if masters else None
        self._hosted = [
            _HostedPiece(piece, _torch_optimizer(name, [piece.master], self.lr), link or HostLink())
            for piece in pieces
            if id(piece.parameter) in away
        ]

    @property
    def state(self) -> tuple[torch.Tensor, ...]:
        """What it keeps on the device beside the parameters: master copies, and moments once a step
        was made."""
        copies = (piece.master for piece in self._here if piece.has_copy)
        return (*copies, *self._kept(counters=False))

    @property
    def counters(self) -> tuple[torch.Tensor, ...]:
        """Its counts of steps, a number for each parameter, which torch keeps on the host."""
        return tuple(self._kept(counters=True))

    def _kept(self, *, counters: bool) -> Iterator[torch.Tensor]:
        steppers = [self._torch, *(hosted.stepper for hosted in self._hosted)]
        for of in (state for one in steppers if one is not None for state in one.state.values()):
            for name, value in of.items():
                if isinstance(value, torch.Tensor) and (name == "step") == counters:
                    yield value

    def step(self) -> None:
        """Apply the gradients and clear them, part by part: the float32 copies of one part's gradients
        are gone before the next one's are there. With shares, all holders of a parameter must call it."""
        waiting = {id(parameter): parameter.grad for parameter in self._trained}
        for parameter in self._trained:
            parameter.grad = None
        for part in self._parts:
            assert self._torch is not None
            for piece in part:
                piece.take(waiting.pop(id(piece.parameter)))
            self._torch.step()
            for piece in part:
                piece.give_back()
        for hosted in self._hosted:
            hosted.step(waiting.pop(id(hosted.piece.parameter)))
        del waiting
        self._shares.gather(lambda parameter: parameter)
        self._steps += 1

    def state_dict(self, parameters: Mapping[str, nn.Parameter]) -> dict[str, torch.Tensor]:
        """The state by ``<parameter>.<what>``, each tensor as large as its parameter, so that it can be
        loaded under another plan. `parameters` are all that it steps; with shares, all holders of a
        parameter must call it. Raises UsageError for an optimizer whose state has other sizes."""
        own = {id(piece.parameter): (piece, state) for piece, state in self._states()}
        found = {"step": torch.tensor(self._steps)}
        for what in self._kinds():
            whole = {
                id(p): torch.zeros_like(p, dtype=self._stepped_dtype(p)) for p in self._trained
            }
            for key, (piece, state) in own.items():
                if what in state:
                    piece.of(whole[key]).copy_(state[what])
            self._shares.gather(lambda p, made=whole: made[id(p)])
            found |= {f"{n}.{what}": whole[id(p)] for n, p in parameters.items() if id(p) in whole}
        return found

    def load_state_dict(
        self, state: Mapping[str, torch.Tensor], parameters: Mapping[str, nn.Parameter]
    ) -> None:
        """Take this rank's part of what `state_dict` gave, or those of all ranks together, under any plan of
        the same model. Raises UsageError where a tensor is missing."""
        wanted = [
            f"{n}.{w}" for n, p in parameters.items() for w in self._kinds() if p.requires_grad
        ]
        missing = [name for name in ("step", *wanted) if name not in state]
        if missing:
            raise UsageError(
                f"'{missing[0]}' is missing in the optimizer's state to load; give the state of "
                f"{self.name} for the same model"
            )
        names = {id(p): name for name, p in parameters.items()}
        self._steps = int(state["step"])

        def parts(piece: Piece) -> Named:
            name, device = names[id(piece.parameter)], piece.parameter.device
            of = {w: piece.of(state[f"{name}.{w}"]).to(device, copy=True) for w in self._kinds()}
            return {
                **of,
                **(
                    {"step": torch.tensor(float(self._steps), device=device)}
                    if self.name == "adamw"
                    else {}
                ),
            }

        for piece in self._here:
            assert self._torch is not None
            _put(piece, self._torch, parts(piece))
        for hosted in self._hosted:
            hosted.load(parts(hosted.piece))

    def _states(self) -> Iterator[tuple[Piece, Named]]:
        for piece in self._here:
            assert self._torch is not None
            yield piece, {**self._torch.state[piece.master], _MASTER: piece.master.detach()}
        for hosted in self._hosted:
            yield hosted.piece, hosted.state()

    def _kinds(self) -> tuple[str, ...]:
        """What each stepped element has."""
        if self.name not in _KINDS:
            raise UsageError(f"the state of {self.name} is not saved or loaded; take adamw or sgd")
        has_copies = any(self._stepped_dtype(p) != p.dtype for p in self._trained)
        return (*_KINDS[self.name], *([_MASTER] if has_copies else []))

    def _stepped_dtype(self, parameter: nn.Parameter) -> torch.dtype:
        is_copied = self._has_masters and parameter.dtype in HALF
        return torch.float32 if is_copied else parameter.dtype


class _HostedPiece:
    """A piece whose optimizer state, and master copy where it has one, waits in the host's memory."""

    def __init__(self, piece: Piece, stepper: torch.optim.Optimizer, link: HostLink) -> None:
        self.piece = piece
        self.stepper, self._link = stepper, link
        self._away: dict[str, _Away] = {}
        self._leave()

    def step(self, gradient: torch.Tensor | None) -> None:
        """Bring the state to the device, step, and send it back."""
        self._come()
        self.piece.take(gradient)
        self.stepper.step()
        self.piece.give_back()
        self._leave()

    def state(self) -> Named:
        """What waits on the host, by name."""
        return {
            name: away.copy.view(away.dtype).view(away.shape) for name, away in self._away.items()
        }

    def load(self, state: Named) -> None:
        """Let `state` wait on the host in place of what does."""
        self._link.free([away.copy for away in self._away.values()])
        _put(self.piece, self.stepper, state)
        self._leave()

    def _come(self) -> None:
        on_host = [away.copy for away in self._away.values()]
        coming = self._link.back(on_host)
        coming.wait()
        self._link.free(on_host)
        for (name, away), copy in zip(self._away.items(), coming.copies, strict=True):
            tensor = copy.view(away.dtype).view(away.shape)
            if name == _MASTER:
                self.piece.master.data = tensor
            else:
                self.stepper.state[self.piece.master][name] = tensor

    def _leave(self) -> None:
        """What is as large as the piece leaves; step counts stay."""
        master, state = self.piece.master, self.stepper.state[self.piece.master]
        leaving = {name: value for name, value in state.items() if _moves(name, value)}
        if self.piece.has_copy:
            leaving[_MASTER] = master.detach()
        out = self._link.out([tensor.reshape(-1).view(torch.uint8) for tensor in leaving.values()])
        out.wait()
        self._away = {
            name: _Away(copy, tensor.dtype, tensor.shape)
            for (name, tensor), copy in zip(leaving.items(), out.copies, strict=True)
        }
        for name in leaving.keys() - {_MASTER}:
            del state[name]
        if self.piece.has_copy:
            master.data = master.new_empty(0)


def _in_parts(pieces: Sequence[Piece]) -> list[list[Piece]]:
    """All at once where none has a master copy, whose gradient is there beside the parameter's own
    while it is stepped."""
    if not any(piece.has_copy for piece in pieces):
        return [list(pieces)] if pieces else []
    most = max(_PART_BYTES, sum(piece.master.nbytes for piece in pieces) // _PARTS)
    parts: list[list[Piece]] = []
    room = 0
    for piece in pieces:
        if not parts or piece.master.nbytes > room:
            parts.append([])
            room = most
        parts[-1].append(piece)
        room -= piece.master.nbytes
    return parts


def _put(piece: Piece, stepper: torch.optim.Optimizer, state: Named) -> None:
    """Set what the stepper knows of a piece, and its master copy where it has one."""
    if piece.has_copy:
        piece.master.data = state[_MASTER]
    stepper.state[piece.master] = {n: value for n, value in state.items() if n != _MASTER}


def _moves(name: str, value: object) -> bool:
    return name != "step" and isinstance(value, torch.Tensor)


def _torch_optimizer(name: str, parameters: list[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    if name == "adamw":
        # Fused, it needs no scratch; torch's other ways hold up to two more copies of all parameters.
        return torch.optim.AdamW(parameters, lr=lr, fused=True)
    if name == "adafactor":
        return torch.optim.Adafactor(parameters, lr=lr)
    return torch.optim.SGD(parameters, lr=lr, momentum=0.9 if name == "sgd-momentum" else 0.0)
