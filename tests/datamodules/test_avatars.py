import hashlib
import json
import pickle
import re

import lightning
import numpy as np
import pytest
import torch

from datamodules import AvatarsDataModule, avatars
from datamodules.avatar_faces import (
    ATTRIBUTES,
    FACTORS,
    SPLITS,
    render,
    sample_face,
    sample_factors,
    split_of,
)
from datamodules.avatars import AvatarsDataset

MOUTH = (slice(44, 62), slice(18, 46))  # rows, columns


def attributes_of(split, count, **options):
    faces = (sample_face(0, split, index, **options) for index in range(count))
    return np.array([[face.attributes[name] for name in ATTRIBUTES] for face in faces])


def toggled(face, name, value):
    """The factors of a face after one attribute is set; factors that agree with it already stay."""
    attributes = face.attributes | {name: value}
    factors = dict(face.factors)
    for factor, (needed, table) in FACTORS.items():
        values = table[tuple(attributes[attribute] for attribute in needed)]
        if factors[factor] not in values:
            factors[factor] = values[0]
    return factors


def changed(first, second, threshold=20):
    return (np.abs(render(first).astype(int) - render(second)) > threshold).any(axis=2)


def test_every_combination_of_attributes_can_be_drawn():
    assert ATTRIBUTES[0] == "smiling"
    assert len(ATTRIBUTES) >= 14
    for needed, table in FACTORS.values():
        assert len(table) == 2 ** len(needed)
        assert all(table.values())
    assert {name for needed, _ in FACTORS.values() for name in needed} == set(ATTRIBUTES)


def test_factors_agree_with_attributes():
    for index in range(200):
        face = sample_face(3, "train", index)
        for factor, (needed, table) in FACTORS.items():
            assert face.factors[factor] in table[tuple(face.attributes[name] for name in needed)]
        assert toggled(face, "smiling", face.attributes["smiling"]) == face.factors


def test_faces_stay_the_same_from_version_to_version():
    faces = [sample_face(seed, split, index) for seed in (0, 1) for split in SPLITS for index in range(20)]
    digest = hashlib.sha256(json.dumps(faces, sort_keys=True).encode()).hexdigest()
    assert digest[:16] == "1805c4ff655a02f5", "other faces than before: raise RENDERER_VERSION"


def test_no_combination_is_in_two_splits():
    owned = {split: {tuple(sample_face(0, split, index).factors.items()) for index in range(500)} for split in SPLITS}
    assert len(set.union(*owned.values())) == sum(map(len, owned.values()))
    for split, combinations in owned.items():
        assert {split_of(dict(factors)) for factors in combinations} == {split}


def test_the_same_picture_on_another_background_is_in_the_same_split():
    face = sample_face(0, "val", 0).factors
    assert {split_of(face | {"background": color}) for color in FACTORS["background"].values[()]} == {"val"}


def test_split_sizes_are_eighty_ten_ten():
    rng = np.random.default_rng(0)
    attributes = dict.fromkeys(ATTRIBUTES, 0)
    owners = [split_of(sample_factors(rng, attributes)) for _ in range(2000)]
    shares = [owners.count(split) / len(owners) for split in SPLITS]
    assert shares == pytest.approx([0.8, 0.1, 0.1], abs=0.08)


@pytest.mark.parametrize("split", ["train", "test"])
def test_attributes_are_fair_and_independent(split):
    attributes = attributes_of(split, 2000)
    assert np.abs(attributes.mean(axis=0) - 0.5).max() < 0.05
    assert np.abs(np.corrcoef(attributes.T) - np.eye(len(ATTRIBUTES))).max() < 0.09


def test_correlation_ties_two_attributes_and_no_others():
    options = {"correlated": ("smiling", "glasses"), "correlation": 0.8}
    correlations = np.corrcoef(attributes_of("train", 2000, **options).T)
    first, second = ATTRIBUTES.index("smiling"), ATTRIBUTES.index("glasses")
    assert correlations[first, second] == pytest.approx(0.8, abs=0.05)
    correlations[first, second] = correlations[second, first] = 0
    assert np.abs(correlations - np.eye(len(ATTRIBUTES))).max() < 0.09


def test_correlation_is_in_the_train_split_only(tmp_path):
    data = AvatarsDataModule(cache_dir=str(tmp_path), correlated=("smiling", "glasses"), correlation=1.0)
    plain = AvatarsDataModule(cache_dir=str(tmp_path))
    for index in range(100):
        attributes = data.dataset("train").face(index).attributes
        assert attributes["smiling"] == attributes["glasses"]
        for split in ("val", "test"):
            assert data.dataset(split).face(index) == plain.dataset(split).face(index)
    assert not set(data.dataset("train").ids) & set(plain.dataset("train").ids)
    assert data.dataset("val").ids == plain.dataset("val").ids


def test_toggling_the_smile_changes_the_mouth_and_nothing_else():
    for index in range(25):
        face = sample_face(0, "test", index)
        difference = changed(toggled(face, "smiling", 0), toggled(face, "smiling", 1), threshold=0)
        assert difference[MOUTH].sum() >= 20
        difference[MOUTH] = False
        assert not difference.any()


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_every_attribute_shows(name):
    for index in range(6):
        face = sample_face(1, "test", index)
        assert changed(toggled(face, name, 0), toggled(face, name, 1)).sum() >= 20


@pytest.mark.parametrize("mouth", [value for values in FACTORS["mouth"].values.values() for value in values])
def test_every_mouth_is_at_least_ten_pixels_wide(mouth):
    plain = dict.fromkeys(ATTRIBUTES, 0)
    factors = sample_factors(np.random.default_rng(0), plain) | {"mouth": mouth}
    skin = np.array([int(factors["skin_color"][i : i + 2], 16) for i in (1, 3, 5)])
    rows, columns = MOUTH
    face = render(factors)[rows.start + 3 : rows.stop - 4, columns].astype(int)
    columns_with_mouth = (np.abs(face - skin) > 40).any(axis=2).any(axis=0)
    assert columns_with_mouth.sum() >= 10


