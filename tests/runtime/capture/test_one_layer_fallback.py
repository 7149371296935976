"""A model that cannot be looked into is one layer, and its profile says why."""

from typing import Any

import pytest

from autopart.runtime.capture import uncapturable_modules
from autopart.runtime.capture.capture import capture_model
from tests.support.runtime.small_models import Block, Blocks, batch, training
from tests.support.runtime.stage_chain import assert_same_step, plain_step, stages_step


class StrangeError(Exception):
    """An error that no part of autopart knows."""


def test_any_error_of_the_exporter_is_told_as_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def strange(*_: Any) -> Any:
        raise StrangeError("nobody knows why")

    monkeypatch.setattr(uncapturable_modules, "trace_loss", strange)
    model, example = training(Blocks(Block())), batch()
    captured = capture_model(model, example)
    assert [layer.name for layer in captured.layers] == ["model"]
    (warning,) = captured.warnings
    assert "the whole model is one layer" in warning
    assert "StrangeError: nobody knows why" in warning
    plain = plain_step(model, example)
    assert_same_step(plain, stages_step(model, captured, example), 1e-12)
