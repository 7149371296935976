"""Calls at the borders of layers: in the order of the layers, with what each one made."""

from collections.abc import Sequence

import pytest
import torch

from autopart.runtime.capture.stage_modules import port, split_stages
from autopart.runtime.transforms.layer_borders import mark_borders
from autopart.runtime.transforms.layer_policies import apply_policies, recomputing
from tests.support.runtime.plans import capture


class _Told:
    def __init__(self) -> None:
        self.seen: list[tuple[str, str, int]] = []

    def before(self, layer: str) -> None:
        self.seen.append(("before", layer, 0))

    def behind(self, layer: str, made: Sequence[torch.Tensor]) -> None:
        self.seen.append(("behind", layer, len(made)))


@pytest.mark.slow
def test_each_layer_is_told_once_also_where_it_runs_again() -> None:
    captured = capture("zoo:mlp-tiny")
    names = [layer.name for layer in captured.layers]
    (program,) = split_stages(captured, [names])
    apply_policies(program, {names[2]: recomputing})
    told = _Told()
    mark_borders(program, names, told)
    (loss,) = program.module(*(torch.randn(2, 128, 192) for _ in program.inputs))
    loss.backward()
    assert [(what, name) for what, name, _ in told.seen] == [
        (what, name) for name in names for what in ("before", "behind")
    ]
    assert all(count for what, _, count in told.seen if what == "behind")


def test_a_received_value_s_port_stays_where_it_is_first_read() -> None:
    """The skip connections of a U-Net come to a stage that reads each in another layer."""
    captured = capture("zoo:unet-tiny")
    names = [layer.name for layer in captured.layers]
    program = split_stages(captured, [names[:8], names[8:]])[1]
    mark_borders(program, names, _Told())
    nodes = list(program.module.graph.nodes)
    place = {node: at for at, node in enumerate(nodes)}
    ports = [n for n in nodes if n.target is port and n.all_input_nodes[0].op == "placeholder"]
    assert len(ports) > 2
    for node in ports:
        first = min(place[user] for user in node.users)
        between = nodes[place[node] + 1 : first]
        assert all(other.meta.get("layer") is None for other in between)
