"""The question of a sizing: tokens, prices and limits, the GPU kinds with their profiles, and the counts to try."""

import dataclasses
import difflib
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Required

import msgspec

from autopart.errors import ClusterError, ProfileError, UsageError
from autopart.records.cluster import MOST_GPUS, Cluster, cluster_of
from autopart.records.known_clusters import PRESETS, node_of, preset_cluster
from autopart.records.known_gpus import GPUS, known_name
from autopart.records.layer_graph import LayerGraph
from autopart.records.network import with_gpus
from autopart.records.profile import Profile
from autopart.search.options import SolveKeywords
from autopart.text import counted, in_words

GPUS_PER_NODE = 8
"""GPUs of a node where no known node has the kind."""
MOST_COUNTS = 4096
"""The most counts that are tried for one GPU kind."""
BYTES_PER_TOKEN = 8
"""Bytes of one token id in a model's input: torch has them as int64."""
COUNTS = ("auto", "powers", "dividing", "nodes")
"""The words for the counts to try."""
SECONDS_PER_DAY = 86400.0


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class SizeOptions:
    """What the training is, what it may take, and which numbers of GPUs are tried."""

    tokens: float
    """Tokens of the whole training."""
    tokens_per_sample: int | None = None
    """Tokens in one sample. None: the length of the model's input of token ids."""
    within_days: float | None = None
    """Days in which the training must end. None: any."""
    budget: float | None = None
    """Dollars that it may cost. None: any."""
    counts: str = "auto"
    """Numbers of GPUs to try: a list such as `8,16,24`, or a word.

    `powers`: the divisors of a node, and powers of two of whole nodes. `auto`: also the whole nodes among which
    the fewest are found. `nodes`: every number of whole nodes. `dividing`: those that divide the batch.
    """
    gpus_per_node: int | None = None
    """GPUs on a whole node. None: as the GPU comes."""
    most_gpus: int = 1024
    """The most GPUs that are tried."""
    count_limit: float = 10.0
    """Seconds for one number of GPUs."""


class SizeKeywords(SolveKeywords, total=False):
    """The fields of `SizeOptions` and `SolveOptions` as keywords, for `autopart.size(profiles, prices, ...)`."""

    clusters: Mapping[str, Cluster]
    """Clusters of one's own, by the names that have prices. Only their nodes count, not how many there are."""
    tokens: Required[float]
    tokens_per_sample: int | None
    within_days: float | None
    budget: float | None
    counts: str
    gpus_per_node: int | None
    most_gpus: int
    count_limit: float


class PricedKind(NamedTuple):
    """One GPU kind of the question."""

    name: str
    """The name that has a price."""
    price: float
    """Dollars per GPU hour."""
    node: Cluster
    """One whole node."""
    profiles: tuple[Profile, ...]
    """The model's profiles on this GPU, one per microbatch size."""


class GpuCount(NamedTuple):
    """A number of GPUs: part of one node, or whole nodes."""

    gpus: int
    nodes: int

    def of(self, node: Cluster) -> Cluster:
        """The cluster of so many GPUs; `node` is one whole node."""
        each = self.gpus // self.nodes
        network = with_gpus(node.network, node.gpus_per_node, each)
        return msgspec.structs.replace(
            node, num_nodes=self.nodes, gpus_per_node=each, network=network
        )


def check_size_options(options: SizeOptions) -> None:
    """Raise UsageError where a figure of the question makes no sense."""
    _check_positive("--tokens", options.tokens, "tokens to train on, such as 1e12")
    if options.within_days is not None:
        _check_positive("--within", options.within_days, "time to train in, such as 30d")
    if options.budget is not None:
        _check_positive("--budget", options.budget, "dollars, such as 200000")
    if options.tokens_per_sample is not None and options.tokens_per_sample < 1:
        raise UsageError(f"--tokens-per-sample {options.tokens_per_sample}: write at least 1")
    if options.most_gpus < 1 or (options.gpus_per_node or 1) < 1:
        raise UsageError("--most-gpus and --gpus-per-node must be at least 1")
    if max(options.most_gpus, options.gpus_per_node or 1) > MOST_GPUS:
        raise UsageError(
            f"--most-gpus and --gpus-per-node: at most {MOST_GPUS} GPUs are planned for"
        )


