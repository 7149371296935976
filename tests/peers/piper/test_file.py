import json

import pytest

from autopart.errors import FileError, UsageError
from autopart.peers.formats import import_profile
from autopart.peers.piper import file as piper
from autopart.records.profile import load_profile, save_profile


def choice(name="vanilla", time=3.0, a=100.0, b=8.0, come=(), go=()):
    return {
        "id": name,
        "timePerSample": time,
        "parameterSize": 4.0,
        "memoryUsageA": a,
        "memoryUsageB": b,
        "syncTimeFw": {str(u): 1.5 for u in come},
        "syncTimeBw": {str(x): 0.5 for x in go},
    }


def instance():
    """Node 7 hands its output to 5 and 9, and 5 to 9; the file names them in no order."""
    both = [choice("vanilla", come=[7, 5]), choice("activation recomp", 4.25, 10.0, 90.0, [7, 5])]
    return {
        "maxMemoryPerDevice": 1e9,
        "maxDevices": 4,
        "bandwidth": 1e6,
        "mbsInBatch": 12,
        "nodes": [
            {"id": 9, "name": "Block", "TMPCs": {"1": both, "2": [choice(time=1.75, come=[7, 5])]}},
            {"id": 7, "name": "Embedding", "TMPCs": {"1": [choice(time=0.0, go=[9, 5])]}},
            {"id": 5, "name": "Block", "TMPCs": {"1": [choice(come=[7], go=[9])]}},
        ],
        "edges": [
            {"sourceId": 7, "destId": 9, "communicationCost": 64.0},
            {"sourceId": 7, "destId": 5, "communicationCost": 64.0},
            {"sourceId": 5, "destId": 9, "communicationCost": 32.5},
        ],
    }


def test_an_instance_keeps_every_number_and_names_nodes_by_their_place(write):
    net, limits = piper.read(write(instance()))
    assert limits == (4, 1e9, 1e6, 12)
    assert [node.id for node in net.nodes] == [9, 7, 5]
    assert net.edges == ((1, 0, 64.0), (1, 2, 64.0), (2, 0, 32.5))
    first, second = net.nodes[0].choices[1]
    assert (second.name, second.time, second.stash_bytes) == ("activation recomp", 4.25, 10.0)
    assert first.receive_bytes == {1: 1.5, 2: 1.5}
    assert net.nodes[1].choices[1][0].send_bytes == {0: 0.5, 2: 0.5}
    assert net.nodes[0].choices[2][0].time == 1.75


def test_their_readmes_name_for_the_microbatches_is_understood_too(write):
    content = instance()
    content["maxBatchSize"] = content.pop("mbsInBatch")
    assert piper.read(write(content)).limits.microbatches == 12


def test_information_that_the_format_does_not_know_is_passed_over(write):
    content = instance() | {"comment": "made by hand"}
    content["nodes"][0]["color"] = "red"
    piper.read(write(content))


def test_a_profile_has_the_layers_on_one_device_in_topological_order(write, tmp_path):
    profile = import_profile("piper", write(instance()))
    assert [layer.name for layer in profile.graph.layers] == ["Embedding.7", "Block.5", "Block.9"]
    last = profile.graph.layers[-1]
    assert last.forward_time == 1.25, "what recomputation adds is one forward"
    assert last.forward_time + last.input_grad_time + last.weight_grad_time == 3.0
    assert last.recompute is not None
    assert (last.recompute.extra_time, last.recompute.stash_bytes) == (1.25, 10)
    plain = profile.graph.layers[1]
    assert plain.forward_time == 1.0 and plain.recompute is None
    assert [(v.producer, v.consumers, v.bytes) for v in profile.graph.values] == [
        ("Embedding.7", ("Block.5", "Block.9"), 64),
        ("Block.5", ("Block.9",), 32),
    ]
    assert profile.method == "imported"
    save_profile(profile, tmp_path / "profile.json")
    assert load_profile(tmp_path / "profile.json") == profile


