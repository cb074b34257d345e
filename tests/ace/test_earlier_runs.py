"""Where earlier runs leave room for other explanations."""

import numpy as np
import pytest
import torch

from ace.earlier_runs import EarlierRuns
from ace.images import from_uint8
from ace.record import Record
from ace.run_store import RunStore

ORIGINAL = np.full((6, 8, 3), 100, np.uint8)
IMAGES = from_uint8(np.stack([ORIGINAL, ORIGINAL]))


@pytest.fixture
def make_run(tmp_path):
    """Makes a run of image "a", that repainted a rectangle and changed one of its pixels by so much."""

    def make(name, rectangle, pixel=(0, 0), change=0):
        mask, counterfactual = np.zeros((6, 8, 1), np.uint8), ORIGINAL.copy()
        mask[rectangle] = 255
        counterfactual[rectangle] += 10
        counterfactual[pixel] += change
        store = RunStore.create(tmp_path / name, {}, {})
        images = {"original": ORIGINAL, "counterfactual": counterfactual, "mask": mask}
        store.add(Record(id="a", seed=0, status="not_flipped"), images)
        return store

    return make


LEFT, TOP = np.s_[:, :2], np.s_[:1]


def test_without_runs_images_may_change_everywhere():
    assert EarlierRuns().allowed(IMAGES, ["a", "b"]) is None


def test_what_any_of_them_repainted_is_kept_in_the_images_that_they_have(make_run):
    allowed = EarlierRuns(avoid=[make_run("one", LEFT), make_run("two", TOP)]).allowed(IMAGES, ["b", "a"])
    assert allowed.shape == (2, 1, 6, 8)
    assert (allowed[0] == 1).all(), "it was not explained before"
    expected = torch.ones(6, 8)
    expected[LEFT] = expected[TOP] = 0
    assert torch.equal(allowed[1, 0], expected)


def test_what_they_changed_counts_less_the_more_it_was_changed(make_run):
    allowed = EarlierRuns(repel=[make_run("one", LEFT, (3, 1), 10), make_run("two", TOP)]).allowed(IMAGES, ["a", "b"])
    one, two = torch.zeros(2, 6, 8)
    one[LEFT], one[3, 1], two[TOP] = 0.5, 1, 1
    assert torch.allclose(allowed[0, 0], (1 - 0.99 * one) * (1 - 0.99 * two))
    assert allowed.min() > 0, "every pixel may be repainted"
    assert (allowed[1] == 1).all()


@pytest.mark.parametrize("kind", ["avoid", "repel"])
def test_runs_of_other_images_are_refused(kind, make_run):
    earlier = EarlierRuns(**{kind: [make_run("one", LEFT)]})
    earlier.check(["b", "a"], 6, 8)
    with pytest.raises(ValueError, match="one explains none of these images: take it out of avoid and repel"):
        earlier.check(["b"], 6, 8)
    with pytest.raises(ValueError, match="one have 6 x 8 pixels, these have 8 x 6: give a run of the same size"):
        earlier.check(["a"], 8, 6)
