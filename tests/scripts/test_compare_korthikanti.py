"""Published memory of four GPTs: the formulas of the script beside the published figures."""

import json
from types import ModuleType

import pytest

from autopart.records.layer_graph import LayerGraph
from tests.support.places import SCRIPTS
from tests.support.problems import chain_graph, layer
from tests.support.scripts import load_script
from tests.support.shared_data import DATA, needs_data


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return load_script("compare_korthikanti")


def gpt(blocks: int) -> LayerGraph:
    """An embedding, blocks with two layers each, a head and a loss."""
    inside = [layer(f"blocks.{b}.{part}") for b in range(blocks) for part in ("core", "up")]
    return chain_graph(layer("tokens"), *inside, layer("head"), layer("loss"))


@needs_data
def test_the_formulas_give_the_published_figures(script: ModuleType) -> None:
    content = json.loads((DATA / "published" / "korthikanti.json").read_text())
    script.check_formulas(content)
    content["calculon_state_gib"]["530B"] *= 1.001
    with pytest.raises(AssertionError, match="530B"):
        script.check_formulas(content)


def test_equal_stages_have_equally_many_blocks_and_all_other_layers_at_the_ends(
    script: ModuleType,
) -> None:
    assert script.equal_stages(gpt(4), 2) == ((0, 1, 2, 3, 4), (5, 6, 7, 8, 9, 10))
    assert [len(stage) for stage in script.equal_stages(gpt(3), 3)] == [3, 2, 4]


def test_a_missing_file_is_named(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["compare_korthikanti.py", "--data", "none.json"])
    with pytest.raises(SystemExit) as ended:
        script.main()
    assert ended.value.code == 1
    assert capsys.readouterr().err.startswith("none.json: there is no such file")
