"""Mutants: a valid file with one to three changes to its bytes or to its tree."""

import json
import random
import re
from collections.abc import Callable
from typing import Any

Place = tuple[Any, Any]
"""A list or an object, and the index or key in it."""

NUMBERS: tuple[Any, ...] = (
    0, -1, 1, 2, 3, 7, 2**31, 2**53, 2**62, 2**63 - 1, 2**63, 2**64, -(2**63), 10**30, 10**400,
    3 * 10**8, 0.5, -0.0, 1e-320, 5e-324, 1e-310, 1e-12, 1e12, 1.0000001e12, 1e15, 1e100, 1e300,
    1.7e308, float("inf"), float("-inf"), float("nan"),
)  # fmt: skip
"""Numbers at the edges of types, and absurd ones."""
TEXTS: tuple[str, ...] = (
    "", " ", "x", "0", "0F0", "1B0 1B0", "9F9", "99999999999999999999F0", "loss", "custom", "auto",
    "1f1b", "zb-h1", "bfloat16", "float64", "autopart-plan", "[/b]", "[red]", "a\nb", "a\r", "\x00",
    "\x1b[31m", "\u202e", "\ud800", "é" * 40, "w" * 5000, "../../x", "{i}", "%s", "$x", "'", '"',
    "00000000000000000000", "¹", "٣",
)  # fmt: skip
"""Texts that other texts are replaced by."""
TOKENS: tuple[bytes, ...] = (
    b"NaN", b"Infinity", b"-Infinity", b"1e999", b"-1e999", b"1e-999", b"null", b"true", b"{}",
    b"[]", b'""', b"\xff", b"\xc3", b"\xef\xbb\xbf", b"\\ud800", b"\\u0000", b"\x00", b",", b":",
    b"[" * 3000, b'{"a":' * 3000, b"9" * 400, b"0x10", b"-", b"1.", b"//", b" -- ", b"\t", b"\r\n",
    b"=", b";", b"[1; 2]",
)  # fmt: skip
"""Bytes that are put in at any place."""
_NUMBER = re.compile(rb"-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")


def mutant(rng: random.Random, seed: bytes, other: bytes) -> bytes:
    """`seed` with one to three changes; `other` is a file to splice with."""
    changes = rng.choice((1, 1, 1, 1, 2, 3))
    if rng.random() < 0.75:
        try:
            tree: Any = json.loads(seed)
        except ValueError:
            tree = None
        if isinstance(tree, dict):
            for _ in range(changes):
                _change_tree(rng, tree)
            # `surrogatepass` makes lone surrogates bytes that are no UTF-8; escapes are the others.
            escaped = rng.random() < 0.5
            text = json.dumps(tree, ensure_ascii=escaped)
            return text.encode(errors="surrogatepass")
    for _ in range(changes):
        seed = _changed_bytes(rng, seed, other)
    return seed


def _changed_bytes(rng: random.Random, seed: bytes, other: bytes) -> bytes:
    at = rng.randrange(len(seed) + 1)
    end = min(len(seed), at + rng.choice((1, 1, 4, 30, 300)))
    match rng.randrange(8):
        case 0:
            return seed[:at] + bytes([rng.randrange(256)]) + seed[at + 1 :]
        case 1:
            return seed[:at] + rng.choice(TOKENS) + seed[at:]
        case 2:
            return seed[:at] + seed[end:]
        case 3:
            return seed[:end] + seed[at:]
        case 4:
            return seed[:at]
        case 5:
            return seed[:at] + other[rng.randrange(len(other) + 1) :]
        case _:
            found = list(_NUMBER.finditer(seed))
            if not found:
                return seed[:at] + rng.choice(TOKENS) + seed[at:]
            one = rng.choice(found)
            number = rng.choice((str(rng.choice(NUMBERS)).encode(), *TOKENS[:6]))
            return seed[: one.start()] + number + seed[one.end() :]


def _change_tree(rng: random.Random, tree: Any) -> None:
    places = list(_places(tree))
    if not places:
        return
    home, key = rng.choice(places)
    change = rng.choice(_CHANGES)
    change(rng, home, key, places)


def _places(tree: Any) -> list[Place]:
    """Every place in the tree, parents before children."""
    found: list[Place] = []
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        keys = list(node) if isinstance(node, dict) else range(len(node))
        for key in keys:
            found.append((node, key))
            if isinstance(node[key], dict | list):
                waiting.append(node[key])
    return found


def _replace_alike(rng: random.Random, home: Any, key: Any, _: list[Place]) -> None:
    """A value of the same type, often a legal one."""
    match home[key]:
        case bool() as flag:
            home[key] = not flag
        case int() | float() as number:
            scale = rng.choice((2, 0.5, -1, 1 + 1e-9, 1e6, 1e-6, 1e18))
            home[key] = rng.choice(
                (rng.choice(NUMBERS), _scaled(number, scale), number + 1, number - 1)
            )
        case str() as text:
            home[key] = rng.choice((rng.choice(TEXTS), text + rng.choice(TEXTS), text[:-1]))
        case list() as items:
            rng.choice((items.clear, items.reverse, lambda: rng.shuffle(items)))()
        case dict() as node:
            node.clear()
        case _:
            home[key] = rng.choice((0, 1.5, "x", [], {}, True))


def _scaled(number: float, scale: float) -> float:
    """The product, where an integer is not too large for it."""
    return number * scale if abs(number) < 2**1000 else -number


def _replace_unlike(rng: random.Random, home: Any, key: Any, _: list[Place]) -> None:
    home[key] = rng.choice((None, True, 0, -1, 1.5, "x", [], {}, [[]], {"a": 1}, [0, 0], ["x"]))


def _drop(rng: random.Random, home: Any, key: Any, _: list[Place]) -> None:
    del home[key]


def _repeat(rng: random.Random, home: Any, key: Any, _: list[Place]) -> None:
    if isinstance(home, list):
        home[key:key] = [home[key]] * rng.choice((1, 1, 50))
    else:
        home[f"{key}{rng.choice(TEXTS)}"] = home[key]


def _copy_from_elsewhere(rng: random.Random, home: Any, key: Any, places: list[Place]) -> None:
    """A value of the same type from another place: names, counts and orders get mixed up."""
    other, there = rng.choice(places)
    for _ in range(20):
        if type(other[there]) is type(home[key]) and other is not home:
            break
        other, there = rng.choice(places)
    # Through text: a tree that holds itself could not be written.
    home[key] = json.loads(json.dumps(other[there]))


def _swap(rng: random.Random, home: Any, key: Any, _: list[Place]) -> None:
    other = rng.choice(list(home) if isinstance(home, dict) else range(len(home)))
    home[key], home[other] = home[other], home[key]


_CHANGES: tuple[Callable[[random.Random, Any, Any, list[Place]], None], ...] = (
    _replace_alike,
    _replace_alike,
    _replace_alike,
    _replace_unlike,
    _drop,
    _repeat,
    _copy_from_elsewhere,
    _copy_from_elsewhere,
    _swap,
)
