"""Runs the table of hostile command lines, and prints the counts for docs/reliability.md.

python scripts/hostile_lines.py            # all lines
python scripts/hostile_lines.py solve      # lines that contain a word
"""

import os
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.support.hostile_lines import hostile_lines
from tests.support.hostile_session import make_folder, run_lines


def main(words: list[str]) -> None:
    """Run the lines that contain all of `words`."""
    lines = [line for line in hostile_lines() if set(words) <= set(line)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        make_folder(folder)
        os.chdir(folder)
        began = time.process_time()
        session = run_lines(lines, folder)
        spent = time.process_time() - began
        os.chdir("/")
    for fault in session.faults:
        print(fault.encode("unicode_escape").decode())
    codes = ", ".join(f"{count} x {code}" for code, count in sorted(session.codes.items()))
    print(
        f"{session.lines} lines, {len(session.faults)} faults, exit codes: {codes}; {spent:.0f} s"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
