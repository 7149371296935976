"""Hold own orders against other schedulers' orders on the same costs and memory caps.

    python scripts/bench_orders.py DATA [--seconds 10] [--actions N] [--only c17 v31] [--json]

DATA is a folder with `baselines.json` (instances, and the peers' makespans on them) and
`score_orders.py` (an independent scorer, which checks and times our orders too). `best_known` is
the shortest makespan of all peers and of CP-SAT with much more time. Units are those of the file.

Each instance gets the same wall-clock seconds. The table has the processor seconds beside them: on
a busy machine they are fewer. With `--seconds inf --actions N` each gets the same simulated actions
instead, and the orders do not depend on the machine, unless CP-SAT is installed.
"""

import argparse
import importlib.util
import itertools
import json
import math
import time
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from autopart.bounds.any_order_partition import OrderProblem
from autopart.simulator.costs import StageTimes
from autopart.solvers.orders.optimizer import optimize_orders


class Row(NamedTuple):
    """One instance: makespans in the file's units, and seconds."""

    instance: str
    actions: int
    makespan: int
    best_peer: int | None
    peer: str
    best_known: int
    lower_bound: float
    fits: bool
    seconds: float
    processor_seconds: float
    origin: str


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--seconds", type=float, default=10.0, help="wall-clock limit (10)")
    parser.add_argument(
        "--actions", type=float, default=math.inf, help="limit of simulated actions (none)"
    )
    parser.add_argument("--only", nargs="+", default=(), help="parts of instances' names")
    parser.add_argument("--json", action="store_true", help="one JSON line for each instance")
    asked = parser.parse_args()
    scorer = load_scorer(asked.data / "score_orders.py")
    given = json.loads((asked.data / "baselines.json").read_text())["instances"]
    rows: list[Row] = []
    for instance in given:
        if asked.only and not any(part in instance["id"] for part in asked.only):
            continue
        rows.append(measure(instance, scorer, asked.seconds, asked.actions))
        print(json.dumps(rows[-1]._asdict()) if asked.json else line(rows[-1]), flush=True)
    if not asked.json:
        print(summary(rows))


def load_scorer(path: Path) -> ModuleType:
    """The independent scorer as a module."""
    spec = importlib.util.spec_from_file_location("score_orders", path)
    assert spec is not None and spec.loader is not None, path
    scorer = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(scorer)
    return scorer


def order_problem(instance: dict[str, Any]) -> OrderProblem:
    """An instance of the file as a problem. Stages on one rank exchange nothing over a link."""
    ranks = instance["stage_ranks"]
    forward, gradient, weights = (instance[op] for op in "FIW")
    apart = [a != b for a, b in itertools.pairwise(ranks)]
    stages = [
        StageTimes(
            forward_time=float(forward[s]),
            backward_time=float(gradient[s] + weights[s]),
            send_time=float(instance["send"] if s < len(apart) and apart[s] else 0),
            send_back_time=float(instance["send"] if s > 0 and apart[s - 1] else 0),
            update_time=0.0,
            weight_grad_time=float(weights[s]),
        )
        for s in range(len(ranks))
    ]
    return OrderProblem(
        stages=stages,
        stage_ranks=tuple((rank,) for rank in ranks),
        num_microbatches=instance["m"],
        split=instance["split"],
        stash_bytes=instance["stash"],
        waiting_bytes=instance["waiting"],
        room_bytes=instance["cap"],
    )


def measure(
    instance: dict[str, Any], scorer: ModuleType, seconds: float, actions: float = math.inf
) -> Row:
    """Optimize one instance's orders, and let the independent scorer time them.

    The search ends after so many seconds, or after so many simulated actions.
    """
    task = order_problem(instance)
    begun, processor = time.perf_counter(), time.process_time()
    found = optimize_orders(task, deadline=begun + seconds, actions=actions)
    took, processor = time.perf_counter() - begun, time.process_time() - processor
    score = scorer.score(instance, [[list(action) for action in o] for o in found.schedule])
    peers = {
        name: peer["makespan"]
        for name, peer in instance["peers"].items()
        if peer.get("fits") and not name.startswith(("cp-sat", "autopart"))
    }
    best = min(peers, key=peers.__getitem__, default="")
    return Row(
        instance=instance["id"],
        actions=sum(map(len, found.schedule)),
        makespan=score["makespan"],
        best_peer=peers.get(best),
        peer=best,
        best_known=instance["best_known"],
        lower_bound=found.lower_bound,
        fits=score["fits"],
        seconds=took,
        processor_seconds=processor,
        origin=found.origin,
    )


def line(row: Row) -> str:
    """One line of the table: percent beyond the best peer, the best known makespan, the bound."""
    peer = f"{over(row.makespan, row.best_peer):+6.2f}" if row.best_peer else "     –"
    return (
        f"{row.instance:32s} {row.actions:5d} {row.makespan:8d} {row.peer:21s} {peer} "
        f"{over(row.makespan, row.best_known):+6.2f} {over(row.makespan, row.lower_bound):+6.2f} "
        f"{row.seconds:6.1f} s {row.processor_seconds:6.1f} s  {row.origin}"
        f"{'' if row.fits else '  DOES NOT FIT'}"
    )


def over(value: float, base: float) -> float:
    """Percent by which a value is larger."""
    return 100.0 * (value / base - 1.0)


def summary(rows: list[Row]) -> str:
    """Counts against the peers, and the mean distance from the best known makespans."""
    held = [(row.makespan, row.best_peer) for row in rows if row.best_peer is not None]
    won, lost = (sum(a < b for a, b in held), sum(a > b for a, b in held))
    mean = sum(over(row.makespan, row.best_known) for row in rows) / max(1, len(rows))
    shorter = sum(row.makespan < row.best_known for row in rows)
    longer = sum(row.makespan > row.best_known for row in rows)
    return (
        f"against the best peer: {won} shorter, {len(held) - won - lost} equal, {lost} longer\n"
        f"against the best known: {shorter} shorter, {longer} longer, mean {mean:+.3f} %"
    )


if __name__ == "__main__":
    main()
