import itertools

import pytest

from autopart.cost.cuts import all_cuts
from autopart.solvers import baselines
from tests.support.problems import chain_graph, layer


@pytest.mark.parametrize(("layers", "stages"), [(1, 1), (7, 3), (8, 4), (5, 5)])
def test_uniform_stages_differ_by_at_most_one_layer(layers: int, stages: int):
    cut = baselines.uniform_layers(layers, stages)
    sizes = [len(stage) for stage in cut]
    assert max(sizes) - min(sizes) <= 1
    assert list(itertools.chain(*cut)) == list(range(layers))


def test_balanced_parameters_depend_on_parameters_only():
    sizes = [100, 10, 10, 10, 90]
    layers = [layer(f"l{i}", param_bytes=size, forward_time=i) for i, size in enumerate(sizes)]
    cut = baselines.balanced_parameters(all_cuts(chain_graph(*layers)), 2)
    assert max(sum(sizes[at] for at in stage) for stage in cut) == 110