def test_pictures_are_the_same_in_other_processes_and_from_the_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(avatars, "_POOL_FROM", 4)
    drawn_here = [AvatarsDataset("test", 6, cache_dir=str(tmp_path / "empty"))[index] for index in range(6)]
    dataset = AvatarsDataset("test", 6, cache_dir=str(tmp_path / "full"))
    dataset.draw_first(6)
    monkeypatch.setattr(avatars, "render", None)  # from here on, everything must come from the cache
    for index, sample in enumerate(drawn_here):
        assert torch.equal(dataset[index]["image"], sample["image"])


def test_a_sample_has_image_label_id_and_factors(tmp_path):
    dataset = AvatarsDataset("val", 3, cache_dir=str(tmp_path))
    sample = dataset[2]
    assert sample["image"].shape == (3, 64, 64)
    assert sample["image"].dtype == torch.float32
    assert 0 <= sample["image"].min() < sample["image"].max() <= 1
    assert sample["image"].is_contiguous()
    face = dataset.face(2)
    assert sample["label"].tolist() == [face.attributes[name] for name in ATTRIBUTES]
    assert sample["id"] == dataset.ids[2] == "avatars-val-000002"
    assert sample["factors"] == face.factors
    with pytest.raises(IndexError):
        dataset[3]


def test_faces_are_mirrored_for_training_alone(tmp_path):
    data = AvatarsDataModule(str(tmp_path), train_size=1, horizontal_flip=True)
    straight = AvatarsDataset("train", 1, cache_dir=str(tmp_path))[0]["image"]
    torch.manual_seed(0)
    assert all(torch.equal(data.dataset("train")[0]["image"], straight) for _ in range(10))
    reads = [data.training_dataset()[0]["image"] for _ in range(10)]
    assert {torch.equal(image, straight) for image in reads} == {True, False}
    assert all(torch.equal(image, straight) or torch.equal(image, straight.flip(-1)) for image in reads)
    assert AvatarsDataModule(str(tmp_path), train_size=1).training_dataset()[0]["image"].equal(straight)


def test_the_cache_grows_and_holds_whole_files_only(tmp_path):
    def rows():
        return {len(np.load(file)) for file in tmp_path.glob("*/*")}

    dataset = AvatarsDataset("test", 5, cache_dir=str(tmp_path))
    dataset.draw_first(2)
    assert rows() == {2}
    second, last = dataset[1]["image"], dataset[4]["image"]  # cached, drawn when asked for
    dataset.draw_first(5)
    assert rows() == {2, 5}
    assert torch.equal(dataset[1]["image"], second)
    assert torch.equal(dataset[4]["image"], last)
    copy = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(copy[4]["image"], last)
    AvatarsDataset("test", 5, seed=1, cache_dir=str(tmp_path)).draw_first(1)
    assert rows() == {1, 2, 5}


def test_only_what_a_task_needs_is_drawn(tmp_path):
    class Model(lightning.LightningModule):
        def predict_step(self, batch, batch_idx):
            return batch["id"]

        def validation_step(self, batch, batch_idx):
            return None

    def drawn():
        return {file.parent.name.split("-")[0]: len(np.load(file)) for file in tmp_path.glob("*/*")}

    data = AvatarsDataModule(cache_dir=str(tmp_path), val_size=4, num_images=3)
    trainer = lightning.Trainer(accelerator="cpu", logger=False, barebones=True)
    (ids,) = trainer.predict(Model(), data)
    assert ids == ["avatars-test-000000", "avatars-test-000001", "avatars-test-000002"]
    assert drawn() == {"test": 3}
    trainer.validate(Model(), data)
    assert drawn() == {"test": 3, "val": 4}


def test_ids_are_unique_stable_and_safe_as_file_names():
    tied = {"correlated": ("smiling", "glasses"), "correlation": 0.9}
    short, long = AvatarsDataset("train", 10), AvatarsDataset("train", 100)
    assert short.ids == long.ids[:10]
    others = [
        AvatarsDataset("test", 100),
        AvatarsDataset("train", 100, seed=7),
        AvatarsDataset("train", 100, **tied),
    ]
    ids = [image_id for dataset in (long, *others) for image_id in dataset.ids]
    assert len(set(ids)) == 400
    assert all(re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", image_id) for image_id in ids)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train_size": 0}, "train_size is 0"),
        ({"test_size": -3}, "test_size is -3"),
        ({"seed": -1}, "seed is -1"),
        ({"correlation": 0.5}, "correlated is missing"),
        ({"correlated": ("smiling", "glasses"), "correlation": 1.5}, "correlation is 1.5"),
        (
            {"correlated": ("smiling", "hat"), "correlation": 0.5},
            "correlated is .*'hat'.* name two different",
        ),
        ({"correlated": ("smiling", "smiling"), "correlation": 0.5}, "name two different"),
        ({"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        AvatarsDataModule(**settings)


@pytest.mark.parametrize(
    ("attribute", "rows"), [("smiling", (36, 64)), ("closed_eyes", (15, 45)), ("glasses", (15, 45))]
)
def test_the_region_of_an_attribute_is_where_it_is_seen(attribute, rows, avatar_cache):
    dataset = AvatarsDataset("test", 4, cache_dir=str(avatar_cache))
    for image_id in dataset.ids:
        seen = dataset.query_region(image_id, attribute)
        assert seen.any()
        assert not seen[: rows[0]].any()
        assert not seen[rows[1] :].any()
