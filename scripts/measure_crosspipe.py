"""Hold buffered and rendezvous sends against steps that CrossPipe measured under link latency.

    python scripts/measure_crosspipe.py
    python scripts/measure_crosspipe.py --data ../shared/data/published/crosspipe.json

Chen et al., CrossPipe, ATC 2025, Table 5: GH200, 8 stages of equal layers, 16 microbatches. The link between the two
middle ranks takes a latency and a transfer time for each message, both in forwards. Prints seconds per microbatch:
measured, and predicted with the error. The paper gives the forward. The backward follows from 1F1B without delay, and W
from ZB-H1 without delay; so these two cells are no predictions.
"""

import argparse
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from autopart.schedules.actions import StageRanks
from autopart.schedules.catalogue import make_schedule
from autopart.simulator.costs import StageTimes
from autopart.simulator.timeline import simulate

DATA = Path(os.environ.get("AUTOPART_DATA", Path(__file__).parents[2] / "shared" / "data"))
MEASURED = DATA / "published" / "crosspipe.json"
RANKS, MICROBATCHES = 8, 16
FORWARD = 0.038
"""Seconds of a rank's forward (T_F in the paper)."""
DELAYED = {RANKS // 2 - 1, RANKS // 2}
"""The two ranks at the ends of the delayed link."""
SCHEDULES = {"1F1B": "1f1b", "ZBH1": "zb-h1", "ZBV": "zbv"}
"""The paper's names of the static schedules, and ours."""
WITHOUT_DELAY = "0,0"


class Cell(NamedTuple):
    """One measured step, in seconds per microbatch."""

    schedule: str
    delay: str
    """Latency and transfer time of the delayed link, in forwards."""
    measured: float
    buffered: float
    rendezvous: float
    fitted: bool


def cells(path: Path = MEASURED) -> Iterator[Cell]:
    """Every measured cell of the static schedules, with both predictions."""
    content = json.loads(path.read_text(encoding="utf-8"))
    rows: dict[str, list[float]] = content["two_dcs_case1"]
    places = {name: content["columns"].index(name) for name in SCHEDULES}
    backward, weights = fitted_times(*(rows[WITHOUT_DELAY][places[n]] for n in ("1F1B", "ZBH1")))
    for name, place in places.items():
        for delay, row in rows.items():
            forwards = sum(map(float, delay.split(",")))
            delayed = (name, forwards * FORWARD, backward, weights)
            yield Cell(
                schedule=name,
                delay=delay,
                measured=row[place],
                buffered=predicted(*delayed, rendezvous=False),
                rendezvous=predicted(*delayed, rendezvous=True),
                fitted=delay == WITHOUT_DELAY and name != "ZBV",
            )


def fitted_times(one_f_one_b: float, zb_h1: float) -> tuple[float, float]:
    """Seconds of a rank's backward and of its W, from the steps without delay.

    1F1B takes (m + k - 1)(F + B), and ZB-H1 takes m (F + B) + (k - 1)(F + B - 2 W).
    """
    both = one_f_one_b * MICROBATCHES / (MICROBATCHES + RANKS - 1)
    bubble = (zb_h1 - both) * MICROBATCHES / (RANKS - 1)
    return both - FORWARD, (both - bubble) / 2


def predicted(
    name: str, delay: float, backward: float, weights: float, *, rendezvous: bool
) -> float:
    """Seconds per microbatch, where messages over the middle link take `delay` seconds."""
    ranks = stage_ranks(name)
    share = RANKS / len(ranks)

    def send(stage: int, to: int) -> float:
        crosses = 0 <= to < len(ranks) and {ranks[stage][0], ranks[to][0]} == DELAYED
        return delay if crosses else 0.0

    stages = [
        StageTimes(
            forward_time=share * FORWARD,
            backward_time=share * backward,
            send_time=send(stage, stage + 1),
            send_back_time=send(stage, stage - 1),
            update_time=0.0,
            weight_grad_time=share * weights,
        )
        for stage in range(len(ranks))
    ]
    schedule = make_schedule(SCHEDULES[name], ranks, MICROBATCHES)
    timeline = simulate(
        schedule, ranks, stages, (), action_overhead=0.0, sends_overlap=True, rendezvous=rendezvous
    )
    return timeline.makespan / MICROBATCHES


def stage_ranks(name: str) -> StageRanks:
    """One stage per rank; ZBV has two, down the ranks and up again."""
    down = [(rank,) for rank in range(RANKS)]
    return (*down, *reversed(down)) if name == "ZBV" else tuple(down)


def main() -> None:
    """Print the table, and the largest error of each schedule."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=MEASURED)
    found = list(cells(parser.parse_args().data))
    print("| schedule | latency, transfer (forwards) | measured | buffered | rendezvous |")
    print("|---|---|---|---|---|")
    for cell in found:
        said = [f"{x:.3f} ({_error(x, cell):+.1%})" for x in (cell.buffered, cell.rendezvous)]
        if cell.fitted:
            said = [f"{x:.3f} (fitted)" for x in (cell.buffered, cell.rendezvous)]
        print(f"| {cell.schedule} | {cell.delay} | {cell.measured:.3f} | {said[0]} | {said[1]} |")
    for name in SCHEDULES:
        own = [cell for cell in found if cell.schedule == name]
        worst = [max(abs(_error(x, c)) for c, x in ways) for ways in _both(own)]
        print(f"{name}: off by at most {worst[0]:.1%} buffered, {worst[1]:.1%} rendezvous")


def _both(own: list[Cell]) -> list[list[tuple[Cell, float]]]:
    return [[(c, c.buffered) for c in own], [(c, c.rendezvous) for c in own]]


def _error(seconds: float, cell: Cell) -> float:
    return seconds / cell.measured - 1


if __name__ == "__main__":
    main()
