from collections import Counter

import numpy as np
import pytest

from ace.examples import TINT, choose_examples, example_pictures, tinted
from ace.record import Record
from ace.report.change import heat_map
from ace.run_store import RunStore


@pytest.fixture
def store(tmp_path):
    return RunStore.create(tmp_path / "run", {}, {"decision": {"class_names": ["sad", "glad"]}})


def add(store, name, prediction=0, flipped=True, iterations=5, l1=0.1, p_after=0.9, pictures=None):
    store.add(
        Record(
            id=name, prediction=prediction, target=1 - prediction, p_before=0.1, p_attack=0.5, p_after=p_after,
            flipped=flipped, l1=l1, l2=1.0, linf=0.5, changed_area=0.1, iterations=iterations, unet_forwards=1,
            unet_backwards=1, seconds=1.0, seed=0, status="flipped" if flipped else "not_flipped",
        ),
        pictures or {},
    )  # fmt: skip


def ids(records):
    return [record.id for record in records]


def test_the_hardest_and_the_easiest_are_shown_and_those_between_evenly(store):
    for iterations in range(1, 10):
        add(store, f"flipped-{iterations}", iterations=iterations)
    for tenths in range(1, 6):
        add(store, f"kept-{tenths}", flipped=False, p_after=tenths / 10)
    assert ids(choose_examples(store, 6)) == [
        "flipped-9", "flipped-5", "flipped-1", "kept-1", "kept-3", "kept-5"
    ]  # fmt: skip
    assert ids(choose_examples(store, 2)) == ["flipped-9", "kept-1"], "one alone is the hardest"


def test_of_equal_iterations_the_greater_change_is_harder(store):
    for name, distance in (("b", 0.2), ("c", 0.3), ("a", 0.1)):
        add(store, name, l1=distance)
    assert ids(choose_examples(store, 3)) == ["c", "b", "a"]


def test_every_outcome_and_question_has_its_places(store):
    for index in range(50):
        add(store, f"many-{index}")
    for index in range(3):
        add(store, f"back-{index}", prediction=1)
    add(store, "kept", flipped=False)
    chosen = Counter(name.partition("-")[0] for name in ids(choose_examples(store, 12)))
    assert chosen == {"many": 8, "back": 3, "kept": 1}
    assert len(choose_examples(store, 99)) == 54
    assert ids(choose_examples(store, 1)) == ["many-0"], "the largest group first"
    assert choose_examples(store, 0) == []


def test_what_has_no_counterfactual_is_no_example(store):
    store.add(Record(id="a", seed=0, status="failed: why"), {})
    assert choose_examples(store, 4) == []


def test_a_negative_number_of_examples_is_refused(store):
    with pytest.raises(ValueError, match="must not be negative, got -1"):
        choose_examples(store, -1)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_tint_marks_the_mask_alone(channels):
    image = np.full((2, 2, channels), 100, np.uint8)
    mask = np.array([[True, False], [False, False]])[..., None]
    shown = tinted(image, mask)
    assert (shown.dtype, shown.shape) == (np.uint8, (2, 2, 3))
    assert shown[0, 0].tolist() == [(100 + level) // 2 for level in TINT]
    assert (shown[~mask[..., 0]] == 100).all()


def test_pictures_are_those_of_the_run_with_mask_and_change_to_look_at(store):
    rng = np.random.default_rng(0)
    kinds = ("original", "pre_explanation", "counterfactual")
    stored = {kind: rng.integers(0, 256, (6, 5, 3), np.uint8) for kind in kinds}
    mask = np.zeros((6, 5, 1), np.uint8)
    mask[2:4] = 255
    add(store, "a", pictures=stored | {"mask": mask})
    pictures = example_pictures(store, store.records()[0])
    assert list(pictures) == [*kinds, "mask", "change"]
    for kind in kinds:
        assert np.array_equal(pictures[kind], stored[kind])
    assert np.array_equal(pictures["mask"], tinted(stored["original"], mask > 0))
    assert np.array_equal(pictures["change"], heat_map(stored["original"], stored["counterfactual"]))
