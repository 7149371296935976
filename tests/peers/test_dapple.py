import pytest

from autopart.errors import FileError
from autopart.peers.formats import import_profile
from autopart.records.cluster import cluster_of
from autopart.search.planner import solve
from tests.support.shared_data import DATA, needs_data

TEXT = """\
node1 -- Input -- forward_compute_time=3.4, backward_compute_time=0.000, activation_size=19.000, parameter_size=0.000
node2 -- Conv2d_1_1 -- forward_compute_time=3.4, backward_compute_time=6.8, activation_size=384.000, parameter_size=64.000 
node3 -- Loss -- forward_compute_time=0.01, backward_compute_time=0, activation_size=2, parameter_size=0
  node1 -- node2
  node2 -- node3
"""


def test_the_microbatch_size_stands_in_the_name_of_the_file(tmp_path):
    path = tmp_path / "vgg-19-pbs-32.txt"
    path.write_text(TEXT)
    profile = import_profile("dapple", path)
    assert profile.microbatch_size == 32
    assert profile.device.name == "NVIDIA V100"
    assert [layer.name for layer in profile.graph.layers] == ["node2", "node3"]
    assert profile.graph.layers[0].input_grad_time == pytest.approx(6.8e-3)


@pytest.mark.parametrize("name", ["vgg-19.txt", "vgg-pbs-.txt", "vgg-pbs-0.txt", "pbs-4.txt"])
def test_a_name_without_a_microbatch_size_is_refused(tmp_path, name: str):
    (tmp_path / name).write_text(TEXT)
    with pytest.raises(FileError, match="does not say the microbatch size"):
        import_profile("dapple", tmp_path / name)


def test_a_malformed_line_is_named(tmp_path):
    path = tmp_path / "net-2-pbs-4.txt"
    path.write_text(TEXT.replace("6.8", "6,8"))
    with pytest.raises(FileError, match="line 2: not a node"):
        import_profile("dapple", path)


@pytest.mark.usefixtures("processor_clock")
@needs_data
@pytest.mark.parametrize(
    ("name", "size", "layers"),
    [("bert-24-pbs-6", 6, 29), ("gnmt-16-pbs-64", 64, 77), ("vgg-19-pbs-32", 32, 25)],
)
def test_published_results_load_and_are_planned(name: str, size: int, layers: int):
    profile = import_profile("dapple", DATA / "dapple" / "profiling_results" / f"{name}.txt")
    assert profile.microbatch_size == size
    assert len(profile.graph.layers) == layers
    cluster = cluster_of("a100-sxm-80gb", gpus=4)
    plan = solve(profile, cluster, global_batch=8 * size, schedule="1f1b", time_limit=20.0)
    assert plan.certificate.lower_bound <= plan.prediction.step_time * (1 + 1e-9)
    names = {name for stage in plan.stages for name in stage.layers}
    assert names == {layer.name for layer in profile.graph.layers}
