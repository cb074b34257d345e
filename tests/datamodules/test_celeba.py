import shutil

import pytest
import torch
from lightning import Trainer

from ace.models.oracles import CELEBA_ATTRIBUTES
from datamodules import CelebADataModule
from tests import layouts

SPLITS = {
    "train": ["celeba-000001", "celeba-000003"],
    "val": ["celeba-000002", "celeba-162771"],
    "test": ["celeba-182638"],
}


@pytest.mark.parametrize("csv", [False, True])
@pytest.mark.parametrize("images", ["img_align_celeba", "img_align_celeba/img_align_celeba"])
@pytest.mark.parametrize("base", ["", "celeba"])
def test_the_layouts_that_are_handed_around(tmp_path, csv, images, base):
    layouts.celeba(tmp_path / base, csv, images)
    data = CelebADataModule(str(tmp_path))
    assert {split: data.dataset(split).ids for split in SPLITS} == SPLITS
    assert data.class_names == list(CELEBA_ATTRIBUTES)
    assert data.predict_ids() == SPLITS["val"], "the published code explains val"
    sample = data.dataset("val")[1]
    assert sample["image"].shape == (3, 128, 128)
    assert sample["label"].tolist() == [float(value == 1) for value in layouts.attributes(162_771)]
    assert (sample["label"].dtype, sample["id"]) == (torch.float32, "celeba-162771")


def test_settings_reach_the_base(tmp_path):
    data = CelebADataModule(str(layouts.celeba(tmp_path)), image_size=8, predict_split="test", num_images=1)
    assert data.predict_ids() == SPLITS["test"]
    assert data.dataset("test")[0]["image"].shape == (3, 8, 8)


def test_it_is_read_by_the_trainer(tmp_path):
    data = CelebADataModule(str(layouts.celeba(tmp_path)), image_size=8, num_workers=0)
    data.trainer = Trainer(accelerator="cpu", logger=False, barebones=True)
    (batch,) = data.val_dataloader()
    assert batch["image"].shape == (2, 3, 8, 8)
    assert batch["label"].shape == (2, 40)


@pytest.mark.parametrize("name", ["list_attr_celeba.txt", "list_eval_partition.txt", "img_align_celeba"])
def test_what_is_missing_is_named_and_where_it_is_to_be_had(tmp_path, name):
    root = layouts.celeba(tmp_path / "faces")
    shutil.rmtree(root / name) if (root / name).is_dir() else (root / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"faces holds no .*{name}.*: download CelebA \(https"):
        CelebADataModule(str(root))
    with pytest.raises(FileNotFoundError, match=r"no folder '.*nowhere': download CelebA"):
        CelebADataModule(str(tmp_path / "nowhere"))


def test_images_that_are_missing_are_counted_and_named(tmp_path):
    (layouts.celeba(tmp_path) / "img_align_celeba" / "000003.jpg").unlink()
    data = CelebADataModule(str(tmp_path))
    assert len(data.dataset("val")) == 2
    with pytest.raises(FileNotFoundError, match=r"1 of 2 images are missing in .*img_align_celeba \(000003\.jpg\)"):
        data.dataset("train")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("Young", "Old", r"list_attr_celeba\.txt has no line with the 40 names of the attributes"),
        ("\n000002.jpg -1 1", "\n000002.jpg -1 2", r"list_attr_celeba\.txt, line 4: expected 1 or -1, 40 times"),
        ("\n000002.jpg -1", "\n000002.jpg", r"list_attr_celeba\.txt, line 4: expected 1 or -1, 40 times"),
        ("\n000002.jpg", "\n000009.jpg", r"list_attr_celeba\.txt has no line for 1 images, 000002\.jpg for one"),
    ],
)
def test_a_damaged_annotation_is_named(tmp_path, old, new, message):
    file = layouts.celeba(tmp_path) / "list_attr_celeba.txt"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))
    with pytest.raises(ValueError, match=message):
        CelebADataModule(str(tmp_path)).dataset("val")
