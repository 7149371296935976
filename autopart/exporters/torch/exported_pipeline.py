"""Your model as pipeline stages for torch.distributed.pipelining.

Written by autopart. This file needs torch (tested with 2.13) and your model, nothing else.
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

import importlib
import operator
from collections.abc import Callable, Iterable, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.distributed.pipelining import PipelineStage, schedules
from torch.nn.modules.module import register_module_buffer_registration_hook
from torch.utils import _pytree as pytree
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

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

Microbatch = tuple[Any, Any]

# Torch has no public name for its schedules' base class, nor for the runtime that takes any order.
Schedule = schedules._PipelineSchedule  # pyright: ignore[reportPrivateUsage]
_Runtime = schedules._PipelineScheduleRuntime  # pyright: ignore[reportPrivateUsage]


@dataclass
class Stages:
    """This rank's stages, ready to train."""

    pipeline_stages: list[PipelineStage]  # one for each stage on this rank, by rising stage
    module: nn.Module  # has all parameters on this rank, under the model's own names
    device: torch.device
    replica: int
    shared: list[tuple[dist.ProcessGroup, list[nn.Parameter]]]  # parameters that other ranks share
    counted: list[nn.Parameter]  # parameters that this rank adds to the norm; each counts once


def stages_of(rank: int) -> list[int]:
    """The stages on the rank, by rising index."""
    return [index for index, on in enumerate(RANKS) if rank in on]


def replica_of(rank: int) -> int:
    """The replica that contains the rank."""
    return next(on.index(rank) for on in RANKS if rank in on)


def microbatches_of(replica: int) -> int:
    """The number of microbatches per step for the replica."""
    return len(range(replica, NUM_MICROBATCHES, NUM_REPLICAS))


def build_stages(
    model: nn.Module,
    loss_fn: Callable[[Any, Any], torch.Tensor] | None,
    example_microbatch: Microbatch,
    rank: int,
    device: torch.device | str,
) -> Stages:
    """Cut the model and keep the stages on `rank`.

    Every rank must call this function, because it creates process groups. The stages are fixed to
    the example's shapes and to training mode. The example and the model must be on one device, such
    as the CPU. The stages' own parameters move to `device`.

    Raises ValueError where the plan does not fit the number of processes, or the model.
    """
    device = torch.device(device)
    num_ranks = len({rank for on in RANKS for rank in on})
    if dist.get_world_size() != num_ranks:
        raise ValueError(f"the plan is for {num_ranks} ranks, not {dist.get_world_size()}")
    replica = replica_of(rank)
    cut = cut_model(model, loss_fn, example_microbatch, device)
    mine = {index: cut[index].to(device) for index in stages_of(rank)}
    pipelines = [_group(sorted(set(on))) for on in zip(*RANKS, strict=True)]
    pipeline_stages = [
        _pipeline_stage(part, index, replica, device, pipelines[replica])
        for index, part in mine.items()
    ]
    module = _joined([part.cut for part in mine.values()])
    held = [[n for n, p in part.cut.named_parameters() if p.requires_grad] for part in cut]
    parameters = dict(module.named_parameters())
    holders = _holders(held)
    return Stages(
        pipeline_stages=pipeline_stages,
        module=module,
        device=device,
        replica=replica,
        shared=_shared(holders, parameters, rank),
        counted=[parameters[name] for name, on in holders.items() if on[0] == rank],
    )


def _pipeline_stage(
    part: "StageModule",
    index: int,
    replica: int,
    device: torch.device,
    group: dist.ProcessGroup,
) -> PipelineStage:
    stage = PipelineStage(
        part,
        index,
        NUM_STAGES,
        device,
        input_args=part.received_examples,
        output_args=part.output_examples,
        group=group,
        dw_builder=part.weight_gradients if SPLITS_BACKWARD else None,
    )
    ordered = sorted({on[replica] for on in RANKS})
    stage.stage_index_to_group_rank = {s: ordered.index(on[replica]) for s, on in enumerate(RANKS)}
    return stage


def build_schedule(stages: Stages) -> Schedule:
    """The schedule for this rank's replica.

    Each microbatch's loss is divided by the number of microbatches over all replicas. So gradients
    belong to the batch's mean loss, and torch must not scale them again.
    """

    def mean_loss(loss: torch.Tensor, _: Any) -> torch.Tensor:
        return loss.sum() / NUM_MICROBATCHES

    options: dict[str, Any] = {
        "n_microbatches": microbatches_of(stages.replica),
        "loss_fn": mean_loss,
        "scale_grads": False,
    }
    if SCHEDULE is None:
        planned = _OrdersFromFile(stages.pipeline_stages, **options)
        planned.load(Path(__file__).with_name(SCHEDULE_FILES[stages.replica]))
        return planned
    if issubclass(SCHEDULE, schedules.PipelineScheduleSingle):
        return SCHEDULE(stages.pipeline_stages[0], **options)
    return SCHEDULE(stages.pipeline_stages, **options)


