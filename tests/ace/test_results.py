"""Originals and counterfactuals of a run, and of results in the published layout."""

import numpy as np
import pytest
import torch

from ace.images import save_png
from ace.record import Record
from ace.results import batches, published_results, results_of_run
from ace.run_store import RunStore

FOLDERS = {"c1": ("Correct", "CC", "CCF"), "c2": ("Correct", "CC", "ICF"), "i1": ("Incorrect", "IC", "CCF")}


def grey(level, size=4):
    return np.full((size, size, 3), level, np.uint8)


@pytest.fixture
def published(tmp_path):
    """Three results of the experiment "mine", and one of another."""
    for level, (name, (original, decided, outcome)) in enumerate(FOLDERS.items(), start=10):
        paths = [
            tmp_path / "Original" / original / f"{name}.png",
            tmp_path / "Results" / "mine" / decided / outcome / "CF" / f"{name}.png",
        ]
        for path, array in zip(paths, (grey(level), grey(2 * level)), strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            save_png(array, path)
    other = tmp_path / "Results" / "other" / "IC" / "ICF"
    for folder in (other / "CF", other / "Noise"):
        folder.mkdir(parents=True)
        save_png(grey(99), folder / "i1.png")
    return tmp_path


def test_the_published_layout_tells_what_was_decided(published):
    results = published_results(published, "mine")
    assert [(result.id, result.correct, result.flipped) for result in results] == [
        ("c1", True, True), ("c2", True, False), ("i1", False, True)
    ]  # fmt: skip
    assert all((result.prediction, result.target) == (None, None) for result in results)
    for level, result in enumerate(results, start=10):
        levels = [255 * image.mean().item() for image in result.images()]
        assert levels == pytest.approx([level, 2 * level])


def test_only_the_counterfactuals_of_the_experiment_count(published):
    [result] = published_results(published, "other")
    assert (result.id, result.correct, result.flipped) == ("i1", False, False)
    assert result.counterfactual.parent.name == "CF"


def test_a_missing_original_is_named(published):
    missing = published / "Original" / "Correct" / "c2.png"
    missing.unlink()
    with pytest.raises(FileNotFoundError, match=r"c2\.png has no original: there is no ") as error:
        published_results(published, "mine")
    assert str(missing) in str(error.value)


@pytest.mark.parametrize("experiment", ["nothing", ""])
def test_a_missing_experiment_says_what_to_give(published, experiment):
    with pytest.raises(FileNotFoundError, match="the name of an experiment in Results"):
        published_results(published, experiment)


def test_of_a_run_the_explained_images_count(tmp_path):
    store = RunStore.create(tmp_path / "run", {}, {})
    images = {"original": grey(1), "counterfactual": grey(2)}
    for record in (
        Record(id="d", label=1, prediction=1, target=0, flipped=True, seed=0, status="flipped"),
        Record(id="a", label=0, prediction=1, target=0, seed=0, status="not_flipped"),
        Record(id="b", prediction=1, target=0, seed=0, status="not_flipped"),
    ):
        store.add(record, images)
    store.add(Record(id="c", label=1, prediction=1, seed=0, status="skipped: why"), {"original": grey(1)})
    store.add(Record(id="e", label=1, prediction=1, target=0, seed=0, status="failed: why"), {"original": grey(1)})
    results = results_of_run(store)
    assert [(result.id, result.correct, result.flipped) for result in results] == [
        ("a", False, False), ("b", None, False), ("d", True, True)
    ]  # fmt: skip
    assert {(result.prediction, result.target) for result in results} == {(1, 0)}
    assert torch.equal(results[0].images()[1], torch.full((3, 4, 4), 2 / 255))


def test_batches_hold_every_image_once_in_order(published):
    results = published_results(published, "mine")
    sizes, levels = [], []
    for original, counterfactual in batches(results, 2):
        sizes.append(len(original))
        levels += (counterfactual * 255).mean((1, 2, 3)).round().int().tolist()
        assert torch.allclose(2 * original, counterfactual)
    assert sizes == [2, 1]
    assert levels == [20, 22, 24]


def test_images_of_several_sizes_are_refused(published):
    path = published / "Results" / "mine" / "CC" / "ICF" / "CF" / "c2.png"
    save_png(grey(9, size=8), path)
    with pytest.raises(ValueError, match=r"c2\.png or its original is not of the size of .*c1\.png"):
        list(batches(published_results(published, "mine"), 3))
