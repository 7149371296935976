"""Names and counts in sentences: one line, only printable characters, the right number."""

import difflib
import unicodedata
from collections.abc import Iterable, Sequence

LONGEST_CLAUSE = 200
"""Most characters of a message before its advice."""

_LONGEST_WORD = 40
"""Characters of a word that a long message keeps at least."""


def visible(text: object) -> str:
    """`text` on one line. Characters that a terminal would obey are shown as escapes.

    A line break becomes `\\n`, and the start of a colour code `\\x1b`. Marks that turn the writing
    direction and lone surrogates are escaped too.
    """
    said = str(text)
    return said if said.isprintable() else "".join(map(_shown, said))


def _shown(character: str) -> str:
    # Spaces of other scripts do no harm, but `isprintable` excludes them.
    if character.isprintable() or unicodedata.category(character) == "Zs":
        return character
    return character.encode("unicode_escape").decode("ascii")


def quoted(word: str) -> str:
    """`word` in double quotes, as a string that Python, TOML and YAML read alike."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{"".join(map(_literal, escaped))}"'


def _literal(character: str) -> str:
    if character.isprintable():
        return character
    number = ord(character)
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def counted(count: int, one: str, many: str | None = None) -> str:
    """`1 layer` or `2 layers`.

    `many` is for other plurals, and for verbs: `counted(n, "layer is", "layers are")`. By default
    the plural ends with s, or with es after ch.
    """
    if count == 1:
        return f"1 {one}"
    return f"{count} {many or one + ('es' if one.endswith('ch') else 's')}"


def in_words(names: Sequence[str]) -> str:
    """`a`, `a and b`, or `a, b and c`."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def known_names(name: str, known: Iterable[str]) -> str:
    """Advice on an unknown name: the known ones, and the nearest of them first."""
    names = list(known)
    near = difflib.get_close_matches(name.lower(), names, n=1)
    lead = f"did you mean {near[0]}? " if near else ""
    return f"{lead}known: {', '.join(names)}"


def shortened(message: str) -> str:
    """A message with at most `LONGEST_CLAUSE` characters before its advice.

    Advice follows the first semicolon. Long words, such as names and paths, lose their middles
    first. Then the end of the clause goes.
    """
    clause, semicolon, advice = message.partition("; ")
    words = clause.split(" ")
    while len(clause) > LONGEST_CLAUSE:
        longest = max(range(len(words)), key=lambda place: len(words[place]))
        excess = len(clause) - LONGEST_CLAUSE
        kept = max(_LONGEST_WORD, len(words[longest]) - excess - 1)
        if kept + 1 >= len(words[longest]):
            clause = clause[: LONGEST_CLAUSE - 1] + "…"
            break
        half = kept // 2
        words[longest] = f"{words[longest][: kept - half]}…{words[longest][-half:]}"
        clause = " ".join(words)
    return f"{clause}{semicolon}{advice}"
