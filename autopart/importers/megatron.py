"""Megatron-Core's layouts: the layout string, and the counts of first and last stages.

The string has `E` (embedding), `t` (decoder layer), `m` (layer that predicts further tokens) and `L` (norm, head and loss), with `|`
between stages. `x*3` and `(tt|)*29` repeat; commas mean nothing. Source: Megatron-Core 0.16.1,
`transformer/pipeline_parallel_layer_layout.py` and `transformer/transformer_block.py`.
"""

import re
from dataclasses import dataclass

from autopart.errors import UsageError
from autopart.exporters.model_units import EMBEDDING, HEAD, NORM
from autopart.importers.units import Units, language_model
from autopart.text import counted

MOST_LAYERS = 100_000
"""Most letters of a layout once its repeats are written out."""

_GROUP = re.compile(r"\(([^()]*)\)\*([0-9]{1,6})")
_LETTER = re.compile(r"([EtmL|])\*([0-9]{1,6})")


@dataclass(frozen=True, kw_only=True, slots=True)
class Counts:
    """Megatron's options for stages without a layout string."""

    ranks: int
    """`--pipeline-model-parallel-size`."""
    stages_per_rank: int = 1
    """Virtual stages per rank."""
    first: int | None = None
    """`--decoder-first-pipeline-num-layers`: decoder layers on the first rank."""
    last: int | None = None
    """`--decoder-last-pipeline-num-layers`: decoder layers on the last rank."""
    embedding_counts: bool = False
    """`--account-for-embedding-in-pipeline-split`."""
    loss_counts: bool = False
    """`--account-for-loss-in-pipeline-split`."""


def units_of_layout(text: str) -> Units:
    """The stages of a layout string; raises UsageError on one that Megatron would refuse."""
    letters = _written_out(text)
    stages: list[list[str]] = []
    blocks = 0
    for segment in letters.split("|"):
        stage: list[str] = []
        for letter in segment:
            if letter == "t":
                stage.append(f"layers.{blocks}")
                blocks += 1
            elif letter == "m":
                stage.append("mtp")
            else:
                stage += [EMBEDDING] if letter == "E" else [NORM, HEAD]
        stages.append(stage)
    for letter, name in (("E", "embedding"), ("L", "loss")):
        if letters.count(letter) != 1:
            raise UsageError(
                f"the layout has {letters.count(letter)} x {letter} ({name}); it needs one"
            )
    if EMBEDDING not in stages[0] or HEAD not in stages[-1]:
        raise UsageError(
            "Megatron runs E on the first stage and L on the last; the layout has them elsewhere"
        )
    return tuple(map(tuple, stages))


def _written_out(text: str) -> str:
    """The layout with all repeats written out, as letters and bars."""
    letters = "".join(text.split()).replace(",", "")
    for pattern in (_GROUP, _LETTER):
        size = len(letters) + sum(len(m[1]) * int(m[2]) for m in pattern.finditer(letters))
        if size > MOST_LAYERS:
            raise UsageError(
                f"the layout has {counted(size, 'letter')} when written out; at most {MOST_LAYERS} are read"
            )
        letters = pattern.sub(lambda match: match[1] * int(match[2]), letters)
    for at, letter in enumerate(letters):
        if letter not in "EtmL|":
            raise UsageError(
                f"'{letter}' at place {at} of the layout, with repeats written out, is no layer; Megatron "
                "knows E, t, m, L, | and repeats such as t*3 and (tt|)*4"
            )
    return letters


def units_of_counts(num_layers: int, counts: Counts) -> Units:
    """The stages of a model with `num_layers` decoder layers; raises UsageError where they cannot be divided.

    As Megatron does: rank r has its layers in `stages_per_rank` stages, stage s on rank s mod the ranks.
    An embedding or a loss that counts takes the place of one decoder layer on its rank.
    """
    uneven = counts.first is not None or counts.last is not None
    if uneven and (counts.embedding_counts or counts.loss_counts):
        raise UsageError(
            "Megatron takes either layers of the first and last rank, or an embedding and a loss that count"
        )
    ranks, virtual = counts.ranks, counts.stages_per_rank
    own = [
        counts.first if rank == 0 else counts.last if rank == ranks - 1 else None
        for rank in range(ranks)
    ]
    rest = (
        num_layers
        + counts.embedding_counts
        + counts.loss_counts
        - sum(n for n in own if n is not None)
    )
    open_ranks = own.count(None)
    if rest < 0 or (open_ranks and rest % open_ranks) or (not open_ranks and rest):
        raise UsageError(
            f"{counted(rest, 'layer')} cannot be shared by {counted(open_ranks, 'rank')}, and Megatron needs equally many on each; take "
            "another --pipeline-size, or a layout string"
        )
    share = rest // open_ranks if open_ranks else 0
    per_rank = [share if n is None else n for n in own]
    for rank, n in enumerate(per_rank):
        if n % virtual:
            raise UsageError(
                f"rank {rank} has {counted(n, 'layer')}, which {counted(virtual, 'stage')} per rank cannot share; take a layout string"
            )
    sizes = [per_rank[stage % ranks] // virtual for stage in range(ranks * virtual)]
    sizes[0] -= counts.embedding_counts
    sizes[-1] -= counts.loss_counts
    return language_model(sizes)
