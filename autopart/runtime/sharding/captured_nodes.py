"""What a captured graph tells about its nodes: whole shapes, parameters and layers."""

from typing import Any

import torch
from torch import fx, nn

from autopart.runtime.capture.capture import Captured
from autopart.runtime.models.attributes import lookup
from autopart.runtime.models.tensor_plan import Style


class CapturedNodes:
    """The nodes of one captured graph."""

    def __init__(self, captured: Captured) -> None:
        self.captured = captured

    def shape(self, node: fx.Node) -> tuple[int, ...]:
        """Return the whole shape of a node's tensor."""
        value = node.meta.get("val")
        return tuple((self.attribute(node) if value is None else value).shape)

    def is_tensor(self, node: fx.Node) -> bool:
        """Tell whether the node yields one tensor."""
        if node.op == "get_attr":
            return isinstance(self.attribute(node), torch.Tensor)
        return isinstance(node.meta.get("val"), torch.Tensor)

    def attribute(self, node: fx.Node) -> Any:
        """Return the parameter, buffer or region that a node reads."""
        return lookup(self.captured.module, str(node.target))

    def is_parameter(self, node: fx.Node) -> bool:
        """Tell whether the node reads a parameter."""
        return node.op == "get_attr" and isinstance(self.attribute(node), nn.Parameter)

    def style(self, parameter: fx.Node) -> Style | None:
        """Return how the model wants a parameter sharded; None where that is left to the pass."""
        return self.captured.weight_styles.get(str(parameter.target))

    def layer(self, node: fx.Node) -> str | None:
        """Return the node's layer; None for a node that every stage computes itself."""
        return self.captured.layer_of.get(node.name)
