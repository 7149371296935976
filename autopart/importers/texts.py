"""Layouts as texts and files: lists of modules, bounds, counts, and device maps.

A file is read as text. Nothing in it is executed: lists are found by their brackets.
"""

import ast
import itertools
import json
import re
from collections.abc import Sequence
from pathlib import Path

from autopart.errors import FileError, UsageError
from autopart.exporters.model_units import Renaming, unit_of_layer
from autopart.importers.units import StageLayers, Units, language_model
from autopart.records.files import read_content
from autopart.records.layer_graph import LayerGraph
from autopart.text import counted

_LISTS = re.compile(r"\[\s*\[")
_LAYOUT = re.compile(r"pipeline[-_]model[-_]parallel[-_]layout[\s:=]+(['\"])(.*?)\1")
_ROW = re.compile(r"^\s*-\s*\[([a-z,\s]*)\]", re.MULTILINE)
_LETTERS = {"embedding": "E", "decoder": "t", "mtp": "m", "loss": "L"}
"""The letter of a layer in the layout string, by its word in YAML."""
_PARTITION = re.compile(r"VLLM_PP_LAYER_PARTITION=['\"]?([0-9, ]+)")
_PARTS = re.compile(r"\bPARTS\s*=\s*\(([0-9,\s]+)\)")
_ROTARY = "rotary_emb"
"""Hugging Face's module for rotations, which every stage has a copy of. It is no unit of its own."""


MOST_CHARACTERS = 1 << 20
"""Most characters of a layout, in a file too."""


def file_text(path: Path) -> str:
    """The text of a file with a layout; raises FileError where it cannot be read, or is too long."""
    content = read_content(path)
    if len(content) > MOST_CHARACTERS:
        raise FileError(
            f"{path}: it has {counted(len(content), 'byte')}; a layout has at most {MOST_CHARACTERS}"
        )
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise FileError(f"{path}: byte {error.start} is not UTF-8") from None


def layout_text(text: str) -> str:
    """Megatron's layout string in an argument file or a YAML file, from YAML rows of words, or as it stands."""
    found = _LAYOUT.search(text)
    if found:
        return found[2]
    rows: list[str] = _ROW.findall(text)
    if not rows or "pipeline_model_parallel_layout" not in text:
        return text.strip()
    words = [[word.strip() for word in row.split(",") if word.strip()] for row in rows]
    return "|".join("".join(_LETTERS.get(word, word) for word in row) for row in words)


def units_of_modules(text: str) -> Units:
    """The stages of a list of module names per stage, as torchtitan's `module_fqns_per_model_part` has it.

    The list may stand anywhere in a Python, YAML, TOML or JSON file. Raises UsageError without one.
    """
    stages = [
        [_unit(name) for name in names if not name.endswith(_ROTARY)] for names in _name_lists(text)
    ]
    return tuple(map(tuple, stages))


def units_of_parts(graph: LayerGraph, text: str, renamings: Sequence[Renaming] = ()) -> Units:
    """The stages of DeepSpeed's `parts`: stage s has the units from parts[s] to parts[s + 1] - 1.

    Raises UsageError where the bounds do not rise from 0 to the number of units.
    """
    found = _PARTS.search(text)
    bounds = _numbers(found[1] if found else text, "bounds such as 0,8,17")
    named = (unit_of_layer(layer.name, renamings, keep_unknown=True) for layer in graph.layers)
    units: list[str] = list(dict.fromkeys(unit for unit in named if unit is not None))
    rising = all(a < b for a, b in itertools.pairwise(bounds))
    if len(bounds) < 2 or not rising or bounds[0] != 0 or bounds[-1] != len(units):
        raise UsageError(
            f"bounds {','.join(map(str, bounds))} do not rise from 0 to {len(units)}, the number of the "
            "model's units without its loss"
        )
    return tuple(tuple(units[a:b]) for a, b in itertools.pairwise(bounds))


def units_of_partition(text: str) -> Units:
    """The stages of vLLM's `VLLM_PP_LAYER_PARTITION`: decoder layers per rank; raises UsageError."""
    found = _PARTITION.search(text)
    return language_model(_numbers(found[1] if found else text, "counts such as 7,9,9,7"))


def stages_of_device_map(graph: LayerGraph, text: str) -> StageLayers:
    """The stages of a `device_map`: the device of the longest module name that holds a layer.

    Raises UsageError on text that is no such map, and on a layer without a device.
    """
    devices = _devices(text)
    count = max(devices.values()) + 1
    found: list[list[str]] = [[] for _ in range(count)]
    for layer in graph.layers:
        name = layer.name.partition("@")[0]
        if name in ("loss", "loss_fn") and name not in devices:
            found[-1].append(layer.name)
            continue
        while name and name not in devices:
            name = name.rpartition(".")[0]
        if name not in devices:
            raise UsageError(f"the device map has no device for layer '{layer.name}'")
        found[devices[name]].append(layer.name)
    for device, layers in enumerate(found):
        if not layers:
            raise UsageError(
                f"the device map puts no layer on device {device}; leave no device out"
            )
    return tuple(map(tuple, found))


def _devices(text: str) -> dict[str, int]:
    """The device of each module name; raises UsageError on text that is no device map."""
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError):
        entries = None
    if not isinstance(entries, dict) or not entries:
        raise UsageError(
            'no device map was found; write JSON such as {"embed": 0, "blocks.0": 0, "head": 1}'
        )
    devices: dict[str, int] = {}
    for name, device in entries.items():
        if isinstance(device, bool) or not isinstance(device, int) or not 0 <= device < 100_000:
            raise UsageError(
                f"the device map puts '{name}' on '{device}'; devices are counted from 0"
            )
        devices[str(name)] = device
    return devices


def _unit(module: str) -> str:
    """The unit of a framework's module name; the name itself where no rule knows it."""
    return unit_of_layer(module, (), keep_unknown=True) or module


def _name_lists(text: str) -> list[list[str]]:
    """The first list of lists of names in a text."""
    start = _LISTS.search(text)
    if start is not None:
        try:
            found = ast.literal_eval(_to_its_end(text[start.start() :]))
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            found = None
        if isinstance(found, list) and all(_are_names(names) for names in found):
            return found
    raise UsageError(
        "no list of modules per stage was found; write it as "
        '[["tok_embeddings", "layers.0"], ["layers.1", "norm", "output"]]'
    )


def _to_its_end(text: str) -> str:
    """The text from an opening bracket to the one that closes it."""
    depth = 0
    for at, letter in enumerate(text):
        depth += (letter == "[") - (letter == "]")
        if depth == 0:
            return text[: at + 1]
    return text


def _are_names(names: object) -> bool:
    return isinstance(names, list) and all(isinstance(name, str) for name in names)


def _numbers(text: str, example: str) -> list[int]:
    parts = [part.strip() for part in text.strip().strip("[]()").strip(",").split(",")]
    if not all(part.isascii() and part.isdecimal() and len(part) < 7 for part in parts):
        raise UsageError(f"'{text.strip()[:60]}' is no list of numbers; write {example}")
    return list(map(int, parts))
