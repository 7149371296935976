"""Mutate the files that a user hands in, and count what becomes of them.

    python scripts/fuzz_files.py 0 100000
    python scripts/fuzz_files.py 3 1 --first 1234 --show

Seeded inputs of every format (tests/support/fuzz/formats.py) go to the loaders, and a part of them through whole command
lines. Prints one JSON line with the outcomes, one line for each fault, and the counts by format. `--show` prints the
bytes of the inputs in place of running them. The exit code is 1 where an exception escaped, an invalid file was
accepted, or an input took more than 10 CPU seconds or 2 GiB.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.support.fuzz.formats import FORMATS
from tests.support.fuzz.session import FAULTS, VERB_EVERY, Session, run_inputs

OUTCOMES = ("refused", "accepted", *FAULTS)
BLOCK = 2000
"""Inputs for one seed: the inputs of a large run are those of the tests."""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("seed", type=int, help="the first seed; each has 2,000 inputs")
    parser.add_argument("count", type=int, help="how many inputs to run")
    parser.add_argument("--first", type=int, default=0, help="the first input of the first seed")
    parser.add_argument(
        "--verb-every", type=int, default=VERB_EVERY, help="accepted inputs per command line"
    )
    parser.add_argument("--show", action="store_true", help="print the inputs in place of running")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        if given.show:
            session = Session(given.seed, Path(name), given.verb_every)
            for index in range(given.first, given.first + given.count):
                file_format, content, _ = session.input(index)
                sys.stdout.buffer.write(f"{file_format} {index}\n".encode() + content + b"\n")
            return 0
        return _run(given, Path(name))


def _run(given: argparse.Namespace, folder: Path) -> int:
    seed, first, count = given.seed, given.first, given.count
    outcomes: dict[str, int] = dict.fromkeys(OUTCOMES, 0)
    formats = {name: dict[str, int]() for name in FORMATS}
    verbs, seconds, faults = 0, 0.0, 0
    while count > 0:
        counts = run_inputs(seed, first, min(BLOCK, count), folder, given.verb_every)
        for kind, number in counts.outcomes.items():
            outcomes[kind] += number
        for (name, kind), number in counts.by_format.items():
            formats[name][kind] = formats[name].get(kind, 0) + number
        for fault in counts.faults:
            faults += 1
            sys.stdout.write(json.dumps(fault._asdict()) + "\n")
            sys.stdout.flush()
        verbs, seconds = verbs + counts.verbs, seconds + counts.cpu_seconds
        sys.stderr.write(f"seed {seed}: {outcomes}, {verbs} command lines, {seconds:.0f} s\n")
        seed, first, count = seed + 1, 0, count - BLOCK
    told = outcomes | {"command lines": verbs, "cpu_seconds": round(seconds, 1)}
    sys.stdout.write(json.dumps(told) + "\n")
    for name, kinds in formats.items():
        sys.stdout.write(f"{name}: {json.dumps(kinds)}\n")
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())