class _OrdersFromFile(_Runtime):
    """Torch's runtime with orders from a file, and losses by microbatch.

    Torch's own runtime takes the n-th loss for the loss of microbatch n. That gives wrong gradients
    where the last stage runs microbatches in another order.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.losses_by_microbatch: dict[int, torch.Tensor] = {}

    def load(self, orders: Path) -> None:
        """Read the orders from the file."""
        self._load_csv(str(orders))

    def _maybe_compute_loss(
        self, stage: Any, output: Any, target_mbs: Any, mb_index: int, loss_kwargs: Any = None
    ) -> None:
        if stage.is_last:
            assert self._loss_fn is not None
            self.losses_by_microbatch[mb_index] = self._loss_fn(output, None)

    def _maybe_get_loss(self, stage: Any, mb_index: int) -> torch.Tensor | None:
        return self.losses_by_microbatch[mb_index] if stage.is_last else None

    def _update_losses(self, stages: Any, losses: list[torch.Tensor] | None) -> None:
        if losses is not None:
            losses.extend(self.losses_by_microbatch.values())
        self.losses_by_microbatch.clear()


def train_step(
    stages: Stages,
    schedule: Schedule,
    optimizer: torch.optim.Optimizer,
    microbatches: Sequence[Microbatch],
    max_norm: float | None = None,
) -> torch.Tensor:
    """Run one optimizer step over the replica's microbatches.

    Returns the mean loss over the batch, all replicas included. `max_norm` clips gradients by their
    norm over the whole model.
    """
    optimizer.zero_grad()
    loss = accumulate_gradients(stages, schedule, microbatches)
    sum_shared_gradients(stages)
    if max_norm is not None:
        clip_gradients(stages, max_norm)
    optimizer.step()
    return loss


def accumulate_gradients(
    stages: Stages,
    schedule: Schedule,
    microbatches: Sequence[Microbatch],
) -> torch.Tensor:
    """Run the schedule, which adds to this rank's gradients.

    Returns the mean loss over the batch. Raises ValueError for a wrong number of microbatches.
    """
    count = microbatches_of(stages.replica)
    if len(microbatches) != count:
        given = len(microbatches)
        raise ValueError(f"replica {stages.replica} takes {count} microbatches, not {given}")
    named = [_leaves_of(microbatch) for microbatch in microbatches]
    # Step 1: stack each leaf over the microbatches, in a new first dimension. The schedule splits
    # that dimension, and the stage removes it. Every stage gets all leaves and picks its own.
    read: dict[str, str] = {}
    for stage in stages.pipeline_stages:
        assert isinstance(stage.submod, StageModule)
        read |= stage.submod.leaves
    leaves = {
        name: torch.stack([leaves[place] for leaves in named]).to(stages.device)
        for name, place in read.items()
    }
    # Step 2: run the schedule. Only a rank with the last stage gets losses; torch wants a target
    # there, though the target that counts is among the leaves.
    losses: list[torch.Tensor] = []
    has_last = any(stage.is_last for stage in stages.pipeline_stages)
    on_last: dict[str, Any] = {"target": torch.zeros(count), "losses": losses} if has_last else {}
    arguments: dict[str, Any] = on_last | leaves
    schedule.step(**arguments)
    # Step 3: sum the losses over all ranks. Each is already divided by NUM_MICROBATCHES.
    loss = torch.zeros((), device=stages.device)
    for part in losses:
        loss += part.detach()
    dist.all_reduce(loss)
    return loss


def sum_shared_gradients(stages: Stages) -> None:
    """Sum each gradient over the ranks that share its parameter.

    These are a stage's replicas, and other stages that read a tied parameter.
    """
    for group, parameters in stages.shared:
        # Step 1: agree on the parameters with a gradient on any rank, so that all ranks sum alike.
        used = torch.tensor([p.grad is not None for p in parameters], device=parameters[0].device)
        used = used.int()
        dist.all_reduce(used, op=dist.ReduceOp.MAX, group=group)
        for dtype in sorted({p.dtype for p in parameters}, key=str):
            summed = [
                p for p, u in zip(parameters, used.tolist(), strict=True) if u and p.dtype == dtype
            ]
            if not summed:
                continue
            # Step 2: sum them in one flat message for each dtype. A missing gradient is zero.
            gradients: list[torch.Tensor] = []
            for p in summed:
                p.grad = torch.zeros_like(p) if p.grad is None else p.grad
                gradients.append(p.grad)
            flat = torch.cat([gradient.flatten() for gradient in gradients])
            dist.all_reduce(flat, group=group)
            # Step 3: copy the sums back into the gradients.
            parts = flat.split([gradient.numel() for gradient in gradients])
            for gradient, part in zip(gradients, parts, strict=True):
                gradient.copy_(part.view_as(gradient))


def clip_gradients(stages: Stages, max_norm: float) -> torch.Tensor:
    """Scale all gradients so that their norm over the whole model is at most `max_norm`.

    Returns the norm before scaling. Call it after `sum_shared_gradients`.
    """
    square = torch.zeros((), device=stages.device)
    for p in stages.counted:
        if p.grad is not None:
            square += p.grad.float().square().sum()
    dist.all_reduce(square)
    norm = square.sqrt()
    scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    for p in stages.module.parameters():
        if p.grad is not None:
            p.grad.mul_(scale.to(p.grad.dtype))
    return norm


# ---- Cutting: one graph for the loss, then one module per stage ---------------------------------


class _Loss(nn.Module):
    """The model and its loss as one module, from a microbatch to a scalar."""

    def __init__(self, model: nn.Module, loss_fn: Any) -> None:
        super().__init__()
        self.model = model
        self.loss_fn = loss_fn

    def forward(self, inputs: Any, target: Any) -> torch.Tensor:
        output = self.model(**inputs) if isinstance(inputs, dict) else self.model(*inputs)
        if self.loss_fn is not None:
            return self.loss_fn(output, target)
        if isinstance(output, torch.Tensor):
            return output
        own = output.get("loss") if isinstance(output, dict) else getattr(output, "loss", None)
        return output[0] if own is None else own


def cut_model(
    model: nn.Module, loss_fn: Any, example: Microbatch, device: torch.device
) -> list["StageModule"]:
    """All stages, in order.

    Their parameters are the model's own tensors, on the device where they were.
    """
    graph, names = _trace(model, loss_fn, example)
    _assign_stages(graph)
    _compute_on(graph, device)
    return [_cut_stage(graph, names, index) for index in range(NUM_STAGES)]


def _trace(
    model: nn.Module, loss_fn: Any, example: Microbatch
) -> tuple[fx.GraphModule, dict[int, str]]:
    """The model's loss as a flat graph, and names by tensor identity.

    Modules in eval mode stay so, unless all are; then all are put into train mode.
    The names cover parameters and buffers.
    """
    # Labels and ids may be one tensor. Copies keep them two inputs, as in later microbatches.
    distinct = pytree.tree_map(_own_copy, example)
    wrapped, functions = _Loss(model, loss_fn), _AutogradFunctions()
    if not any(module.training for module in model.modules()):
        model.train()
    with functions.recorded():
        try:
            program = torch.export.export(wrapped, distinct, strict=False)
        except Exception as error:  # the exporter runs the model's code, which may raise any error
            told = (str(error) or type(error).__name__).splitlines()[0]
            raise ValueError(f"the model cannot be captured: {told}") from error
    graph = program.module(check_guards=False)
    functions.replace_in(graph)
    named = [*wrapped.named_parameters(), *wrapped.named_buffers()]
    leaves = _leaves_of(distinct)
    for node, value in _fake_values(graph, leaves.values()).items():
        node.meta["fake"] = value
    for node, place in zip(graph.graph.find_nodes(op="placeholder"), leaves, strict=True):
        node.meta["place"] = place
    return graph, {id(value): name.removeprefix("model.") for name, value in named}


def _own_copy(leaf: Any) -> Any:
    return leaf.detach().clone() if isinstance(leaf, torch.Tensor) else leaf


def _leaves_of(microbatch: Microbatch) -> dict[str, Any]:
    """A microbatch's tensors and other leaves, by their path in it."""
    leaves, _ = pytree.tree_flatten_with_path(microbatch)
    return {pytree.keystr(path): leaf for path, leaf in leaves}


