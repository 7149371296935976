import random
from unittest import mock

import numpy as np
import pytest

from autopart.cost import cut_classes
from autopart.cost.cut_classes import class_cuts
from autopart.cost.cuts import Cuts, all_cuts
from autopart.cost.stage_totals import Traffic
from autopart.records.layer_graph import LayerGraph
from tests.support.class_paths import class_of, few_classes
from tests.support.problems import chain_graph, layer, random_graph
from tests.support.seeds import seeds


def assert_lower(classes: Cuts, cuts: Cuts) -> None:
    """Every stage between two cuts has a stage between their classes, with no larger totals."""
    own = np.array([class_of(classes, ahead) for ahead in cuts.ahead])
    i, j = np.nonzero(cuts.nested)
    assert classes.nested[own[i], own[j]].all()
    for name, lower, exact in zip(classes.totals._fields, classes.totals, cuts.totals, strict=True):
        pairs = zip(lower, exact, strict=True) if isinstance(lower, Traffic) else [(lower, exact)]
        for low, full in pairs:
            low = np.broadcast_to(low, classes.nested.shape)[own[i], own[j]]
            full = np.broadcast_to(full, cuts.nested.shape)[i, j]
            assert (low <= full + 1e-9).all(), name


@pytest.mark.parametrize("seed", seeds(60, 400))
def test_a_stage_has_at_least_the_totals_between_the_classes_of_its_cuts(seed: int):
    rng = random.Random(seed)
    graph = random_graph(rng, rng.randint(1, 9), branching=True)
    with few_classes(rng.randint(2, 12)):
        classes = class_cuts(graph, frozenset())
    if classes is not None:
        assert_lower(classes, all_cuts(graph))


@pytest.mark.parametrize("seed", seeds(20, 60))
def test_classes_of_all_layers_are_the_cuts_themselves(seed: int):
    graph = random_graph(random.Random(seed), 6, branching=True)
    classes, cuts = class_cuts(graph, frozenset()), all_cuts(graph)
    assert classes is not None
    assert (classes.ahead == cuts.ahead).all() and (classes.nested == cuts.nested).all()
    own = cuts.nested
    assert np.allclose(classes.totals.forward_time[own], cuts.totals.forward_time[own])
    assert (classes.totals.stash_bytes == cuts.totals.stash_bytes)[own].all()


def branches(count: int) -> LayerGraph:
    """Layers side by side, without values."""
    graph = chain_graph(*(layer(f"l{i}", forward_time=float(i)) for i in range(count)))
    return LayerGraph(layers=graph.layers)


def test_the_longest_layers_are_kept():
    with few_classes(8):
        classes = class_cuts(branches(6), frozenset())
    assert classes is not None
    # Three layers have eight classes; the empty downset and the whole graph stand apart.
    assert len(classes.ahead) == 10
    assert set(np.flatnonzero(classes.ahead[:-1].any(axis=0))) == {3, 4, 5}


def test_named_layers_are_kept_and_too_many_of_them_have_no_classes():
    with few_classes(8):
        classes = class_cuts(branches(6), frozenset({"l0"}))
        assert classes is not None and classes.ahead[:-1, 0].any()
        assert class_cuts(branches(6), frozenset(f"l{i}" for i in range(4))) is None
    assert cut_classes.MOST_CLASSES == 1_200


@pytest.mark.parametrize(("most_without_work", "count"), [(16, 4), (8, 3)])
def test_a_layer_without_work_is_kept_only_where_classes_are_few(
    most_without_work: int, count: int
):
    idle = {"forward_time": 0.0, "input_grad_time": 0.0, "weight_grad_time": 0.0}
    layers = [layer(f"l{i}", **(idle if i < 3 else {})) for i in range(6)]
    with few_classes(16), mock.patch.object(cut_classes, "CLASSES_WITHOUT_WORK", most_without_work):
        classes = class_cuts(LayerGraph(layers=tuple(layers)), frozenset())
    assert classes is not None
    kept = set(np.flatnonzero(classes.ahead[:-1].any(axis=0)))
    assert len(kept) == count and {3, 4, 5} <= kept
