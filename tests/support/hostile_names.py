"""Names that a careless program would obey: markup, escapes, line breaks, quotes, code."""

import re

import msgspec

from autopart.records.layer_graph import LayerGraph
from autopart.records.profile import Profile

HOSTILE = (
    "[/b]",
    "[bold red]x[/]",
    ":warning:",
    "\x1b[31mred\x1b[0m",
    "\x9b2Jc1",
    "two\nlines",
    'quote"and\\backslash',
    "'''\"\"\"",
    "$(touch x)`id`",
    "${mark}",
    "nul\x00bell\x07",
    "\u202egnp.exe",
    "a name with many words in it that is far longer than the width of one line in the file",
    "\U0001f600",
    "\u2028separator",
    "# comment",
    "  spaces  ",
    "%s%n{0}",
)

OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2028\u2029]")
"""Characters that a terminal obeys, beside line breaks and tabs."""


def renamed(graph: LayerGraph, names: dict[str, str]) -> LayerGraph:
    """The graph under other layer names; names that are not listed stay."""
    content = msgspec.to_builtins(graph)

    def walk(node: object) -> object:
        if isinstance(node, dict):
            return {key: walk(value) for key, value in node.items()}
        if isinstance(node, list | tuple):
            return [walk(item) for item in node]
        return names.get(node, node) if isinstance(node, str) else node

    return msgspec.convert(walk(content), LayerGraph)


def with_hostile_names(profile: Profile, first: int = 0) -> Profile:
    """The profile with a hostile name on every layer but the loss, from the list's place `first`."""
    layers = [layer.name for layer in profile.graph.layers if layer.name != "loss"]
    names = {layer: HOSTILE[(first + i) % len(HOSTILE)] for i, layer in enumerate(layers)}
    return msgspec.structs.replace(profile, graph=renamed(profile.graph, names))