def _fake_values(graph: fx.GraphModule, leaves: Iterable[Any]) -> dict[fx.Node, Any]:
    """Each node's value as a tensor without data.

    It has the shape, the dtype and `requires_grad`.
    """
    values: dict[fx.Node, Any] = {}
    mode = FakeTensorMode(allow_non_fake_inputs=True)

    def fake(value: Any) -> Any:
        return mode.from_tensor(value) if isinstance(value, torch.Tensor) else value

    class FakeRun(fx.Interpreter):
        def fetch_attr(self, target: str) -> Any:
            return fake(super().fetch_attr(target))

        def run_node(self, n: fx.Node) -> Any:
            values[n] = super().run_node(n)
            return values[n]

    for node in list(graph.graph.nodes):
        if "_assert_tensor_metadata" in str(node.target) or str(node.target) == "_guards_fn":
            graph.graph.erase_node(node)
    with mode, torch.enable_grad():
        FakeRun(graph).run(*map(fake, leaves), enable_io_processing=False)
    return values


def _compute_on(graph: fx.GraphModule, device: torch.device) -> None:
    """Replace the model's device, which torch.export wrote into the graph, by `device`."""

    def moved(arguments: Any) -> Any:
        return pytree.tree_map(on_device, arguments)

    def on_device(argument: Any) -> Any:
        return device if isinstance(argument, torch.device) else argument

    for module in graph.modules():
        if isinstance(module, _AsWritten):
            module.leaves = moved(module.leaves)
        if isinstance(module, fx.GraphModule):  # the graph, and its regions without gradients
            for node in module.graph.nodes:
                node.args, node.kwargs = moved(node.args), moved(node.kwargs)
            module.recompile()


