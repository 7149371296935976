"""The problem that a plan answers, rebuilt from the plan and its profiles."""

import functools
from collections.abc import Sequence

import msgspec

from autopart.activations.policies import StagePolicies
from autopart.cost.chosen_groups import problem_of_choice
from autopart.cost.contention import contended
from autopart.errors import PlanError
from autopart.records.group_choice import GroupChoice, choice_name, has_sharding_choice
from autopart.records.layer_graph import LayerGraph, positions
from autopart.records.layouts import Layout, Partition
from autopart.records.microbatch_sizes import Sized, scale_profile
from autopart.records.plan import Plan, SearchedSize, stage_ranks
from autopart.records.plan_degrees import degrees_name, has_several_degrees, stage_groups
from autopart.records.problem import Problem
from autopart.records.profile import Profile, profile_hash
from autopart.records.rank_group import Group, StageDegrees, group_size, samples_per_gpu
from autopart.stage_degrees.problem import DegreesProblem, problem_of_degrees


class PlanProblem:
    """A plan, and the problem that it answers at each microbatch size that was searched."""

    def __init__(self, plan: Plan, profiles: Sequence[Profile]) -> None:
        self.plan, self.profiles = plan, profiles
        self.by_hash = {profile_hash(profile): profile for profile in profiles}
        self._sized: dict[tuple[int, str, int], Sized] = {}
        self._problems: dict[tuple[int, GroupChoice], Problem] = {}

    @property
    def graph(self) -> LayerGraph:
        """The layer graph of one rank, at the plan's own microbatch size and rank group."""
        return self.problem.graph

    @property
    def problem(self) -> Problem:
        """The problem at the plan's own microbatch size and rank group, whose ranks are the plan's."""
        return self.problem_at(own_entry(self.plan))

    def sized(self, size: SearchedSize) -> Sized:
        """The model at the samples of each GPU, scaled where the plan says so.

        Raises PlanError unless the plan names one of the profiles, and its microbatch size,
        rightly.
        """
        key = _samples(size), size.profile_hash, size.profiled_size
        if key not in self._sized:
            self._sized[key] = self._find(size)
        return self._sized[key]

    def problem_at(self, size: SearchedSize) -> Problem:
        """The problem at another microbatch size and rank group, with the same samples per step.

        For plans whose stages have degrees of their own it has one GPU per rank.
        """
        choice = choice_of(size)
        key = size.microbatch_size, choice
        if key not in self._problems:
            profile = self.sized(size).profile
            batch = self.plan.num_microbatches * self.plan.microbatch_size
            of_gpus = msgspec.structs.replace(
                problem_of(self.plan, profile.graph),
                microbatch_size=_samples(size),
                num_microbatches=batch // _samples(size),
            )
            self._problems[key] = problem_of_choice(of_gpus, profile, choice)
        return self._problems[key]

    def degrees_at(self, size: SearchedSize) -> DegreesProblem | None:
        """The problem of a searched size whose stages have degrees of their own; None for one degree."""
        if not isinstance(size.per_stage, StageDegrees):
            return None
        of_gpus = self.problem_at(msgspec.structs.replace(size, per_stage=msgspec.UNSET))
        return problem_of_degrees(of_gpus, self.sized(size).profile, size.per_stage)

    @functools.cached_property
    def own_degrees(self) -> DegreesProblem | None:
        """`degrees_at` for the plan's own entry."""
        return self.degrees_at(own_entry(self.plan))

    @property
    def stage_graphs(self) -> list[LayerGraph]:
        """For each stage the layer graph of one of its ranks."""
        own = self.own_degrees
        if own is None:
            return [self.graph] * len(self.plan.stages)
        return [own.at(group_size(tensor)).graph for tensor in stage_groups(self.plan)]

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
        scaled = scale_profile(profile, _samples(size))
        return Sized(scaled, size.profile_hash, profile.microbatch_size)


def choice_of(size: SearchedSize) -> GroupChoice:
    """The rank group of a searched size, and whether replicas share optimizer state."""
    return GroupChoice(size.group, size.zero1)


def _samples(size: SearchedSize) -> int:
    """Samples of a searched size on each GPU."""
    return samples_per_gpu(size.microbatch_size, size.group)


def own_size(plan: Plan, profile: Profile | Sequence[Profile]) -> Sized:
    """The model at the plan's microbatch size, from the profiles that the plan was made from.

    Raises PlanError where the plan names none of them.
    """
    given = [profile] if isinstance(profile, Profile) else profile
    return PlanProblem(plan, given).sized(own_entry(plan))


def own_entry(plan: Plan) -> SearchedSize:
    """The plan's entry for its own microbatch size and rank group; raises PlanError where it has none."""
    for size in plan.sizes:
        if size.microbatch_size == plan.microbatch_size and _covers(size, plan):
            return size
    sizes = [size.microbatch_size for size in plan.sizes]
    if plan.microbatch_size in sizes:
        degrees = ", ".join(dict.fromkeys(searched_name(size) for size in plan.sizes))
        raise PlanError(
            f"the plan has {degrees_name(plan)}, but says that {degrees} was searched; solve again"
        )
    raise PlanError(
        f"the plan runs microbatches of {plan.microbatch_size}, but says that "
        f"{sizes} were searched; solve again"
    )


def _covers(size: SearchedSize, plan: Plan) -> bool:
    """Whether a searched size is that of the plan's own rank groups."""
    if not isinstance(size.per_stage, StageDegrees):
        sharded = has_sharding_choice(plan.demands.group)
        return (
            not has_several_degrees(plan)
            and size.group == plan.group
            and (not sharded or plan.training.zero1 is (size.zero1 is True))
        )
    tensors = [one for one in stage_groups(plan) if isinstance(one, Group)]
    chosen = size.per_stage
    return (
        has_several_degrees(plan)
        and {group_size(one) for one in stage_groups(plan)} <= set(chosen.degrees)
        and tensors[0].sequence_parallel == chosen.sequence_parallel
    )


def searched_name(size: SearchedSize) -> str:
    """The rank groups of a searched size in words."""
    if not isinstance(size.per_stage, StageDegrees):
        return choice_name(choice_of(size))
    own = size.per_stage
    listed = ", ".join(map(str, own.degrees))
    return f"tensor degrees per stage among {listed}" + (
        " with sequence parallelism" * own.sequence_parallel
    )


def problem_of(plan: Plan, graph: LayerGraph) -> Problem:
    """The problem that a plan says it solves, with one GPU per rank, and the graph at its microbatch size."""
    return Problem(
        graph=contended(graph, plan.cluster),
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
