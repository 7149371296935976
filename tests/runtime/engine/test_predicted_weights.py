"""One working copy holds the weights that each action needs, along 1F1B's order."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import fx, nn

from autopart.runtime.engine.predicted_weights import Distances, PredictedWeights
from autopart.schedules.asynchronous_kind import Asynchronous, Setting
from autopart.schedules.named.asynchronous import PIPEOPTIM, SPECTRAIN, XPIPE
from autopart.schedules.named.one_f_one_b import one_f_one_b


class Scale(nn.Module):
    """One weight; its forward and its backward both read it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * x


def play(
    kind: Asynchronous, stages: int, stage: int, n: int, updates: int
) -> tuple[dict[tuple[str, int], float], PredictedWeights]:
    """The weight that each action of a stage reads, where update u makes it u + 1.

    A prediction over d updates adds d / 100.
    """
    module, setting = fx.symbolic_trace(Scale()), Setting(stages, n)
    count = updates * n
    distances = Distances(
        int(kind.forward_delay(setting, stage)), int(kind.backward_delay(setting, stage))
    )
    weights = PredictedWeights(
        module, distances, range(count), n, lambda p, d, into: into.copy_(p.detach() + d / 100)
    )
    read: dict[tuple[str, int], float] = {}
    x, passed = torch.ones((), dtype=torch.float64, requires_grad=True), {}
    (weight,) = module.parameters()

    def forward() -> None:
        passed[action.microbatch] = module(x)
        read["F", action.microbatch] = passed[action.microbatch].item()

    def backward() -> None:
        (grad,) = torch.autograd.grad(passed.pop(action.microbatch), x)
        read["B", action.microbatch] = grad.item()

    for action in one_f_one_b([[s] for s in range(stages)], count)[stage]:
        weights.run(action, forward if action.op == "F" else backward)
        if action.op == "B" and action.microbatch % n == n - 1:
            weights.update(lambda: weight.data.add_(1.0))
    return read, weights


@pytest.mark.slow
@given(
    st.sampled_from([SPECTRAIN, XPIPE, PIPEOPTIM]), st.integers(2, 6), st.integers(1, 7), st.data()
)
def test_actions_read_predictions_from_the_right_versions(
    kind: Asynchronous, stages: int, n: int, data: st.DataObject
):
    stage = data.draw(st.integers(0, stages - 1))
    n = 1 if kind.every_microbatch else n
    read, weights = play(kind, stages, stage, n, updates=stages + 3)
    setting, later = Setting(stages, n), stages - 1 - stage
    for (op, m), value in read.items():
        delay = kind.forward_delay if op == "F" else kind.backward_delay
        first = m // n * n
        # Forwards of a batch predict when its first one starts, `later` backwards after its own.
        version = max(0, first - later) // n if op == "F" else m // n
        assert value == pytest.approx(version + delay(setting, stage) / 100, abs=1e-12), (op, m)
        if op == "F":
            assert weights.seen[m] == version
    assert weights.most == 1 + kind.extra_copies(setting, stage)


def test_the_last_stage_of_pipeoptim_needs_no_copy():
    _, weights = play(PIPEOPTIM, 3, 2, 1, 5)
    assert weights.most == 1 and PIPEOPTIM.extra_copies(Setting(3), 2) == 0
