import json

import pytest

from autopart.errors import FileError
from autopart.peers.dnn_partitioning import file as dnn_partitioning
from autopart.peers.dnn_partitioning.charges import DnnEdge
from autopart.peers.formats import import_profile
from autopart.records.profile import load_profile, save_profile
from tests.support.peers.dnn_instances import as_document
from tests.support.shared_data import DATA, needs_data

INPUTS = sorted((DATA / "dnn-partitioning" / "throughput-inputs").glob("*/*.json"))


def document():
    """Nodes 4 and 7 forward, 5 and 8 their backward; the output of 4 is read by 7 and, later, by 8."""
    return {
        "maxSizePerFPGA": 1e9,
        "maxFPGAs": 3,
        "maxCPUs": 1,
        "nodes": [
            _node(8, 8.0, True, colorClass=2, size=0.5),
            _node(7, 4.0, False, colorClass=2, size=10.0, name="head"),
            _node(4, 1.0, 0, colorClass=1, supportedOnFpga=0, name="body"),
            _node(5, 2.0, 1, colorClass=1, size=3.0),
        ],
        "edges": [
            {"sourceId": 4, "destId": 7, "cost": 0.25, "size": 64.0},
            {"sourceId": 4, "destId": 8, "cost": 0.25, "size": 64.0},
            {"sourceId": 8, "destId": 5, "cost": 0.125},
        ],
    }


def _node(number, latency, backward, **fields):
    return {
        "id": number,
        "fpgaLatency": latency,
        "cpuLatency": 10 * latency,
        "supportedOnFpga": True,
        "isBackwardNode": backward,
        "note": "other fields are for information",
    } | fields


def test_an_instance_keeps_all_that_the_objective_needs(write):
    found = dnn_partitioning.read(write(document()))
    assert [n.id for n in found.nodes] == [8, 7, 4, 5]
    assert [n.backward for n in found.nodes] == [True, False, False, True]
    assert [n.on_accelerator for n in found.nodes] == [True, True, False, True]
    assert [n.size for n in found.nodes] == [0.5, 10.0, 0.0, 3.0]
    assert [n.color for n in found.nodes] == [2, 2, 1, 1]
    assert found.nodes[1].cpu_latency == 40.0
    assert found.edges == (DnnEdge(4, 7), DnnEdge(4, 8), DnnEdge(8, 5))
    assert found.costs == {4: 0.25, 8: 0.125}
    assert (found.num_accelerators, found.num_cpus, found.size_limit) == (3, 1, 1e9)
    assert dnn_partitioning.read(write(as_document(found))) == found


def test_a_profile_has_a_layer_for_each_color_in_seconds_and_bytes(write, tmp_path):
    profile = import_profile("dnn-partitioning", write(document()))
    body, head = profile.graph.layers
    assert (body.name, head.name) == ("body", "head")
    assert (body.forward_time, body.input_grad_time, body.weight_grad_time) == (1e-3, 1e-3, 1e-3)
    assert (head.forward_time, head.input_grad_time, head.weight_grad_time) == (4e-3, 4e-3, 4e-3)
    assert (body.buffer_bytes, head.buffer_bytes) == (3, 11)
    (value,) = profile.graph.values
    assert (value.producer, value.consumers, value.bytes) == ("body", ("head",), 64)
    assert value.has_gradient and value.kept_by == ("head",)
    assert profile.method == "imported"
    assert any("CPU" in warning for warning in profile.warnings)
    save_profile(profile, tmp_path / "profile.json")
    assert load_profile(tmp_path / "profile.json") == profile


def test_colors_in_a_circle_are_one_layer(write):
    net = document()
    net["nodes"] = [_node(k, 1.0, 0, colorClass=k % 2, name=f"n{k}") for k in (1, 2, 3)]
    net["edges"] = [{"sourceId": u, "destId": u + 1, "cost": 1.0} for u in (1, 2)]
    profile = dnn_partitioning.load(write(net))
    assert [layer.name for layer in profile.graph.layers] == ["n1"]
    assert profile.graph.layers[0].kind == "3 nodes"


@pytest.mark.parametrize("name", ["same", ""])
def test_names_that_do_not_tell_layers_apart_have_the_id_with_them(write, name):
    net = document()
    net["nodes"] = [_node(k, 1.0, 0, name=name) for k in (1, 2)]
    net["edges"] = [{"sourceId": 2, "destId": 1, "cost": 1.0}]
    profile = dnn_partitioning.load(write(net))
    stem = name or "node"
    assert [layer.name for layer in profile.graph.layers] == [f"{stem}.2", f"{stem}.1"]


