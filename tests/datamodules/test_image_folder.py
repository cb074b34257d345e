import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets

from datamodules.image_folder import ImageFolderDataModule, image_id


@pytest.fixture
def root(tmp_path):
    levels = {"dark": 40, "light": 200}
    for split in ("train", "val", "test"):
        for name, level in levels.items():
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for index in range(3):
                pixels = np.full((20 + index, 40, 3), level + index, np.uint8)
                Image.fromarray(pixels).save(folder / f"photo {index}.png")
    return tmp_path


def test_samples_are_square_in_range_and_labelled_by_folder(root):
    data = ImageFolderDataModule(str(root), image_size=16)
    assert data.class_names == ["dark", "light"]
    sample = data.dataset("test")[4]
    assert sample["image"].shape == (3, 16, 16)
    assert sample["image"].dtype == torch.float32
    assert torch.allclose(sample["image"], torch.tensor(201 / 255), atol=1e-6)
    assert sample["label"] == 1


def test_ids_are_unique_safe_and_come_from_the_file_name(root):
    ids = ImageFolderDataModule(str(root), image_size=16).dataset("test").ids
    assert len(set(ids)) == 6
    assert all(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9-]*", image_id) for image_id in ids)
    assert ids[0].startswith("dark-photo-0-")
    (root / "test" / "dark" / "another.png").write_bytes((root / "test" / "dark" / "photo 0.png").read_bytes())
    assert set(ids) < set(ImageFolderDataModule(str(root), image_size=16).dataset("test").ids)


@pytest.mark.parametrize("path", ["a/日本.png", "日本/é.png", "a/../../b.png", "x" * 300 + ".png"])
def test_strange_names_give_safe_ids(path):
    result = image_id(Path(path))
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9-]{0,100}", result)


def test_names_that_differ_only_in_what_is_replaced_keep_different_ids():
    assert image_id(Path("a/b c.png")) != image_id(Path("a/b_c.png"))


def test_a_missing_split_is_named_when_it_is_asked_for(root):
    shutil.rmtree(root / "train")
    shutil.rmtree(root / "val")
    data = ImageFolderDataModule(str(root))
    assert data.class_names == ["dark", "light"]
    assert len(data.dataset("test")) == len(data.predict_ids()) == 6
    for split in ("train", "val"):
        with pytest.raises(FileNotFoundError, match=f"{split}': the {split} split is missing"):
            data.dataset(split)


def test_a_folder_without_splits_is_refused(tmp_path):
    (tmp_path / "cats").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no folder train, val or test in .*give the root"):
        ImageFolderDataModule(str(tmp_path))


def test_a_class_without_images_is_named_when_its_split_is_asked_for(root):
    for file in (root / "train" / "dark").iterdir():
        file.unlink()
    data = ImageFolderDataModule(str(root))
    assert len(data.dataset("test")) == 6
    with pytest.raises(ValueError, match=r"train: .* classes dark"):
        data.dataset("train")


def test_a_split_is_read_once_and_only_if_it_is_asked_for(root, monkeypatch):
    read = []

    class Counted(datasets.ImageFolder):
        def __init__(self, folder, **options):
            read.append(Path(folder).name)
            super().__init__(folder, **options)

    monkeypatch.setattr("datamodules.image_folder.datasets.ImageFolder", Counted)
    data = ImageFolderDataModule(str(root), image_size=16)
    assert read == []
    assert data.dataset("val") is data.dataset("val")
    assert read == ["val"]


def test_splits_must_have_the_same_classes(root):
    (root / "test" / "light").rename(root / "test" / "bright")
    with pytest.raises(ValueError, match=r"bright.*same class folders"):
        ImageFolderDataModule(str(root))