def _assign_stages(traced: fx.GraphModule) -> None:
    """Give each node a stage: its layer's stage, or its inputs' latest stage if that is later.

    A node with neither gets None. So does a node that depends on nothing but the microbatch, such
    as a mask or position ids. Such a node is cheap, and each stage that needs it computes it.

    Raises ValueError where the model lacks a planned layer.
    """
    # Inputs precede their users, so one pass suffices. A "bare" node needs no parameter and may run
    # on several stages.
    for node in traced.graph.nodes:
        inputs = node.all_input_nodes
        bare = not _happens_once(node) and all(n.meta["bare"] for n in inputs)
        if node.op == "get_attr":
            bare = not isinstance(_attribute(traced, node), nn.Parameter)
        stages = {n.meta["stage"] for n in inputs} - {None}
        if node.op.startswith("call") and node.target is not operator.getitem and not bare:
            stages |= {_asked_stage(node)} - {None}
        node.meta["bare"], node.meta["stage"] = bare, max(stages, default=None)
    traced.graph.output_node().meta["stage"] = NUM_STAGES - 1
    found = {name for node in traced.graph.nodes for name in _calls(node)}
    missing = [layer for layer in STAGE_OF_LAYER if layer not in found | {"loss", "model"}]
    if missing:
        raise ValueError(f"the model has no layer '{missing[0]}'; it is not the one planned for")


def _asked_stage(node: fx.Node) -> int | None:
    """The stage with the node's layer; None for a node outside all layers."""
    stack = _stack(node)
    if stack and not any(path.split(".")[0] == "model" for path, _ in stack):
        return NUM_STAGES - 1  # computed by the loss function
    # An operation that must happen once, but is in no layer, goes to the first stage.
    stages = [STAGE_OF_LAYER[name] for name in _calls(node) if name in STAGE_OF_LAYER]
    return stages[0] if stages else 0 if _happens_once(node) else None


def _happens_once(node: fx.Node) -> bool:
    """True if the node draws random numbers or writes into a tensor."""
    tags, schema = getattr(node.target, "tags", ()), getattr(node.target, "_schema", None)
    writes = schema is not None and schema.is_mutable
    return writes or torch.Tag.nondeterministic_seeded in tags


def _stack(node: fx.Node) -> list[tuple[str, str]]:
    """Enclosing module calls, outermost first, as path and call number."""
    stack = node.meta.get("nn_module_stack") or {}
    return [(path, key.partition("@")[2]) for key, (path, _) in stack.items()]


def _calls(node: fx.Node) -> list[str]:
    """Enclosing calls to the model's modules, by layer name, such as `blocks.3` or `pool@1`."""
    inside = [(path, n) for path, n in _stack(node) if path.startswith("model.")]
    return [path.removeprefix("model.") + (f"@{n}" if n else "") for path, n in inside]


class StageModule(nn.Module):
    """One stage for torch's PipelineStage.

    Positional arguments are tensors from the previous stage. Keyword arguments are tensors from the
    microbatch.
    """

    def __init__(
        self,
        cut: fx.GraphModule,
        received: Sequence[fx.Node],
        outputs: Sequence[fx.Node],
        leaves: dict[str, str],
        *,
        is_last: bool,
        waiting: "list[Callable[[], None]]",
    ) -> None:
        super().__init__()
        self.cut = cut
        self.waiting = waiting  # weight gradients that a backward has left to W
        self.leaves = leaves  # argument name, and path in the microbatch
        self.is_last = is_last
        self.received_examples = tuple(_example(node) for node in received)
        self.output_examples = tuple(_example(node) for node in outputs)
        if self.is_last:  # torch concatenates the losses, so a loss needs a dimension
            self.output_examples = tuple(e.reshape(1) for e in self.output_examples)

    def forward(self, *received: torch.Tensor, **leaves: torch.Tensor) -> Any:
        outputs = self.cut(*_port(received), *(leaves[name][0] for name in self.leaves))
        return torch.stack(outputs) if self.is_last else _port(outputs)

    def weight_gradients(self) -> Callable[[], None]:
        """W for the backward that has just run: a call that adds its weight gradients."""
        waiting = self.waiting.copy()
        self.waiting.clear()

        def run() -> None:
            for add in waiting:
                add()

        return run


