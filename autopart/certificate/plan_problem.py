"""The problem that a plan answers, rebuilt from the plan and its profiles."""

from collections.abc import Sequence

import msgspec

from autopart.activations.policies import StagePolicies
from autopart.errors import PlanError
from autopart.records.layer_graph import LayerGraph, positions
from autopart.records.layouts import Layout, Partition
from autopart.records.microbatch_sizes import Sized, scale_profile
from autopart.records.plan import Plan, SearchedSize, stage_ranks
from autopart.records.problem import Problem
from autopart.records.profile import Profile, profile_hash


class PlanProblem:
    """A plan, and the problem that it answers at each microbatch size that was searched."""

    def __init__(self, plan: Plan, profiles: Sequence[Profile]) -> None:
        self.plan, self.profiles = plan, profiles
        self.by_hash = {profile_hash(profile): profile for profile in profiles}
        self._sized: dict[int, Sized] = {}

    @property
    def graph(self) -> LayerGraph:
        """The layer graph at the plan's own microbatch size."""
        return self.sized(own_entry(self.plan)).profile.graph

    @property
    def problem(self) -> Problem:
        """The problem at the plan's own microbatch size."""
        return problem_of(self.plan, self.graph)

    def sized(self, size: SearchedSize) -> Sized:
        """The model at a searched size, scaled where the plan says so.

        Raises PlanError unless the plan names one of the profiles, and its microbatch size,
        rightly.
        """
        if size.microbatch_size not in self._sized:
            self._sized[size.microbatch_size] = self._find(size)
        return self._sized[size.microbatch_size]

    def problem_at(self, size: SearchedSize) -> Problem:
        """The problem at another microbatch size, with the same samples per step."""
        batch = self.plan.num_microbatches * self.plan.microbatch_size
        return msgspec.structs.replace(
            problem_of(self.plan, self.sized(size).profile.graph),
            microbatch_size=size.microbatch_size,
            num_microbatches=batch // size.microbatch_size,
        )

    def _find(self, size: SearchedSize) -> Sized:
        if size.profile_hash not in self.by_hash:
            raise PlanError(
                f"the plan was made from profile {size.profile_hash}, given is "
                f"{', '.join(self.by_hash)}; take the profile that it was solved with, or all of "
                "them, or solve again"
            )
        profile = self.by_hash[size.profile_hash]
        if size.profiled_size != profile.microbatch_size:
            raise PlanError(
                f"the plan says that profile {size.profile_hash} has microbatches of "
                f"{size.profiled_size}, but it was taken with {profile.microbatch_size}"
            )
        scaled = scale_profile(profile, size.microbatch_size)
        return Sized(scaled, size.profile_hash, profile.microbatch_size)


def own_size(plan: Plan, profile: Profile | Sequence[Profile]) -> Sized:
    """The model at the plan's microbatch size, from the profiles that the plan was made from.

    Raises PlanError where the plan names none of them.
    """
    given = [profile] if isinstance(profile, Profile) else profile
    return PlanProblem(plan, given).sized(own_entry(plan))


def own_entry(plan: Plan) -> SearchedSize:
    """The plan's entry for its own microbatch size; raises PlanError where it has none."""
    for size in plan.sizes:
        if size.microbatch_size == plan.microbatch_size:
            return size
    raise PlanError(
        f"the plan runs microbatches of {plan.microbatch_size}, but says that "
        f"{[size.microbatch_size for size in plan.sizes]} were searched; solve again"
    )


def problem_of(plan: Plan, graph: LayerGraph) -> Problem:
    """The problem that a plan says it solves, with the layer graph at its own microbatch size."""
    return Problem(
        graph=graph,
        cluster=plan.cluster,
        microbatch_size=plan.microbatch_size,
        num_microbatches=plan.num_microbatches,
        training=plan.training,
        demands=plan.demands,
        objective=plan.objective,
    )


def layout_of(plan: Plan) -> Layout:
    """The plan's schedule, ranks and microbatches."""
    return Layout(
        schedule=plan.schedule,
        stage_ranks=stage_ranks(plan),
        num_microbatches=plan.num_microbatches,
    )


def partition_of(plan: Plan, graph: LayerGraph) -> Partition:
    """For each stage, the positions that its layers have in the graph.

    Raises PlanError on an unknown layer.
    """
    place = positions(graph)
    for index, stage in enumerate(plan.stages):
        for name in stage.layers:
            if name not in place:
                raise PlanError(
                    f"stage {index} has layer '{name}', which the profile does not know"
                )
    return tuple(tuple(place[name] for name in stage.layers) for stage in plan.stages)


def policies_of(plan: Plan, graph: LayerGraph) -> tuple[StagePolicies, ...]:
    """For each stage, the positions of its layers under each policy except `keep`."""
    place = positions(graph)

    def at(names: Sequence[str]) -> tuple[int, ...]:
        return tuple(sorted(place[name] for name in names))

    return tuple(
        StagePolicies(
            at(stage.recompute), at(stage.selective), at(stage.offload), stage.optimizer_on_host
        )
        for stage in plan.stages
    )
