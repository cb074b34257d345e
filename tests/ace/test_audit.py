"""Audits by an oracle that looks at single pixels, so that every number is known."""

import json
from dataclasses import asdict
from unittest.mock import patch

import numpy as np
import pytest
import torch

from ace.audit import Change, Correlation, audit, audit_direction
from ace.judges import Judges
from ace.measurement import wilson
from ace.record import Record
from ace.run_store import RunStore

ATTRIBUTES = ("smiling", "glasses", "hat")
SIZE = 24  # images of a run, half of them in each direction
HALF = SIZE // 2
CERTAIN, NEVER = "100% [76%, 100%]", "0% [0%, 24%]"  # of twelve


def oracle(images):
    """Attribute k is there where pixel k of the first row is white."""
    return images[:, 0, 0, : len(ATTRIBUTES)] - 0.5


def picture(attributes):
    array = np.zeros((4, 4, 3), np.uint8)
    array[0, list(attributes)] = 255
    return array


@pytest.fixture
def make_store(tmp_path):
    """Makes a run of (attributes before, attributes after, prediction, target or None if it did not flip) an image."""

    def make(images, class_names=("not smiling", "smiling")):
        store = RunStore.create(tmp_path / "run", {}, {"decision": {"class_names": list(class_names)}})
        with patch("os.fsync", lambda _: None):
            for index, (before, after, prediction, target) in enumerate(images):
                flipped = target is not None
                record = Record(
                    id=f"image-{index}", seed=0, prediction=prediction, target=target if flipped else 1 - prediction,
                    flipped=flipped, status="flipped" if flipped else "not_flipped",
                )  # fmt: skip
                store.add(record, {"original": picture(before), "counterfactual": picture(after)})
        return store

    return make


@pytest.fixture
def judges():
    return Judges(oracle=oracle, attributes=ATTRIBUTES, query=0, correlations=torch.tensor([1.0, 0.0, -0.1]))


def face(index, *decides):
    """Every combination of smile, glasses and hat; a counterfactual changes what decides, and nothing else."""
    before = {k for k in range(3) if index >> k & 1}
    prediction = int(decides[0] in before)
    return before, before.symmetric_difference(decides), prediction, 1 - prediction


HONEST = [face(index, 0) for index in range(SIZE)]
BIASED = [face(index, 1) for index in range(SIZE)]


def test_of_an_honest_classifier_the_query_alone_changes(make_store, judges):
    found = audit(make_store(HONEST), judges)
    assert (found.query, found.images, found.n, found.suspects) == ("smiling", SIZE, SIZE, [])
    assert found.directions.keys() == {"not smiling -> smiling", "smiling -> not smiling"}
    appears, goes = (
        found.directions[f"{a} -> {b}"] for a, b in (("not smiling", "smiling"), ("smiling", "not smiling"))
    )
    assert appears.changes == {"smiling": Change(HALF, 0, 1.0, wilson(12, 12), 0)}
    assert goes.changes == {"smiling": Change(0, HALF, 1.0, wilson(12, 12), 0)}
    for direction in (appears, goes):
        assert (direction.images, direction.n, direction.suspects) == (HALF, HALF, [])
        assert direction.verdict == (
            f"no other attribute changes in clearly more than 15% of 12 counterfactuals, 'smiling' itself in {CERTAIN}"
        )
    assert found.verdict == (
        "in 24 originals the decision correlates with no other attribute clearly more than in the data, "
        "with 'smiling' itself by 1.00 [1.00, 1.00]"
    )
    assert found.cd.value == pytest.approx(0.1), "the hat never changes"