def _cut_stage(traced: fx.GraphModule, names: dict[int, str], index: int) -> StageModule:
    """Stage `index` as a module with its own part of the graph."""
    # Step 1: find the values that the stage receives, sends on, and takes from the microbatch.
    nodes = list(traced.graph.nodes)
    is_last = index == NUM_STAGES - 1
    received, outputs = _crossing(nodes, index), _crossing(nodes, index + 1)
    if is_last:
        outputs = traced.graph.output_node().all_input_nodes
    wanted = _wanted(nodes, index)
    places = [node for node in nodes if node.op == "placeholder" and node in wanted]
    # Step 2: copy the stage's nodes; parameters and buffers get the model's own names.
    graph, root = fx.Graph(), dict[str, Any]()
    env = {node: graph.placeholder(node.name) for node in [*received, *places]}
    for node in nodes:
        if node not in wanted or node in env:
            continue
        env[node] = graph.node_copy(node, env.__getitem__)
        if node.op == "get_attr":
            value = _attribute(traced, node)
            name = names.get(id(value), str(node.target))
            env[node].target = name
            root[name] = value
        if node.op == "call_module":
            root[str(node.target)] = traced.get_submodule(str(node.target))
    graph.output(tuple(env[node] for node in outputs))
    # The prefix avoids a clash: the schedule's step has an argument `target` too.
    leaves = {f"batch_{node.name}": node.meta["place"] for node in places}
    # Step 3: rewrite the copy for a split backward and for recomputed layers.
    deferred = _Deferred()
    if SPLITS_BACKWARD:
        _defer_weight_gradients(graph, root, deferred)
    for layer in STAGES[index]:
        if layer in RECOMPUTED or layer in SELECTIVE:
            _recompute(graph, root, layer)
    module = fx.GraphModule(root, graph)
    return StageModule(module, received, outputs, leaves, is_last=is_last, waiting=deferred.waiting)


def _joined(parts: Sequence[fx.GraphModule]) -> nn.Module:
    """A module with all parameters and buffers from the parts. It computes nothing."""
    if len(parts) == 1:
        return parts[0]
    tensors: dict[str, Any] = {}
    for part in parts:
        tensors |= dict(part.named_parameters()) | dict(part.named_buffers())
    graph = fx.Graph()
    for name in tensors:
        graph.get_attr(name)
    graph.output(None)
    return fx.GraphModule(tensors, graph)


# ---- Autograd functions of the model, with backwards that no graph contains ---------------------

_NAMESPACE = "autopart_pipeline"
_CONSTANTS = (bool, int, float, complex, str, torch.dtype, torch.device, type(None))


