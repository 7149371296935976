"""A lower bound under GEMS, whose microbatches run one at a time.

Symbols   M       microbatches of one pair of pipelines
          f, b    forward and backward seconds of the last stage, with fixed costs
          down    one microbatch's forwards and sends through all stages, the last one included
          back    its backwards and sends from the last stage to stage 0, both included

On each rank a forward follows right after the backward of the microbatch before. That microbatch goes
the other way, so its stage 0 and the last stage of the next one share a rank, and so do its last stage
and the next one's stage 0:

    step >= down + M back + (M - 1) f           from stage 0's backward to the next last forward      (26)
    step >= M down + back + (M - 1) b           from the last backward to the next first forward      (27)
"""

import numpy as np

from autopart.bounds.microbatch_path import Matrix, MicrobatchPath


def one_at_a_time_bounds(
    path: MicrobatchPath[Matrix], count: int, end: Matrix
) -> tuple[Matrix, Matrix]:
    """(26) and (27) in seconds for every [i, j] as the last stage.

    `path` is around the last stage, `count` is M, and `end` are sync and update of stage 0.
    """
    down = path.compute_before + path.sends_before + path.receive + path.forward
    back = path.backward + path.send_back + path.sends_after + path.compute_after
    by_backwards = down + count * back + (count - 1) * path.forward
    by_forwards = count * down + back + (count - 1) * path.backward
    return np.asarray(by_backwards + end), np.asarray(by_forwards + end)
