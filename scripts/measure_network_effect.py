"""Plans for known clusters against plans that price collectives as one ring over one adapter.

    python scripts/measure_network_effect.py

For each profile in profiles/ and some known clusters, the planner solves the problem twice: on the cluster that counts
and a GPU's datasheet give, and on the known cluster. Both plans are then priced on the known cluster. ZeRO-1, 1F1B and
GPipe, an equal number of replicas for each stage.
"""

import argparse
import itertools
from pathlib import Path

import autopart
from autopart.certificate.plan_problem import PlanProblem, layout_of, partition_of
from autopart.pricing import fits, price
from autopart.records.known_clusters import find_preset, preset_cluster
from autopart.records.plan import Plan
from autopart.records.profile import Profile, load_profile

ROOT = Path(__file__).parent.parent
MODELS = ("llama-8b", "gpt2-1.3b", "moe-small", "encdec-base", "resnet-50")
CLUSTERS = (("dgx-h100", 8), ("p5", 4))
BATCH = 512


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--time-limit", type=float, default=60.0, help="seconds for one search")
    limit: float = parser.parse_args().time_limit
    print(
        "| model | cluster | old choice | its step, s | new choice | its step, s | gap, % | gain |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for model, (name, nodes) in itertools.product(MODELS, CLUSTERS):
        profile = load_profile(ROOT / "profiles" / f"{model}-h100-sxm-mb2.json")
        print(row(model, profile, name, nodes, limit), flush=True)


def row(model: str, profile: Profile, name: str, nodes: int, limit: float) -> str:
    """One line: both choices, with their steps on the known cluster."""
    known = preset_cluster(find_preset(name), nodes)
    gpus = nodes * known.gpus_per_node
    flat = autopart.cluster_of(known.gpu, gpus=gpus, nodes=nodes)
    old, new = (
        autopart.solve(profile, one, global_batch=BATCH, zero1=True, time_limit=limit)
        for one in (flat, known)
    )
    step = step_on(old, new, profile)
    own = new.prediction.step_time
    return (
        f"| {model} | {nodes} x `{name}` | {words(old)} | {step:.4g} | {words(new)} | {own:.4g} "
        f"| {100 * (new.certificate.gap or 0.0):.2f} | {step / own:.2f} |"
    )


def words(plan: Plan) -> str:
    """Stages, replicas and schedule."""
    return f"{len(plan.stages)} x {len(plan.stages[0].ranks)} {plan.schedule}"


def step_on(plan: Plan, other: Plan, profile: Profile) -> float:
    """Seconds of a plan's step on the cluster of another plan for the same profile."""
    own, problem = PlanProblem(plan, [profile]), PlanProblem(other, [profile]).problem
    layout, partition = layout_of(plan), partition_of(plan, own.graph)
    decision = price(problem, layout, partition)
    assert fits(problem, decision), "the memory is the same"
    return decision.prediction.step_time


if __name__ == "__main__":
    main()