def test_a_shortcut_is_named_in_each_direction_and_over_all(make_store, judges):
    found = audit(make_store(BIASED), judges)
    assert found.suspects == ["glasses"]
    for name, moves in (("not smiling -> smiling", (HALF, 0)), ("smiling -> not smiling", (0, HALF))):
        direction = found.directions[name]
        assert direction.changes == {
            "smiling": Change(0, 0, 0.0, wilson(0, 12), 0),
            "glasses": Change(*moves, 1.0, wilson(12, 12), 12),
        }
        assert list(direction.changes) == ["smiling", "glasses"], "the query comes first"
        assert direction.suspects == ["glasses"]
        assert direction.verdict == (
            f"'glasses' changes in {CERTAIN} of 12 counterfactuals, 'smiling' itself in {NEVER}: "
            "the classifier may use 'glasses'"
        )
    assert found.verdict.startswith(
        "in 24 originals the decision correlates with 'glasses' by 1.00 [1.00, 1.00] (in the data: 0.00), "
        "with 'smiling' itself by 0.00 ["
    )
    assert found.verdict.endswith("]: the classifier may use 'glasses'")


def test_correlations_are_those_of_numpy(make_store, judges):
    images = [*BIASED[:13], *HONEST[13:22], ({0, 1}, {0}, 1, None), ({2}, {1}, 0, None)]
    found = audit(make_store(images), judges)
    before, after = (np.array([[k in image[side] for k in range(3)] for image in images], int) for side in (0, 1))
    decisions = np.array([image[2] for image in images])
    flipped = np.array([image[3] is not None for image in images])
    changes = (after - before)[flipped]
    assert set(list(found.correlations)[1:]) == {"glasses", "hat"}
    for k, name in enumerate(ATTRIBUTES):
        row = found.correlations[name]
        assert row.originals == pytest.approx(np.corrcoef(before[:, k], decisions)[0, 1])
        low, high = row.interval
        assert low < row.originals < high
        assert row.in_data == pytest.approx(judges.correlations[k].item())
        if name != "hat":
            assert row.changes == pytest.approx(np.corrcoef(changes[:, k], -decisions[flipped])[0, 1])
            assert row.with_query == pytest.approx(np.corrcoef(changes[:, k], changes[:, 0])[0, 1])
    assert found.correlations["hat"].changes == 0, "it never changes"
    assert found.cd.n == found.n == flipped.sum() == SIZE - 2
    assert found.images == SIZE


def test_data_that_tie_an_attribute_to_the_query_are_named(make_store, judges):
    judges.correlations = torch.tensor([1.0, 0.95, 0.0])
    found = audit(make_store(BIASED), judges)
    assert found.suspects == [], "the data tell the same"
    assert found.verdict.endswith("; the data tie 'glasses' (0.95) to 'smiling'")
    assert found.directions["smiling -> not smiling"].suspects == ["glasses"], "but the counterfactuals do"


def test_it_is_stored_as_it_is_returned(make_store, judges):
    store = make_store(BIASED)
    found = audit(store, judges)
    stored = json.loads((store.folder / "audit.json").read_text())
    assert stored == json.loads(json.dumps(asdict(found)))
    assert stored["directions"]["smiling -> not smiling"]["changes"]["glasses"]["went"] == HALF


def test_counterfactuals_that_did_not_flip_are_left_out(make_store, judges):
    images = [(*image[:3], None) if index % 2 else image for index, image in enumerate(HONEST)]
    found = audit(make_store(images), judges)
    none, all_of_them = found.directions["smiling -> not smiling"], found.directions["not smiling -> smiling"]
    assert (none.images, none.n, none.changes) == (12, 0, {})
    assert none.verdict == "none of 12 images flipped: nothing to audit"
    assert all_of_them.n == 12
    assert found.correlations["smiling"].changes is None, "all are in one direction"


def test_where_nothing_flipped_there_is_nothing_but_the_originals(make_store, judges):
    found = audit(make_store([(*image[:3], None) for image in BIASED]), judges)
    assert (found.n, found.cd) == (0, None)
    row = found.correlations["glasses"]
    assert (row.originals, row.changes, row.with_query) == (pytest.approx(1), None, None)