def test_a_tensor_without_a_size_is_reckoned_from_its_cost(write):
    net = document()
    del net["edges"][0]["size"], net["edges"][1]["size"]
    (value,) = dnn_partitioning.load(write(net)).graph.values
    assert value.bytes == 0.25e-3 * 16e9


def test_a_warning_says_that_tensors_for_an_earlier_backward_are_left_out(write):
    net = document()
    net["edges"].append({"sourceId": 7, "destId": 5, "cost": 1.0})
    profile = dnn_partitioning.load(write(net))
    assert (
        "1 tensors that only a backward of an earlier layer reads are left out"
        in (profile.warnings[-1])
    )


def altered(**changes):
    def change(net):
        for path, value in changes.items():
            *keys, last = path.split("__")
            at = net
            for key in keys:
                at = at[int(key)] if key.isdigit() else at[key]
            key = int(last) if last.isdigit() else last
            if value is None:
                del at[key]
            else:
                at[key] = value
        return net

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (altered(maxFPGAs=-1), r"`int` >= 0 - at `\$.maxFPGAs`"),
        (altered(maxCPUs=1.5), r"Expected `int`, got `float` - at `\$.maxCPUs`"),
        (altered(maxSizePerFPGA=None), r"missing required field `maxSizePerFPGA`"),
        (
            altered(nodes__2__fpgaLatency=-0.5),
            r"`float` >= 0.0 - at `\$.nodes\[2\].fpgaLatency`",
        ),
        (altered(nodes__2__cpuLatency="3"), r"Expected `float`, got `str`"),
        (altered(nodes__1__supportedOnFpga=2), r"Invalid enum value 2 - at"),
        (altered(nodes__0__isBackwardNode=None), r"missing required field `isBackwardNode`"),
        (altered(nodes__3__id=7), r"\$.nodes\[3\].id: another node has the id 7 too"),
        (altered(nodes=[]), r"\$.nodes: it is empty"),
        (altered(edges__1__destId=9), r"\$.edges\[1\].destId: no node has the id 9"),
        (altered(edges__0__sourceId=99), r"\$.edges\[0\].sourceId: no node has the id 99"),
        (
            altered(edges__1__cost=0.5),
            r"\$.edges\[1\].cost: 0.5, but an earlier edge out of node 4",
        ),
        (
            altered(edges__2__destId=4),
            r"\$.edges\[2\]: it goes from backward node 8 to forward node 4",
        ),
        (altered(edges__2__destId=8), r"they go in a circle, 8 -> 8; none may"),
    ],
)
def test_an_error_names_the_place_in_the_file(write, change, message):
    with pytest.raises(FileError, match=message) as caught:
        dnn_partitioning.load(write(change(document())))
    assert "net.json: " in str(caught.value) and "\n" not in str(caught.value)


def test_a_circle_is_shown(write):
    net = document()
    net["nodes"] = [_node(k, 1.0, 0) for k in (1, 2, 3)]
    net["edges"] = [{"sourceId": u, "destId": v, "cost": 1.0} for u, v in ((1, 2), (2, 3), (3, 1))]
    with pytest.raises(FileError, match=r"in a circle, (1 -> 2 -> 3 -> 1|2 -> 3 -> 1 -> 2|3 -> 1)"):
        dnn_partitioning.read(write(net))


@pytest.mark.parametrize("content", ["", "{", "[]", '{"nodes": NaN}', "null"])
def test_no_file_and_no_json_are_said_to_be_none(write, content, tmp_path):
    with pytest.raises(FileError, match="not an input of dnn-partitioning"):
        dnn_partitioning.read(write(content))
    with pytest.raises(FileError, match="there is no such file"):
        dnn_partitioning.read(tmp_path / "none.json")
    with pytest.raises(FileError, match="cannot be read"):
        dnn_partitioning.read(tmp_path)


@needs_data
@pytest.mark.parametrize("path", INPUTS, ids=lambda path: path.stem)
def test_every_published_input_is_read_whole(path):
    instance = dnn_partitioning.read(path)
    raw = json.loads(path.read_bytes())
    assert len(instance.nodes) == len(raw["nodes"])
    total = sum(n["fpgaLatency"] for n in raw["nodes"])
    assert sum(n.accelerator_latency for n in instance.nodes) == pytest.approx(total, rel=1e-12)
    profile = dnn_partitioning.load(path)
    times = [
        la.forward_time + la.input_grad_time + la.weight_grad_time for la in profile.graph.layers
    ]
    assert sum(times) == pytest.approx(total * 1e-3, rel=1e-9)
