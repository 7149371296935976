"""Option groups: a command takes records, and typer sees one parameter per option."""

import dataclasses
import inspect
from collections.abc import Callable, Iterator
from typing import Any, get_type_hints


def with_groups(command: Callable[..., None]) -> Callable[..., None]:
    """`command` with one parameter per option, as typer needs it.

    A parameter annotated with a dataclass is a group. Its fields take its place in the signature. The
    call collects them into the dataclass again.

        @with_groups
        def command(cluster: ClusterOptions, as_json: AsJson = False) -> None: ...

    gives typer `command(*, gpus=None, nodes=None, ..., as_json=False)`.
    """
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, type[Any]] = {
        name: kind
        for name, kind in hints.items()
        if isinstance(kind, type) and dataclasses.is_dataclass(kind)
    }

    def flat(**given: Any) -> None:
        grouped = {
            name: kind(**{field.name: given.pop(field.name) for field in dataclasses.fields(kind)})
            for name, kind in groups.items()
        }
        command(**grouped, **given)

    # Typer reads the signature and, for some types, the annotations: both must name the options.
    parameters = list(_flat_parameters(command, hints))
    flat.__doc__ = command.__doc__
    flat.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportFunctionMemberAccess]
    flat.__annotations__ = {one.name: one.annotation for one in parameters}
    return flat


def _flat_parameters(
    command: Callable[..., None], hints: dict[str, Any]
) -> Iterator[inspect.Parameter]:
    """The parameters of `command`, each group replaced by its fields."""
    for name, parameter in inspect.signature(command).parameters.items():
        kind = hints[name]
        if not dataclasses.is_dataclass(kind):
            yield _keyword(name, kind, parameter.default)
            continue
        own = get_type_hints(kind, include_extras=True)
        for field in dataclasses.fields(kind):
            required = field.default is dataclasses.MISSING
            default = inspect.Parameter.empty if required else field.default
            yield _keyword(field.name, own[field.name], default)


def _keyword(name: str, kind: object, default: object) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