def _check_positive(option: str, number: float, meaning: str) -> None:
    if not (0 < number <= 1e18):
        raise UsageError(f"{option} {number:g}: write a number above 0 and up to 1e18, {meaning}")


def priced_kinds(
    profiles: Sequence[Profile],
    prices: Mapping[str, float],
    clusters: Mapping[str, Cluster],
    gpus_per_node: int | None,
) -> list[PricedKind]:
    """The GPU kinds that have prices, each with its node and its profiles.

    Raises UsageError where a price is no price, ClusterError where a kind is unknown, and ProfileError where a kind
    has no profile, or profiles are of several models.
    """
    if not prices:
        raise UsageError("no GPU kind has a price; write for example --gpu h100-sxm=2.5")
    for name, price in prices.items():
        if not 0 < price <= 1e9:
            raise UsageError(
                f"{name}={price:g} is no price; write dollars per GPU hour above 0, such as {name}=2.5"
            )
    nodes = {name: _node(name, clusters, gpus_per_node) for name in prices}
    _check_one_model(profiles)
    own = [_gpu_of(profile) for profile in profiles]
    found: list[PricedKind] = []
    for name, node in nodes.items():
        gpu = known_name(node.gpu) or node.gpu
        fitting = tuple(p for p, at in zip(profiles, own, strict=True) if at == gpu)
        if not fitting:
            raise ProfileError(_no_profile(name, gpu, profiles, own))
        found.append(PricedKind(name, prices[name], node, fitting))
    asked = {known_name(node.gpu) or node.gpu for node in nodes.values()}
    spare = [gpu for gpu in own if gpu not in asked]
    if spare:
        raise UsageError(
            f"a profile is for {spare[0]}, which has no price; add {spare[0]}=PRICE to --gpu, or leave it out"
        )
    return found


def _gpu_of(profile: Profile) -> str:
    if profile.device.kind == "cpu":
        return "cpu"
    return known_name(profile.device.name) or profile.device.name


def _no_profile(name: str, gpu: str, profiles: Sequence[Profile], own: Sequence[str]) -> str:
    """The error for a GPU kind without a profile, with the commands that make one."""
    model = profiles[0].source.model if profiles else "MODEL"
    there = f"; the profiles given are for {in_words(sorted(set(own)))}" if own else ""
    remedy = f"make one on such a GPU: 'autopart profile {model} -o {gpu}.json'"
    if gpu in GPUS and gpu != "cpu":
        dtype = profiles[0].dtype if profiles else "bfloat16"
        remedy += (
            f", or from its datasheet: 'autopart profile {model} --device meta --gpu {gpu} "
            f"--dtype {dtype} -o {gpu}.json'"
        )
    return f"there is no profile for {name}; {remedy}{there}"


def _check_one_model(profiles: Sequence[Profile]) -> None:
    """Raise ProfileError unless all profiles have the same layers."""
    for other in profiles[1:]:
        if _layers(other.graph) != _layers(profiles[0].graph):
            raise ProfileError(
                f"the profiles are of several models: {profiles[0].source.model} with "
                f"{counted(len(profiles[0].graph.layers), 'layer')} and {other.source.model} with "
                f"{counted(len(other.graph.layers), 'layer')}; give profiles of one model"
            )


def _layers(graph: LayerGraph) -> list[tuple[str, int]]:
    return [(layer.name, layer.num_trainable) for layer in graph.layers]


