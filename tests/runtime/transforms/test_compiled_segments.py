"""Stages under torch's compiler: equal to the plain ones, and refused without a compiler."""

from typing import Any

import msgspec
import pytest
import torch

from autopart.errors import ModelError, UsageError
from autopart.records.plan import Plan
from autopart.records.run_result import RunResult
from autopart.runtime.capture.stage_modules import StageProgram, split_stages
from autopart.runtime.engine.compiled_stages import compile_stages
from autopart.runtime.engine.run_settings import RunSettings, check_settings
from autopart.runtime.profiling import options
from autopart.runtime.profiling.profiler import profile_model
from autopart.runtime.transforms import compiled_segments
from autopart.runtime.transforms.compiled_segments import CompiledSegment, compile_segments
from autopart.runtime.transforms.layer_policies import apply_policies, recomputing, selective
from tests.support.places import MODELS
from tests.support.runtime.on_ranks import run
from tests.support.runtime.plans import capture, plan_for
from tests.support.runtime.rank_pool import RankPool

MODEL = str(MODELS / "compilable.py")
PLAIN = str(MODELS / "regression.py")
CPU = torch.device("cpu")


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Segments run as they are: the division into segments is tested, not the compiler."""

    def as_it_is(part: Any, **_: Any) -> Any:
        return part

    monkeypatch.setattr(torch, "compile", as_it_is)


def stages(model: str = MODEL) -> tuple[StageProgram, ...]:
    torch.manual_seed(0)
    captured = capture(model)
    names = [layer.name for layer in captured.layers]
    return split_stages(captured, [names[:2], names[2:]])


Step = tuple[list[torch.Tensor], dict[str, torch.Tensor | None], dict[str, torch.Tensor]]


def step(program: StageProgram) -> Step:
    """Outputs, gradients and buffers after one step with fixed inputs and seed."""
    torch.manual_seed(1)
    received = [torch.randn(m.shape).requires_grad_(m.requires_grad) for m in program.received_meta]
    inputs = [torch.rand(2, 16) for _ in program.inputs]
    outputs = list(program.module(*received, *inputs))
    torch.autograd.backward(outputs, [torch.ones_like(output) for output in outputs])
    named = program.module.named_parameters(remove_duplicate=False)
    gradients = {name: parameter.grad for name, parameter in named}
    return outputs, gradients, dict(program.module.named_buffers())


@pytest.mark.slow
@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.usefixtures("no_compiler")
def test_segments_compute_the_same_bit_for_bit(place: int):
    plain, divided = stages()[place], stages()[place]
    assert compile_segments(divided.module) >= 2
    torch.testing.assert_close(step(divided), step(plain), rtol=0.0, atol=0.0)


@pytest.mark.slow
@pytest.mark.usefixtures("no_compiler")
def test_random_operations_and_opaque_modules_stay_outside():
    for program in stages():
        compile_segments(program.module)
        found = [m for m in program.module.children() if isinstance(m, CompiledSegment)]
        assert found
        targets = [str(node.target) for node in program.module.graph.nodes]
        assert sum("dropout" in target for target in targets) == (
            2 if program.layers[0] == "0" else 1
        )
        assert not any("linear" in target for target in targets)


@pytest.mark.slow
@pytest.mark.usefixtures("no_compiler")
def test_a_layer_that_is_recomputed_runs_as_without_the_compiler():
    for policy in (recomputing, selective):
        program, plain = stages(PLAIN)[0], stages(PLAIN)[0]
        apply_policies(program, {"0": policy})
        compile_segments(program.module)
        (layer,) = (m for name, m in program.module.named_children() if name.startswith("policy"))
        assert not any(isinstance(m, CompiledSegment) for m in layer.modules())
        torch.testing.assert_close(step(program)[:2], step(plain)[:2], rtol=0.0, atol=0.0)


@pytest.mark.slow
@pytest.mark.usefixtures("no_compiler")
def test_compiling_ahead_leaves_buffers_gradients_and_random_state_alone():
    program = stages()[0]
    before = {name: buffer.clone() for name, buffer in program.module.named_buffers()}
    leaves = {name: torch.rand(2, 16) for name in program.inputs}
    state = torch.get_rng_state()
    compile_stages([program], leaves, CPU)
    torch.testing.assert_close(dict(program.module.named_buffers()), before, rtol=0.0, atol=0.0)
    assert all(parameter.grad is None for parameter in program.module.parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_without_a_compiler_one_line_refuses():
    from torch._inductor import config

    program = stages()[0]
    leaves = {name: torch.rand(2, 16) for name in program.inputs}
    # Torch's own patch: pytest's would delete the setting at its end, and later tests would fail.
    with config.patch({"cpp.cxx": ("/nowhere/c++",)}):
        with pytest.raises(
            UsageError, match=r"^--compile needs a C\+\+ compiler.*leave --compile out$"
        ):
            compiled_segments.check_compiler(CPU)
        with pytest.raises(UsageError, match="--compile needs"):
            profile_model(PLAIN, compile=True)
        with pytest.raises(UsageError, match="--compile needs"):
            compile_stages([program], leaves, CPU)


def test_compiled_layers_with_another_loss_are_refused(monkeypatch: pytest.MonkeyPatch):
    def wrong(part: Any, **_: Any) -> Any:
        return lambda *inputs: tuple(1.001 * output for output in part(*inputs))

    monkeypatch.setattr(torch, "compile", wrong)
    monkeypatch.setattr(options, "check_compiler", lambda device: None)
    with pytest.raises(ModelError, match=r"compiled layers give loss .* leave --compile out"):
        profile_model(PLAIN, microbatch_size=2, repeats=1, warmup=0, compile=True)


def test_compiled_stages_need_one_version_of_the_weights():
    settings = RunSettings(model=PLAIN, steps=1, compile=True, asynchronous="pipedream")
    with pytest.raises(UsageError, match="leave out --compile or --asynchronous"):
        check_settings(settings)


def test_nothing_is_compiled_on_meta():
    with pytest.raises(UsageError, match="on meta nothing runs"):
        profile_model(PLAIN, device="meta", gpu="h100-sxm", compile=True)


def recomputing_first_stage(plan: Plan) -> Plan:
    first, *others = plan.stages
    changed = msgspec.structs.replace(first, recompute=first.layers[:1])
    return msgspec.structs.replace(plan, stages=(changed, *others))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "schedule"),
    [(MODEL, "1f1b"), *(pytest.param(PLAIN, x, marks=pytest.mark.long) for x in ("1f1b", "zb-h1"))],
)
def test_a_compiled_run_equals_the_plain_model(two_ranks: RankPool, model: str, schedule: str):
    plan = plan_for(model, capture(model, 8), [0.5], schedule=schedule, microbatch_size=8)
    if model == PLAIN and schedule == "1f1b":
        plan = recomputing_first_stage(plan)
    settings = RunSettings(model=model, steps=2, check=True, compile=True)
    result = two_ranks.call(run, plan, settings)[0]
    assert isinstance(result, RunResult) and result.check is not None
    assert result.check.tolerance == 1e-5 and result.check.gradients <= 1e-5
    assert any("torch's compiler" in note for note in result.notes)


@pytest.mark.slow
def test_a_compiled_profile_says_so_and_keeps_the_bytes():
    plain = profile_model(PLAIN, microbatch_size=2, repeats=1, warmup=0)
    compiled = profile_model(PLAIN, microbatch_size=2, repeats=1, warmup=0, compile=True)
    assert compiled.source.software["torch.compile"] == "inductor"
    assert compiled.source.graph_hash == plain.source.graph_hash
    kept = [[la.stash_bytes for la in profile.graph.layers] for profile in (plain, compiled)]
    assert kept[0] == kept[1]
    assert not any("compile" in key for key in plain.source.software)
