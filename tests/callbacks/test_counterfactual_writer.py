import numpy as np
import pytest
import torch

from ace.explainer import Explanation
from ace.images import load_png
from ace.record import Record
from ace.run_store import RunStore
from callbacks.counterfactual_writer import CounterfactualWriter, write_explanation


def picture(level):
    return torch.full((3, 4, 6), level / 255)


def explained(name, flipped):
    mask = torch.zeros(1, 4, 6, dtype=torch.bool)
    mask[0, :2, :3] = True
    return Explanation(
        id=name,
        original=picture(10),
        status="flipped" if flipped else "not_flipped",
        prediction=0,
        target=1,
        label=1,
        counterfactual=picture(30),
        pre_explanation=picture(20),
        mask=mask,
        p_before=0.1,
        p_attack=0.8,
        p_after=0.7,
        l1=0.2,
        l2=1.5,
        linf=0.3,
        changed_area=0.25,
        iterations=5,
        unet_forwards=15,
        unet_backwards=10,
        seconds=2.5,
        peak_memory=2**30,
    )


@pytest.fixture
def store(tmp_path):
    return RunStore.create(tmp_path / "run", {}, {})


def test_an_explanation_becomes_four_pictures_and_a_record(store):
    write_explanation(store, explained("a", True), seed=7)
    expected = {"original": 10, "pre_explanation": 20, "counterfactual": 30}
    for kind, level in expected.items():
        stored = load_png(store.image_path(kind, "a"))
        assert stored.shape == (4, 6, 3)
        assert (stored == level).all()
    mask = load_png(store.image_path("mask", "a"))[..., 0]
    assert np.array_equal(mask, np.pad(np.full((2, 3), 255), ((0, 2), (0, 3))))
    assert store.records() == [
        Record(
            id="a", label=1, prediction=0, target=1, p_before=0.1, p_attack=0.8, p_after=0.7, flipped=True,
            l1=0.2, l2=1.5, linf=0.3, changed_area=0.25, iterations=5, repairs=0, unet_forwards=15, unet_backwards=10,
            seconds=2.5, peak_memory=2**30, seed=7, status="flipped",
        )
    ]  # fmt: skip


def test_a_skipped_image_keeps_its_original_and_its_reason(store):
    write_explanation(store, Explanation("b", picture(10), "skipped: already so", prediction=1), seed=0)
    assert store.image_path("original", "b").exists()
    assert not store.image_path("counterfactual", "b").exists()
    [record] = store.records()
    assert (record.status, record.prediction, record.p_after, record.flipped) == ("skipped: already so", 1, None, False)


def test_the_callback_writes_what_is_finished_at_once(store):
    writer = CounterfactualWriter(store, seed=7)
    skipped, failed = (Explanation(name, picture(10), f"{name}: why") for name in ("skipped", "failed"))
    batches = [[skipped], [explained("a", True), failed], [], [explained("b", False), explained("c", True)]]
    for index, outputs in enumerate(batches):
        writer.on_predict_batch_end(None, None, outputs, None, index)
        assert len(store.records()) == sum(map(len, batches[: index + 1])), "a record must not wait"
    assert {record.id: record.flipped for record in store.records() if record.explained} == {
        "a": True,
        "b": False,
        "c": True,
    }
    assert {record.seed for record in store.records()} == {7}
