"""Measure how the chain solver's time grows with layers n and stages k.

    python scripts/bench_solvers.py [FILE...] [--layers 64 ... 4096] [--stages 4 ... 1024] [--repeats 3]

Synthetic chains have sends at every cut, and 1F1B memory that binds on the early stages. FILE adds
a real chain: a profile from autopart, PipeDream, DAPPLE or Piper, cut along its order on 32 GB
GPUs.

Prints one JSON line for each chain, n and k. It has processor seconds (the fastest repeat), the
bottleneck and the largest infeasible value. Then it prints one line for each synthetic chain
with p and q from a least squares fit, seconds ~ n^p k^q. The fit uses runs with 2 ms or more.
"""

import argparse
import json
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

import autopart
from autopart.cost.cuts import all_cuts
from autopart.peers.formats import import_profile
from autopart.records.layouts import Layout
from autopart.records.profile import Profile
from autopart.search.demands import make_problem
from autopart.search.options import SolveOptions
from autopart.solvers import chain_bisection
from autopart.solvers.chain import Chain, MemoryLimit, Sizes, prefix
from autopart.solvers.chain_of_layout import LayoutChain, chain_of

LAYERS = (64, 200, 512, 1024, 2048, 4096)
STAGES = (4, 16, 64, 256, 1024)
KINDS = ("uniform", "lognormal", "half free", "equal", "one heavy layer", "free first half")
GPU = "v100-sxm-32gb"
FITTED_SECONDS = 2e-3
"""Seconds below which a run is mostly overhead; the fit skips it."""


class Run(NamedTuple):
    """Processor seconds for one chain with `layers` layers in `stages` stages."""

    layers: int
    stages: int
    seconds: float


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--layers", type=int, nargs="+", default=LAYERS)
    parser.add_argument("--stages", type=int, nargs="+", default=STAGES)
    parser.add_argument("--kinds", nargs="+", default=KINDS)
    parser.add_argument("--repeats", type=int, default=3)
    asked = parser.parse_args()
    for kind in asked.kinds:
        runs = [
            _measure(kind, synthetic(kind, n, k), asked.repeats)
            for n in asked.layers
            for k in asked.stages
            if k <= n
        ]
        print(json.dumps({"chain": kind, **_exponents(runs)}), flush=True)
    for path in asked.files:
        for k in asked.stages:
            if k <= len(_profile(path).graph.layers):
                _measure(str(path), real(_profile(path), k), asked.repeats)


def synthetic(kind: str, layers: int, stages: int) -> LayoutChain:
    """A chain from a fixed seed.

    Memory is 1.5 times the average stage's bytes with the middle stage's microbatches in flight.
    """
    rng = np.random.default_rng(0)
    work = _work(kind, layers, rng)
    sends = rng.uniform(0, 0.5, layers + 1) * work.mean()
    sends[[0, -1]] = 0.0
    state, stash = (rng.integers(1, 100, layers) for _ in range(2))
    sent = rng.integers(0, 50, layers + 1)
    nothing = np.zeros(layers + 1, dtype=np.int64)
    in_flight = tuple(stages - stage for stage in range(stages))
    capacity = int(1.5 * (100 * state.sum() + max(1, stages // 2) * stash.sum()) / stages)
    # Memory is at least enough for the heaviest layers on the first stage.
    memory = MemoryLimit(
        max(capacity, int(100 * state.max() + stages * (stash.max() + 50))),
        Sizes(100 * prefix(state), nothing, nothing),
        Sizes(prefix(stash), sent, nothing),
    )
    return LayoutChain(Chain(prefix(work), (sends,), 0.0, memory), (0,) * (stages - 1), in_flight)


def _work(
    kind: str, layers: int, rng: np.random.Generator
) -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
    even = rng.uniform(0.5, 1.5, layers)
    place = np.arange(layers)
    made = {
        "uniform": even,
        "lognormal": rng.lognormal(0.0, 1.0, layers),
        "half free": even * (rng.random(layers) < 0.5),
        "equal": np.ones(layers),
        "one heavy layer": np.where(place == layers // 3, layers / 10, even),
        "free first half": np.where(place < layers // 2, 1e-6, even),
    }
    return made[kind]


def real(profile: Profile, stages: int) -> LayoutChain:
    """The profile's layers in their order: one GPU per stage, 1F1B, sends beside compute."""
    cluster = autopart.cluster_of(GPU, gpus=stages)
    problem = make_problem(profile, cluster, 4 * stages, SolveOptions(schedule="1f1b"))
    ranks = tuple((rank,) for rank in range(stages))
    layout = Layout(schedule="1f1b", stage_ranks=ranks, num_microbatches=4 * stages)
    return chain_of(problem, layout, all_cuts(profile.graph, most=0).totals, send_share=1.0)


def _profile(path: Path) -> Profile:
    if path.suffix != ".json":
        return import_profile("dapple" if "-pbs-" in path.name else "pipedream", path)
    named = '"TMPCs"' in path.read_text(encoding="utf-8")
    return import_profile("piper", path) if named else autopart.load_profile(path)


def _measure(name: str, asked: LayoutChain, repeats: int) -> Run:
    seconds: list[float] = []
    found = None
    for _ in range(repeats):
        began = time.process_time()
        found = chain_bisection.solve(*asked)
        seconds.append(time.process_time() - began)
    run = Run(len(asked.chain.work) - 1, len(asked.in_flight), min(seconds))
    answer = {
        "bottleneck": found.bottleneck if found else None,
        "infeasible": found.infeasible if found else None,
    }
    print(json.dumps({"chain": name, **run._asdict(), **answer}), flush=True)
    return run


def _exponents(runs: list[Run]) -> dict[str, float | None]:
    long = [run for run in runs if run.seconds >= FITTED_SECONDS]
    if len({run.layers for run in long}) < 2 or len({run.stages for run in long}) < 2:
        return {"exponent_of_layers": None, "exponent_of_stages": None}
    # log seconds = p log n + q log k + constant, with log e = 1 for the constant.
    logs = np.log([[run.layers, run.stages, np.e] for run in long])
    (p, q, _), *_ = np.linalg.lstsq(logs, np.log([run.seconds for run in long]), rcond=None)
    return {"exponent_of_layers": round(float(p), 2), "exponent_of_stages": round(float(q), 2)}


if __name__ == "__main__":
    main()
