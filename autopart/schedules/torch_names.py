"""Schedules that torch.distributed.pipelining has by name, and its file format for orders."""

from autopart.schedules.actions import Schedule, words_of

TORCH_NAMES = {
    "gpipe": "GPipe",
    "1f1b": "1F1B",
    "looped-bfs": "LoopedBFS",
    "interleaved-1f1b": "Interleaved1F1B",
    "interleaved-zb": "InterleavedZeroBubble",
    "zb-h1": "InterleavedZeroBubble",
    "zbv": "ZBVZeroBubble",
    "dualpipev": "DualPipeV",
    "paired-dualpipev": "DualPipeV",
}
"""Torch's names for schedules whose orders torch makes too."""


def takes(name: str, num_ranks: int, stages_per_rank: int, microbatches_per_replica: int) -> bool:
    """Whether torch's schedule `name` accepts the numbers of one replica."""
    if name == "1F1B":
        return microbatches_per_replica >= num_ranks * stages_per_rank
    if name.startswith("Interleaved"):
        return microbatches_per_replica % max(1, microbatches_per_replica // num_ranks) == 0
    return True


def csv_of(orders: Schedule) -> str:
    """Orders in the format of torch's schedule file ("compute_only").

    Each rank has a line, and each action a cell. An overlapped pair has one cell.
    """
    return "".join(",".join(words_of(order)) + "\n" for order in orders)
