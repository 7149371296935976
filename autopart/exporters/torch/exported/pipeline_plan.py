"""The plan of `pipeline.py`: stages, ranks, schedule and recomputed layers.

Written by autopart. Two exports differ in this file only, and in the files with orders.
"""

from typing import Any

from torch.distributed.pipelining import schedules

# ---- The plan: the only lines that differ between two exports -----------------------------------

MODEL = "zoo:mlp-tiny"
AUTOPART = "0.1.0"  # the version that wrote this file

# Layer names for each stage, as the model names its modules. "name@1" is a module's second call.
# "loss" is the result of loss_fn. An operation outside all layers joins a stage that needs it.
STAGES: tuple[tuple[str, ...], ...] = (
    ("layers.0", "layers.1"),
    ("layers.2", "loss"),
)

# Layers that run their forward again in backward and keep only their inputs. Layers in SELECTIVE
# also keep the results of products with weights: linear layers and convolutions.
RECOMPUTED: tuple[str, ...] = ()
SELECTIVE: tuple[str, ...] = ()

# Ranks for each stage. The first ranks of all stages form replica 0, the second ranks replica 1.
RANKS: tuple[tuple[int, ...], ...] = (
    (0,),
    (1,),
)

# A schedule class from torch. If None, each replica reads its orders from a file beside this one.
# That file has one line per rank, by rising rank, and one cell per action. 2F0 is stage 2, forward,
# microbatch 0.
SCHEDULE: Any = schedules.Schedule1F1B
SCHEDULE_FILES: tuple[str, ...] = ()
SPLITS_BACKWARD = False  # True if some backwards run as I (input gradient) and W (weight gradient)
NUM_MICROBATCHES = 4  # microbatches per step, over all replicas
MICROBATCH_SIZE = 2
DTYPE = "float32"  # the dtype of most parameters
CASTS = True  # False if the model and its batch keep several dtypes

# ---- The end of the plan ------------------------------------------------------------------------

NUM_STAGES = len(STAGES)
NUM_REPLICAS = len(RANKS[0])
STAGE_OF_LAYER = {layer: index for index, layers in enumerate(STAGES) for layer in layers}


def stages_of(rank: int) -> list[int]:
    """The stages on the rank, by rising index."""
    return [index for index, on in enumerate(RANKS) if rank in on]


def replica_of(rank: int) -> int:
    """The replica that contains the rank."""
    return next(on.index(rank) for on in RANKS if rank in on)


def microbatches_of(replica: int) -> int:
    """The number of microbatches per step for the replica."""
    return len(range(replica, NUM_MICROBATCHES, NUM_REPLICAS))
