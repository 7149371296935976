"""The options for recomputation and offload."""

from dataclasses import dataclass
from typing import Annotated, Literal

import typer


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicyOptions:
    """Recomputation and offload."""

    recompute: Annotated[
        Literal["never", "auto", "selective", "always"] | None,
        typer.Option(
            help="Drop the stash of layers and run their forward again in backward. auto: the layers "
            "that give the fastest step within the memory; selective: the cheap part of all layers; "
            "default: the layers that the model checkpoints itself."
        ),
    ] = None
    recompute_layer: Annotated[
        list[str] | None, typer.Option(metavar="LAYER", help="Always recompute this layer.")
    ] = None
    selective_layer: Annotated[
        list[str] | None,
        typer.Option(metavar="LAYER", help="Always recompute the cheap part of this layer."),
    ] = None
    keep_layer: Annotated[
        list[str] | None, typer.Option(metavar="LAYER", help="Always keep the stash of this layer.")
    ] = None
    offload: Annotated[
        Literal["never", "auto", "always"],
        typer.Option(
            help="Keep the stash of layers in host memory between forward and backward; auto: the "
            "layers that give the fastest step within the memory."
        ),
    ] = "never"
    offload_layer: Annotated[
        list[str] | None, typer.Option(metavar="LAYER", help="Always offload this layer.")
    ] = None
    offload_optimizer: Annotated[
        Literal["never", "auto", "always"],
        typer.Option(
            help="Keep optimizer state and master copies in host memory; auto: for the stages where "
            "this shortens the step."
        ),
    ] = "never"
