"""torchtitan and NeMo AutoModel make the plan's context and expert groups, and share state as it says."""

from types import SimpleNamespace

import pytest

from autopart.exporters.readback.check import check_export
from autopart.exporters.readback.rebuilt import framework_module
from autopart.records.check import Check
from autopart.records.plan import Plan
from tests.exporters.readback.conftest import Needs
from tests.exporters.readback.test_check import read_version, swapped
from tests.exporters.test_megatron_groups import with_samples
from tests.support.exporters.language import language_plan
from tests.support.sharded_plans import sharing
from tests.support.tensor_plans import in_groups

pytestmark = pytest.mark.filterwarnings("ignore")  # the frameworks warn on import

FRAMEWORKS = ["torchtitan", "automodel"]


def grouped(kind: str, degree: int, tensor: int, replicas: int, *, split: bool) -> Plan:
    """A plan whose ranks have so many context or expert GPUs."""
    plan = with_samples(language_plan([2, 2, 2], replicas=replicas), 8)
    context, expert = (degree, 1) if kind == "context" else (1, degree)
    return in_groups(plan, tensor, sequence_parallel=split, context=context, expert=expert)


@pytest.mark.parametrize("target", FRAMEWORKS)
@pytest.mark.parametrize("kind", ["context", "expert"])
@pytest.mark.parametrize(("tensor", "replicas"), [(1, 1), (1, 2), (2, 3)])
def test_frameworks_make_the_groups_of_the_plan(
    needs: Needs,
    target: str,
    kind: str,
    tensor: int,
    replicas: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    needs(target)
    version = read_version(target)
    if kind == "expert" and tensor > 1 and version != "torchtitan 0.2.2":
        pytest.skip(f"{version} takes no tensor degree beside an expert degree")
    split = tensor > 1 and target == "torchtitan"
    plan = grouped(kind, 4, tensor, replicas, split=split)
    checks = check_export(plan, target)
    assert all(check.passed for check in checks), checks
    told = f"{3 * replicas * tensor} groups of 4 GPUs, as planned"
    assert checks[-1] == Check(f"{kind} groups", True, told)
    other = grouped(kind, 2, tensor, 2 * replicas, split=split)
    failed = swapped(monkeypatch, plan, other, target)
    assert f"{kind} groups" in [check.name for check in failed]


@pytest.mark.parametrize("target", FRAMEWORKS)
@pytest.mark.parametrize("kind", ["context", "expert"])
def test_frameworks_share_state_beside_these_groups(
    needs: Needs, target: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs(target)
    base = with_samples(language_plan([2, 2], replicas=2), 8)
    degrees = {kind: 2}
    plan = sharing(base, 2, "zero2", reduce="step", **degrees)
    checks = check_export(plan, target)
    assert all(check.passed for check in checks), checks
    assert "2 replicas of 2 processes that share state" in checks[-2].detail
    if read_version(target) == "torchtitan 0.2.2":
        return
    reduce = "step" if target == "torchtitan" else "microbatch"
    again = sharing(base, 2, "zero3", reduce=reduce, **degrees)
    checks = check_export(again, target)
    assert all(check.passed for check in checks), checks
    assert "weights gathered for each microbatch, as planned" in checks[-2].detail
    (check,) = swapped(monkeypatch, again, plan, target)
    assert check.name == "sharded state"


def test_torchtitan_refuses_a_model_without_enough_experts(needs: Needs) -> None:
    needs("torchtitan", "0.3")
    plan = grouped("expert", 3, 1, 1, split=False)
    with pytest.raises(ValueError, match=r"a multiple of 3 experts, and the model has \{64\}"):
        check_export(with_samples(plan, 9), "torchtitan")


def test_torchs_balancer_gives_each_process_two_chunks_of_2c(needs: Needs) -> None:
    needs("torchtitan")
    attention = framework_module("torch.distributed.tensor.experimental._attention")
    c, length = 3, 12
    balancer = attention._HeadTailLoadBalancer(length, c, "cpu")
    order = balancer._generate_indices(restore=False).flatten().tolist()
    own = length // c
    for rank in range(c):
        chunks = (rank, 2 * c - 1 - rank)
        wanted = [2 * chunk + at for chunk in chunks for at in range(2)]
        assert order[rank * own : (rank + 1) * own] == wanted


def test_automodel_gives_each_process_two_chunks_of_2c(needs: Needs) -> None:
    needs("automodel")
    sharder = framework_module("nemo_automodel.components.distributed.context_parallel.sharder")
    c = 3
    for rank in range(c):
        mesh = SimpleNamespace(size=lambda: c, get_local_rank=lambda rank=rank: rank)
        own = sharder.round_robin_local_indices(mesh, 4 * c).tolist()
        chunks = (rank, 2 * c - 1 - rank)
        assert own == [2 * chunk + at for chunk in chunks for at in range(2)]