def _node(name: str, clusters: Mapping[str, Cluster], gpus_per_node: int | None) -> Cluster:
    """One whole node of a kind; raises ClusterError on an unknown name, with the nearest ones."""
    if name in clusters:
        own = clusters[name]
        if own.gpus:
            raise ClusterError(f"{name}: its GPUs differ; size takes clusters of equal GPUs")
        count = gpus_per_node or own.gpus_per_node
        return GpuCount(count, 1).of(own)
    if name in PRESETS:
        preset = PRESETS[name]
        if (gpus_per_node or 1) > preset.gpus_per_node:
            raise ClusterError(
                f"{name} has {counted(preset.gpus_per_node, 'GPU')} per node, not {gpus_per_node}; "
                "leave --gpus-per-node out"
            )
        return preset_cluster(preset, 1, gpus_per_node)
    if name not in GPUS:
        known = [*GPUS, *PRESETS]
        near = [one for one in known if name and one.startswith(name)]
        near += difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        advice = f"did you mean {' or '.join(dict.fromkeys(near))}? " if near else ""
        raise ClusterError(
            f"unknown GPU kind '{name}'; {advice}known: {', '.join(GPUS)}, the clusters of 'autopart clusters', "
            "or a cluster file"
        )
    usual = node_of(name, gpus_per_node or 1)
    if usual is not None:
        return preset_cluster(usual, 1, gpus_per_node)
    count = gpus_per_node or GPUS_PER_NODE
    return cluster_of(name, count, 1, count)


def tokens_in_sample(profiles: Sequence[Profile], asked: int | None) -> int:
    """Tokens in one sample: as asked, or the length of the model's one input of token ids.

    Raises UsageError where this length cannot be known.
    """
    if asked is not None:
        return asked
    lengths = {length for profile in profiles for length in _id_lengths(profile)}
    if len(lengths) == 1 and all(len(_id_lengths(profile)) == 1 for profile in profiles):
        return lengths.pop()
    reason = "has several inputs of token ids" if lengths else "has no input of token ids"
    raise UsageError(
        f"the model {reason}, so the tokens of a sample are unknown; give them: --tokens-per-sample 4096"
    )


def _id_lengths(profile: Profile) -> list[int]:
    """For each input that an embedding reads, its ids in one sample."""
    embeddings = {layer.name for layer in profile.graph.layers if layer.kind == "Embedding"}
    sizes = [own.bytes for own in profile.graph.inputs if embeddings.intersection(own.consumers)]
    each = BYTES_PER_TOKEN * profile.microbatch_size
    return [size // each if size and size % each == 0 else 0 for size in sizes]


def counts_to_try(node: Cluster, options: SizeOptions, batch: int) -> list[GpuCount]:
    """The numbers of GPUs that are tried at first, the fewest first; raises UsageError on a count that is none."""
    each, most = node.gpus_per_node, options.most_gpus
    whole = most // each
    parts = [GpuCount(n, 1) for n in range(1, min(each - 1, most) + 1) if each % n == 0]
    match options.counts:
        case "auto" | "powers":
            powers = {1 << at for at in range(whole.bit_length())} if whole else set[int]()
            numbers = sorted({n for n in powers if n <= whole} | ({whole} if whole else set[int]()))
        case "nodes":
            numbers = list(range(1, min(whole, MOST_COUNTS) + 1))
        case "dividing":
            numbers = [n for n in _divisors(batch) if n <= whole]
        case listed:
            return _listed(listed, each)
    if whole > MOST_COUNTS and options.counts == "nodes":
        raise UsageError(
            f"--counts nodes would try {whole} counts, and at most {MOST_COUNTS} are tried; lower --most-gpus, "
            "or take --counts auto"
        )
    return [*parts, *(GpuCount(n * each, n) for n in numbers)]


def _divisors(number: int) -> list[int]:
    small = [n for n in range(1, math.isqrt(number) + 1) if number % n == 0]
    return sorted({*small, *(number // n for n in small)})


def _listed(text: str, each: int) -> list[GpuCount]:
    """Read `8,16,24`."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and 0 < int(part) <= 1 << 18 for part in parts):
        raise UsageError(
            f"--counts {text}: write numbers of GPUs such as 8,16,24, or one of {', '.join(COUNTS)}"
        )
    numbers = sorted({int(part) for part in parts})
    wrong = next((n for n in numbers if n % each and each % n), None)
    if wrong is not None:
        raise UsageError(
            f"--counts: {counted(wrong, 'GPU is', 'GPUs are')} neither whole nodes of {each} nor an even part of one; "
            f"try {wrong - wrong % each or 1} or {wrong + each - wrong % each}, or another --gpus-per-node"
        )
    return [GpuCount(n, max(1, n // each)) for n in numbers]