def test_of_more_classes_and_without_a_query_the_changes_are_told(make_store):
    images = [({0}, {0, 1}, 0, 2)] * 9 + [({1}, {1}, 1, 2)] * 3
    store = make_store(images, ("cat", "dog", "cow"))
    found = audit(store, Judges(oracle=oracle, attributes=ATTRIBUTES))
    assert list(found.directions) == ["cat -> cow", "dog -> cow"], "the larger one first"
    cats, dogs = found.directions.values()
    assert cats.changes == {"glasses": Change(9, 0, 1.0, wilson(9, 9), None)}
    assert (
        cats.verdict == "'glasses' changes in 100% [70%, 100%] of 9 counterfactuals: the classifier may use 'glasses'"
    )
    assert dogs.verdict == "no attribute changes in clearly more than 15% of 3 counterfactuals"
    assert (found.query, found.correlations, found.verdict, found.cd) == (None, {}, None, None)


def test_of_two_classes_without_a_query_the_decision_is_correlated(make_store):
    found = audit(make_store(BIASED, ("cat", "dog")), Judges(oracle=oracle, attributes=ATTRIBUTES))
    row = found.correlations["glasses"]
    assert (row.originals, row.changes) == (pytest.approx(1), pytest.approx(1))
    assert (row.with_query, row.in_data, found.verdict) == (None, None, None)
    assert isinstance(row, Correlation)


def table(*columns):
    """Changes, shape (20, A), that begin with these numbers and go on with zeros."""
    return torch.tensor([[*column, *[0] * (20 - len(column))] for column in columns], dtype=torch.float).T


def test_changes_are_counted_and_sorted():
    changes = table([], [1, 1, -1], [-1] * 8)
    found = audit_direction(changes, ATTRIBUTES, 30)
    assert (found.images, found.n) == (30, 20)
    assert found.changes == {
        "hat": Change(0, 8, 0.4, wilson(8, 20), None),
        "glasses": Change(2, 1, 0.15, wilson(3, 20), None),
    }
    assert list(found.changes) == ["hat", "glasses"], "the most frequent first"
    assert found.suspects == ["hat"], "3 of 20 may be chance"


def test_a_threshold_decides_what_is_often():
    changes = table([1] * 20, [1] * 5, [-1] * 18)
    named = {level: audit_direction(changes, ATTRIBUTES, 20, "smiling", level) for level in (0.0, 0.1, 0.5, 0.7)}
    assert {level: direction.suspects for level, direction in named.items()} == {
        0.0: ["hat", "glasses"],
        0.1: ["hat", "glasses"],
        0.5: ["hat"],
        0.7: [],
    }
    assert "more than 70% of 20 counterfactuals" in named[0.7].verdict
    assert named[0.1].verdict == (
        "'hat' changes in 90% [70%, 97%], 'glasses' in 25% [11%, 47%] of 20 counterfactuals, "
        "'smiling' itself in 100% [84%, 100%]: the classifier may use 'hat', 'glasses'"
    )


@pytest.mark.parametrize(
    ("count", "n", "named"), [(1, 1, False), (2, 2, False), (3, 3, True), (2, 3, False), (3, 4, True)]
)
def test_once_or_twice_may_be_chance(count, n, named):
    changes = torch.zeros(n, 3)
    changes[:count, 1] = 1
    assert audit_direction(changes, ATTRIBUTES, n, "smiling").suspects == ["glasses"] * named


def test_a_change_without_the_query_is_told_from_one_with_it():
    changes = table([0] * 5 + [1] * 5, [1] * 10)
    found = audit_direction(changes, ATTRIBUTES[:2], 20, "smiling")
    assert found.changes["glasses"].without_query == 5
    assert found.changes["smiling"].without_query == 0


def test_what_the_oracle_does_not_see_is_said():
    found = audit_direction(table([1], []), ATTRIBUTES[:2], 20, "smiling")
    assert found.verdict.endswith("'smiling' itself in 5% [1%, 24%]: the oracle does not see what flips the classifier")


def test_bad_arguments_are_refused(make_store, judges, tmp_path):
    store = make_store(HONEST[:2])
    for threshold in (-0.1, 1.0, float("nan")):
        with pytest.raises(ValueError, match=f"threshold must be a share from 0 to below 1, got {threshold}"):
            audit(store, judges, threshold)
    empty = RunStore.create(tmp_path / "empty", {}, {})
    with pytest.raises(ValueError, match="empty holds no explained image to audit"):
        audit(empty, judges)
    assert not (store.folder / "audit.json").exists()
