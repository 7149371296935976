"""DAPPLE's profiling results (github.com/AlibabaPAI/DAPPLE): PipeDream's format, one file per net.

A file is called `NET-LAYERS-pbs-B.txt`: it was profiled with a microbatch of B samples on an NVIDIA
V100. Its times and bytes are for that microbatch. So it is an ordinary profile, and goes to
`autopart solve` as it is.
"""

import re
from pathlib import Path

from autopart.errors import FileError
from autopart.peers.pipedream.file import profile_of
from autopart.records.profile import Profile

DEVICE = "NVIDIA V100"
_BATCH = re.compile(r"-pbs-0*([1-9][0-9]*)(?=[-.]|$)")


def load(path: Path | str) -> Profile:
    """The profile in a DAPPLE file; raises FileError, naming the line.

    The microbatch size stands in the file's name only; a file without it is refused.
    """
    match = _BATCH.search(Path(path).name)
    if match is None:
        raise FileError(
            f"{path}: its name does not say the microbatch size; expected NET-LAYERS-pbs-B.txt "
            "with B samples, as in vgg-19-pbs-32.txt"
        )
    return profile_of(path, DEVICE, int(match[1]))
