"""Your model as pipeline stages for torch.distributed.pipelining.

Written by autopart. This file and the files `pipeline_*.py` beside it need torch (tested with 2.13)
and your model, nothing else. Keep them in one folder, and name that folder in PYTHONPATH.
`pipeline_plan.py` has the plan's constants; they are names of this module too.
`python pipeline.py --check model.py` compares one step with your plain model: loss and gradients.
Run your training script with one process for each rank in `RANKS`:

    import pipeline  # this file

    dist.init_process_group("nccl", timeout=datetime.timedelta(minutes=5))
    rank, device = dist.get_rank(), torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(device)
    stages = pipeline.build_stages(model, loss_fn, example_microbatch, rank, device)
    schedule = pipeline.build_schedule(stages)
    optimizer = torch.optim.AdamW(stages.module.parameters())
    for ...:
        loss = pipeline.train_step(stages, schedule, optimizer, microbatches, max_norm=1.0)

Weights: every rank builds the same model with the same weights, from one seed or checkpoint. A
rank keeps only its stages' parameters. Names in `stages.module.state_dict()` are the model's own.

Data: a microbatch is `(inputs, target)`. `inputs` is a tuple (positional) or a dict (keywords).
`loss_fn` takes `(output, target)`. It is None where the model returns its own loss; `target` may
then be None. All ranks in a replica take the same `microbatches_of(replica)` microbatches. Each has
the shapes in the example.
"""

from pipeline_capture import Microbatch
from pipeline_cut import StageModule, cut_model
from pipeline_plan import (
    AUTOPART,
    CASTS,
    DTYPE,
    MICROBATCH_SIZE,
    MODEL,
    NUM_MICROBATCHES,
    NUM_REPLICAS,
    NUM_STAGES,
    RANKS,
    RECOMPUTED,
    SCHEDULE,
    SCHEDULE_FILES,
    SELECTIVE,
    SPLITS_BACKWARD,
    STAGE_OF_LAYER,
    STAGES,
    microbatches_of,
    replica_of,
    stages_of,
)
from pipeline_schedule import Schedule, build_schedule
from pipeline_stages import Stages, build_stages
from pipeline_training import (
    accumulate_gradients,
    clip_gradients,
    sum_shared_gradients,
    train_step,
)

__all__ = [
    "AUTOPART",
    "CASTS",
    "DTYPE",
    "MICROBATCH_SIZE",
    "MODEL",
    "NUM_MICROBATCHES",
    "NUM_REPLICAS",
    "NUM_STAGES",
    "RANKS",
    "RECOMPUTED",
    "SCHEDULE",
    "SCHEDULE_FILES",
    "SELECTIVE",
    "SPLITS_BACKWARD",
    "STAGES",
    "STAGE_OF_LAYER",
    "Microbatch",
    "Schedule",
    "StageModule",
    "Stages",
    "accumulate_gradients",
    "build_schedule",
    "build_stages",
    "clip_gradients",
    "cut_model",
    "microbatches_of",
    "replica_of",
    "stages_of",
    "sum_shared_gradients",
    "train_step",
]

if __name__ == "__main__":
    from pipeline_check import main  # training needs no check

    main(__doc__)
