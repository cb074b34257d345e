import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import default_collate
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import resize

from datamodules import BDD100kDataModule, BDDOIADataModule, summarise
from tests import layouts

SPLITS = ("train", "val", "test")


@pytest.mark.parametrize("base", ["", "bdd100k"])
def test_images_of_bdd100k_come_by_name_and_have_no_label(tmp_path, base):
    layouts.bdd100k(tmp_path / base)
    data = BDD100kDataModule(str(tmp_path))
    for split in SPLITS:
        dataset = data.dataset(split)
        assert dataset.ids == [f"{split}-{name}" for name in ("a-1", "b-2", "c-1")]
        assert not hasattr(dataset, "labels")
        assert default_collate([dataset[0], dataset[1]]).keys() == {"image", "id"}
    assert data.predict_split == "val"
    assert data.class_names == []
    assert "images" in summarise(data)
    assert "class" not in summarise(data)


@pytest.mark.parametrize(("make", "module"), [("bdd100k", BDD100kDataModule), ("bdd_oia", BDDOIADataModule)])
def test_the_whole_scene_is_resized_as_in_the_published_code(tmp_path, make, module):
    root = getattr(layouts, make)(tmp_path)
    path = next(root.rglob("val-a*.jpg"))
    scene = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 501, 3), np.uint8))
    scene.save(path, format="PNG")
    image = module(str(root)).dataset("val")[0]["image"]
    published = np.asarray(resize(scene, (256, 512), InterpolationMode.BICUBIC))
    assert torch.equal(image, torch.from_numpy(published.copy()).permute(2, 0, 1) / 255)


def test_what_is_missing_of_bdd100k_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no images/100k or bdd100k/images/100k: download .*BDD100K"):
        BDD100kDataModule(str(tmp_path))
    shutil.rmtree(layouts.bdd100k(tmp_path) / "images" / "100k" / "val")
    with pytest.raises(FileNotFoundError, match=r"100k holds no val: download"):
        BDD100kDataModule(str(tmp_path)).predict_ids()


@pytest.mark.parametrize("base", ["", "lastframe"])
def test_actions_of_bdd_oia_are_found_by_id_and_confusing_images_are_left_out(tmp_path, base):
    layouts.bdd_oia(tmp_path / base)
    data = BDDOIADataModule(str(tmp_path))
    assert data.class_names == ["forward", "stop", "left", "right"]
    for split in SPLITS:
        dataset = data.dataset(split)
        assert dataset.ids == [f"{split}-a", f"{split}-b", f"{split}-c"]
        assert dataset.labels == [(1, 0, 1, 0), (1, 0, 0, 1), (0, 1, 0, 0)]
    sample = data.dataset("val")[0]
    assert sample["image"].shape == (3, 256, 512)
    assert sample["label"].tolist() == [1, 0, 1, 0]
    assert data.predict_split == "val"


def test_images_of_bdd_oia_are_never_mirrored(tmp_path):
    root = str(layouts.bdd_oia(tmp_path))
    assert BDDOIADataModule(root).horizontal_flip is False
    with pytest.raises(TypeError, match="horizontal_flip"):
        BDDOIADataModule(root, horizontal_flip=True)


def test_images_that_were_not_published_are_left_out_and_counted(tmp_path):
    root = layouts.bdd_oia(tmp_path)
    (root / "data" / "val-b.jpg").unlink()
    with pytest.warns(UserWarning, match=r"1 of the 3 images of val are not in .*data"):
        assert BDDOIADataModule(str(root)).predict_ids() == ["val-a", "val-c"]
    for path in root.glob("data/train-*"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r"None of the 3 images of train is in .*: download BDD-OIA"):
        BDDOIADataModule(str(root)).dataset("train")


def test_what_is_missing_of_bdd_oia_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no data or lastframe/data: download BDD-OIA"):
        BDDOIADataModule(str(tmp_path))
    (layouts.bdd_oia(tmp_path) / "test_25k_images_actions.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no test_25k_images_actions\.json: download BDD-OIA"):
        BDDOIADataModule(str(tmp_path)).dataset("test")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "Expecting"),
        ("[]", "list indices"),
        ({"images": [{"file_name": "a.jpg", "id": 3}], "annotations": []}, "list index out of range"),
        ({"images": [{"id": 0}], "annotations": [{"category": [0, 0, 0, 0]}]}, "file_name"),
        ({"images": [{"file_name": "a.jpg", "id": 0}], "annotations": [{"category": [0, 2, 0, 0]}]}, r"a\.jpg are"),
        ({"images": [{"file_name": "a.jpg", "id": 0}], "annotations": [{"category": [0, 1]}]}, r"a\.jpg are \[0, 1\]"),
    ],
)
def test_a_damaged_file_of_actions_is_named(tmp_path, content, message):
    file = layouts.bdd_oia(tmp_path) / "val_25k_images_actions.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ValueError, match=rf"val_25k_images_actions\.json is damaged \(.*{message}.*copy it anew"):
        BDDOIADataModule(str(tmp_path)).dataset("val")