class _AsWritten(nn.Module):
    """One call of an autograd function, with its own backward."""

    def __init__(self, function: Any, args: tuple[Any, ...]) -> None:
        super().__init__()
        self.function = function
        leaves, self.structure = pytree.tree_flatten(args)
        self.leaves = [None if isinstance(leaf, torch.Tensor) else (leaf,) for leaf in leaves]
        self.made: Any = None  # the results as recorded, with a mark for each tensor

    def call(self, apply: Callable[..., Any], tensors: Sequence[torch.Tensor]) -> Any:
        """The function's own results."""
        given = iter(tensors)
        leaves = [next(given) if leaf is None else leaf[0] for leaf in self.leaves]
        return apply(*pytree.tree_unflatten(leaves, self.structure))

    def forward(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        results = pytree.tree_leaves(self.call(self.function.apply, tensors))
        return [result for result in results if isinstance(result, torch.Tensor)]


class _AutogradFunctions:
    """Records calls of autograd functions while torch.export runs, which would drop backwards."""

    def __init__(self) -> None:
        self.calls: list[_AsWritten] = []
        self.apply: Any = torch.autograd.Function.__dict__["apply"]

    @contextmanager
    def recorded(self) -> Any:
        """Leave one operation per call in the graph. Raise ValueError for calls that no graph has.

        A hook for the gradient of a tensor, and a buffer that is replaced, are refused too:
        torch.export drops them.
        """

        def as_one_operation(function: Any, *args: Any) -> Any:
            # Torch's own checkpointing computes nothing in the first. Others are custom operations.
            if function.__name__.startswith(("_NoopSaveInputs", "GeneratedBackwardFor_")):
                return self.apply.__func__(function, *args)
            if function.__name__ == "BackwardHookFunction":
                raise ValueError("a module has a backward hook, which a graph loses")
            return self._record(function, args)

        def refused(*_: Any) -> None:
            raise ValueError(
                "it registers a hook for the gradient of a tensor, which a graph loses"
            )

        def assigned(module: nn.Module, name: str, value: Any) -> None:
            old = module._buffers.get(name)  # pyright: ignore[reportPrivateUsage]
            is_fake = isinstance(old, FakeTensor) and isinstance(value, FakeTensor)
            if is_fake and old is not value:
                raise ValueError(f"it assigns buffer '{name}', which a graph loses: write into it")

        function: Any = torch.autograd.Function
        tensor: Any = torch.Tensor
        kept = tensor.register_hook
        library = torch.library.Library(_NAMESPACE, "FRAGMENT")
        library.define("call(Tensor[] given, int number) -> Tensor[]")
        torch.library.register_fake(f"{_NAMESPACE}::call", self._shapes, lib=library)
        function.apply = classmethod(as_one_operation)
        tensor.register_hook = refused
        assignments = register_module_buffer_registration_hook(assigned)
        try:
            yield
        finally:
            assignments.remove()
            function.apply = self.apply
            tensor.register_hook = kept
            library._destroy()  # pyright: ignore[reportPrivateUsage]

    def replace_in(self, graph: fx.GraphModule) -> None:
        """Replace the recorded operations by calls of the functions."""
        for part in [part for part in graph.modules() if isinstance(part, fx.GraphModule)]:
            for node in list(part.graph.nodes):
                if str(node.target).startswith(f"{_NAMESPACE}.call"):
                    given, number = node.args
                    part.add_module(f"function_{number}", self.calls[number])
                    with part.graph.inserting_before(node):
                        call = part.graph.call_module(f"function_{number}", (given,))
                    call.meta = node.meta
                    node.replace_all_uses_with(call)
                    part.graph.erase_node(node)
            part.recompile()

    def _record(self, function: Any, args: tuple[Any, ...]) -> Any:
        for leaf in pytree.tree_leaves(args):
            if not isinstance(leaf, (torch.Tensor, *_CONSTANTS)):
                kind = type(leaf).__name__
                raise ValueError(f"its autograd function {function.__name__} takes a {kind}")
        call = _AsWritten(function, args)
        tensors = [leaf for leaf in pytree.tree_leaves(args) if isinstance(leaf, torch.Tensor)]
        self.calls.append(call)
        made = iter(getattr(torch.ops, _NAMESPACE).call(tensors, len(self.calls) - 1))

        def filled(leaf: Any) -> Any:
            return next(made) if leaf is _TENSOR else leaf

        return pytree.tree_map(filled, call.made)

    def _shapes(self, given: list[torch.Tensor], number: int) -> list[torch.Tensor]:
        call, versions = self.calls[number], [tensor._version for tensor in given]
        with torch.no_grad():
            results = call.call(lambda *args: self.apply.__func__(call.function, *args), given)
        if versions != [tensor._version for tensor in given]:
            raise ValueError(f"its autograd function {call.function.__name__} changes an argument")
        tensors = [leaf for leaf in pytree.tree_leaves(results) if isinstance(leaf, torch.Tensor)]
        call.made = pytree.tree_map_only(torch.Tensor, lambda _: _TENSOR, results)
        return [torch.empty_like(tensor) for tensor in tensors]


class _Tensor:
    """Stands for a tensor among recorded results."""


_TENSOR = _Tensor()

# ---- Split backward: weight gradients of matrix products wait for W -----------------------------
# Torch's own split takes the autograd graph apart. In some models it fails or loses gradients.


def _defer_weight_gradients(graph: fx.Graph, root: dict[str, Any], deferred: nn.Module) -> None:
    """Run products with a trained weight through `deferred`; everything else stays in I."""
    linear, addmm = torch.ops.aten.linear.default, torch.ops.aten.addmm.default

    def is_trained(node: Any) -> bool:
        value = root.get(node.target) if node.op == "get_attr" else None
        # Only autograd calls a gradient's hooks, so it computes the gradients that have some.
        return isinstance(value, nn.Parameter) and value.requires_grad and not _has_hooks(value)

    for node in list(graph.nodes):
        if node.target not in (linear, addmm) or node.kwargs:
            continue
        transposed = node.target is addmm
        # addmm takes (bias, x, weight) and linear takes (x, weight, bias); a weight in addmm is
        # transposed. A bias that is no vector would need a gradient summed in another shape.
        x, weight, bias = node.args[1:3] + node.args[:1] if transposed else (*node.args, None)[:3]
        if not is_trained(weight) or (
            transposed and bias is not None and bias.meta["fake"].ndim != 1
        ):
            continue
        root["deferred"] = deferred
        with graph.inserting_before(node):
            twin = graph.call_module("deferred", (x, weight, bias, transposed))
        twin.meta = node.meta
        node.replace_all_uses_with(twin)
        graph.erase_node(node)


def _has_hooks(parameter: nn.Parameter) -> bool:
    hooks = ("_backward_hooks", "_post_accumulate_grad_hooks")
    return any(getattr(parameter, name, None) for name in hooks)


class _Deferred(nn.Module):
    """A linear layer, or addmm, that leaves its weight gradient to W."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting: list[Callable[[], None]] = []

    def forward(self, x: Any, weight: Any, bias: Any, transposed: bool) -> torch.Tensor:
        return _Product.apply(x, weight, bias, transposed, self.waiting)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Any, weight: Any, bias: Any, transposed: bool, waiting: list[Any]
    ) -> torch.Tensor:
        ctx.save_for_backward(x)
        ctx.weight, ctx.transposed, ctx.waiting = weight, transposed, waiting
        made = torch.addmm(bias, x, weight) if transposed else nn.functional.linear(x, weight, bias)
        return made.data  # no view: the model's next operation may write into it

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> Any:
        (gradient,) = grad_outputs
        (x,), weight, transposed = ctx.saved_tensors, ctx.weight, ctx.transposed
        gradient = gradient.to(weight.dtype)  # autocast computes in another dtype
        rows = gradient.reshape(-1, gradient.shape[-1])
        given = x.detach().to(weight.dtype).reshape(-1, x.shape[-1])

        def add() -> None:
            part = given.T @ rows if transposed else rows.T @ given
            weight.grad = part if weight.grad is None else weight.grad.add_(part)

        ctx.waiting.append(add)
        of_x = of_bias = None
        if ctx.needs_input_grad[0]:
            of_x = (gradient @ (weight.detach().T if transposed else weight.detach())).to(x.dtype)
        if ctx.needs_input_grad[2]:
            of_bias = rows.sum(0)
        return of_x, None, of_bias, None, None


# ---- Recomputed layers -------------------------------------------------------------------------


def _recompute(graph: fx.Graph, root: dict[str, Any], layer: str) -> None:
    """Replace the layer's nodes by one call that runs them again in backward."""
    # Step 1: make the layer's nodes adjacent.
    nodes = [n for n in graph.nodes if n.op.startswith("call") and _layer(n) == layer]
    if not nodes:
        return
    _bring_together(graph, nodes, layer)
    # Step 2: find the values that go in (`given`) and come out (`made`). Build the inner module.
    inside = set(nodes)

    def is_outside(user: fx.Node) -> bool:
        return user not in inside

    taken = dict.fromkeys(n for node in nodes for n in node.all_input_nodes if n not in inside)
    given = [n for n in taken if not isinstance(root.get(n.target), nn.Module)]
    made = [n for n in nodes if any(user not in inside for user in n.users)]
    part = _part(root, nodes, given, [n for n in taken if n not in given], made)
    held = [n.op == "get_attr" and not isinstance(root[n.target], nn.Parameter) for n in given]
    name = f"recomputed_{sum(key.startswith('recomputed_') for key in root)}"
    root[name] = _Recomputed(part, held, layer in SELECTIVE)
    # Step 3: users outside the layer read the call's results; the old nodes go.
    with graph.inserting_before(nodes[0]):
        call = graph.call_module(name, tuple(given))
        for place, node in enumerate(made):
            item = graph.call_function(operator.getitem, (call, place))
            node.replace_all_uses_with(item, delete_user_cb=is_outside)
    for node in reversed(nodes):
        graph.erase_node(node)


def _layer(node: fx.Node) -> str | None:
    """The planned layer that contains the node, or None."""
    return next((name for name in _calls(node) if name in STAGE_OF_LAYER), None)


def _bring_together(graph: fx.Graph, nodes: Sequence[fx.Node], layer: str) -> None:
    """Move other nodes away from between the layer's nodes.

    A node that needs the layer's results goes behind them, any other before them. Raises ValueError
    where the layer itself needs a node that goes behind it.
    """
    order = list(graph.nodes)
    behind: set[fx.Node] = set()
    last = nodes[-1]
    for node in order[order.index(nodes[0]) : order.index(nodes[-1])]:
        if node in nodes:
            if behind.intersection(node.all_input_nodes):
                raise ValueError(f"layer '{layer}' needs what is computed from it: keep its stash")
        elif behind.union(nodes).intersection(node.all_input_nodes):
            behind.add(node)
            last.append(node)
            last = node
        else:
            nodes[0].prepend(node)


def _part(
    root: dict[str, Any],
    nodes: Sequence[fx.Node],
    given: Sequence[fx.Node],
    modules: Sequence[fx.Node],
    made: Sequence[fx.Node],
) -> fx.GraphModule:
    """The nodes as a module that takes `given` and returns `made`."""
    graph, own = fx.Graph(), {}
    env = {node: graph.placeholder(f"given_{place}") for place, node in enumerate(given)}
    for node in [*modules, *nodes]:
        env[node] = graph.node_copy(node, env.__getitem__)
        if node.op in ("get_attr", "call_module"):
            own[str(node.target)] = root[str(node.target)]
    graph.output(tuple(env[node] for node in made))
    return fx.GraphModule(own, graph)


class _Recomputed(nn.Module):
    """Runs a part of the graph again in backward, with the same random numbers."""

    def __init__(self, part: fx.GraphModule, held: Sequence[bool], keeps_products: bool) -> None:
        super().__init__()
        self.part = part
        self.held = held  # True for inputs that are the model's buffers
        self.keeps_products = keeps_products

    def forward(self, *given: Any) -> tuple[Any, ...]:
        buffers = [value for value, is_held in zip(given, self.held, strict=True) if is_held]

        def run(*moving: Any) -> tuple[Any, ...]:
            rest, own = iter(moving), iter(buffers)
            return self.part(*(next(own) if is_held else next(rest) for is_held in self.held))

        def contexts() -> tuple[Any, Any]:
            first, again = nullcontext(), nullcontext()
            if self.keeps_products:
                first, again = create_selective_checkpoint_contexts(_keep_products)
            return first, _unchanged(buffers, again)

        # Buffers bypass torch's checkpoint, which refuses arguments that change before the rerun.
        moving = [value for value, is_held in zip(given, self.held, strict=True) if not is_held]
        return checkpoint(run, *moving, use_reentrant=False, context_fn=contexts)


@contextmanager
def _unchanged(buffers: Sequence[torch.Tensor], inner: Any) -> Any:
    """Restore the buffers after the second run, so that running statistics count once."""
    before = [buffer.clone() for buffer in buffers]
    try:  # torch stops the second run by an exception once it has every value it needs
        with inner:
            yield
    finally:
        for buffer, value in zip(buffers, before, strict=True):
            buffer.data.copy_(value)  # `.data`: microbatches in flight may have saved it


_PRODUCTS = {
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten.convolution.default,
}


def _keep_products(_: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    keeps = operation in _PRODUCTS
    return CheckpointPolicy.MUST_SAVE if keeps else CheckpointPolicy.PREFER_RECOMPUTE


def _attribute(traced: fx.GraphModule, node: fx.Node) -> Any:
    return operator.attrgetter(str(node.target))(traced)


def _crossing(nodes: Sequence[fx.Node], index: int) -> list[fx.Node]:
    """Values that stage `index` receives.

    An earlier stage makes them. This stage needs them, or relays them to a later stage.
    """
    return [
        node
        for node in nodes
        if node.meta["stage"] is not None
        and node.meta["stage"] < index
        and any(user.meta["stage"] >= index for user in node.users)
    ]


def _wanted(nodes: Sequence[fx.Node], index: int) -> set[fx.Node]:
    """The stage's nodes, and the nodes without a stage that they need."""
    wanted = {node for node in nodes if node.meta["stage"] == index and node.op != "output"}
    for node in reversed(nodes):
        if node in wanted:
            wanted.update(n for n in node.all_input_nodes if n.meta["stage"] is None)
    return wanted


def _example(node: fx.Node) -> torch.Tensor:
    fake = node.meta["fake"]
    empty = torch.empty(fake.shape, dtype=fake.dtype, device="meta")
    return empty.requires_grad_(fake.requires_grad)


class _Port(torch.autograd.Function):
    """Identity that makes tensors contiguous in forward and in backward.

    Messages must be contiguous. The results share memory with the arguments but are no views: a
    received leaf must not be written into, and torch detaches outputs in place. Missing gradients
    become zeros.
    """

    @staticmethod
    def forward(ctx: Any, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(tensor.data.contiguous() for tensor in tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(gradient.contiguous() for gradient in gradients)


def _port(tensors: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    moving = [tensor for tensor in tensors if tensor.requires_grad]
    moved = iter(_Port.apply(*moving) if moving else ())
    return tuple(next(moved) if t.requires_grad else t.contiguous() for t in tensors)


# ---- Parameters on several ranks ----------------------------------------------------------------


def _group(ranks: Sequence[int]) -> Any:
    """A process group with these ranks. On other ranks torch returns a number instead."""
    return dist.new_group(list(ranks))


def _holders(held: Sequence[Sequence[str]]) -> dict[str, tuple[int, ...]]:
    """The ranks with each trained parameter, from the parameter names for each stage."""
    holders: dict[str, set[int]] = {}
    for names, on in zip(held, RANKS, strict=True):
        for name in names:
            holders.setdefault(name, set()).update(on)
    return {name: tuple(sorted(on)) for name, on in sorted(holders.items())}


def _shared(
    holders: dict[str, tuple[int, ...]], parameters: dict[str, nn.Parameter], rank: int
) -> list[tuple[dist.ProcessGroup, list[nn.Parameter]]]:
    """A process group for each set of ranks that share parameters, and these parameters.

    Every rank must call this function, because it creates process groups.
    """
    shared = []
    for on in sorted({on for on in holders.values() if len(on) > 1}):
        group = _group(on)
        if rank in on:
            shared.append((group, [parameters[n] for n, ranks in holders.items() if ranks == on]))
    return shared


if __name__ == "__main__":
    importlib.import_module("pipeline_check").main()  # the file beside this one