def test_an_unknown_format_is_refused_by_name(write):
    with pytest.raises(
        UsageError, match=r"cannot import 'pipr'; did you mean piper\? known: .*piper"
    ):
        import_profile("pipr", write(instance()))


def _without(*keys):
    def change(content):
        at = content
        for key in keys[:-1]:
            at = at[key]
        del at[keys[-1]]

    return change


def _with(value, *keys):
    def change(content):
        at = content
        for key in keys[:-1]:
            at = at[key]
        at[keys[-1]] = value

    return change


CHOICES = ("nodes", 2, "TMPCs", "1")
FAULTS = [
    (_without("bandwidth"), r"`bandwidth`"),
    (_without("mbsInBatch"), r"neither `mbsInBatch` nor `maxBatchSize`"),
    (_with(0, "maxDevices"), r"\$\.maxDevices"),
    (_with(-1.0, "maxMemoryPerDevice"), r"\$\.maxMemoryPerDevice"),
    (_with("fast", "bandwidth"), r"\$\.bandwidth"),
    (_with([], "nodes"), r"\$\.nodes: it is empty"),
    (
        _with(7, "nodes", 2, "id"),
        r"\$\.nodes\[2\]\.id: another node has the id 7 too|\$\.nodes\[1\]",
    ),
    (_with(8, "edges", 1, "destId"), r"\$\.edges\[1\]\.destId: no node has the id 8"),
    (_with(9, "edges", 1, "destId"), r"\$\.edges\[1\]: a second edge from 7 to 9"),
    (_with(-2.0, "edges", 1, "communicationCost"), r"\$\.edges\[1\]\.communicationCost"),
    (_without(*CHOICES, 0, "timePerSample"), r"`timePerSample` - at `\$\.nodes\[2\]\.TMPCs"),
    (_with(-3.0, *CHOICES, 0, "timePerSample"), r"\$\.nodes\[2\]\.TMPCs.*timePerSample"),
    (_with({}, *CHOICES, 0, "syncTimeFw"), r"syncTimeFw: the edge from node 7 is missing"),
    (_with({"9": 1.0, "7": 1.0}, *CHOICES, 0, "syncTimeBw"), r"syncTimeBw: no edge to 7"),
    (_with({"0": [choice(come=[7], go=[9])]}, *CHOICES[:-1]), r"\$\.nodes\[2\]\.TMPCs"),
    (_with([choice(come=[7], go=[9])] * 2, *CHOICES), r"two choices have the id 'vanilla'"),
    (
        _with([choice(str(i), come=[7], go=[9]) for i in range(3)], *CHOICES),
        r"\$\.nodes\[2\]\.TMPCs\.1: 3 choices; at most 2",
    ),
]


@pytest.mark.parametrize(("change", "message"), FAULTS)
def test_a_fault_is_one_line_that_names_the_file_and_the_place(write, change, message):
    content = instance()
    change(content)
    path = write(content)
    with pytest.raises(FileError, match=message) as caught:
        piper.read(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_edges_in_a_circle_are_named_in_their_order(write):
    content = instance()
    content["edges"].append({"sourceId": 9, "destId": 7, "communicationCost": 1.0})
    with pytest.raises(FileError, match=r"in a circle, (\d -> )+\d; none may"):
        piper.read(write(content))


def test_a_truncated_file_and_a_missing_one_are_said_to_be_so(write, tmp_path):
    with pytest.raises(FileError, match="not an input of Piper"):
        piper.read(write(json.dumps(instance())[:200]))
    with pytest.raises(FileError, match="there is no such file"):
        piper.read(tmp_path / "nowhere.json")


def test_a_profile_needs_a_choice_for_one_device(write):
    content = instance()
    content["nodes"][0]["TMPCs"].pop("1")
    with pytest.raises(FileError, match="node 9 has no choice for one device"):
        piper.load(write(content))
