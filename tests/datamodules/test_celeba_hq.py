import shutil

import pytest

from ace.models.oracles import CELEBA_ATTRIBUTES
from datamodules import CelebAHQDataModule
from tests import layouts

SPLITS = {
    "train": ["celeba-hq-0", "celeba-hq-1"],
    "val": ["celeba-hq-2", "celeba-hq-3"],
    "test": ["celeba-hq-4", "celeba-hq-10"],
}


@pytest.mark.parametrize("base", ["", "CelebAMask-HQ"])
def test_an_image_is_in_the_split_of_the_one_that_it_was_made_from(tmp_path, base):
    layouts.celeba_hq(tmp_path / base)
    data = CelebAHQDataModule(str(tmp_path))
    assert {split: data.dataset(split).ids for split in SPLITS} == SPLITS
    assert data.class_names == list(CELEBA_ATTRIBUTES)
    assert data.predict_ids() == SPLITS["test"], "the published code explains test"
    sample = data.dataset("test")[1]
    assert sample["image"].shape == (3, 256, 256)
    assert sample["label"].tolist() == [float(value == 1) for value in layouts.attributes(10)]


@pytest.mark.parametrize(
    "name", ["CelebAMask-HQ-attribute-anno.txt", "CelebA-HQ-to-CelebA-mapping.txt", "CelebA-HQ-img"]
)
def test_what_is_missing_is_named_and_where_it_is_to_be_had(tmp_path, name):
    path = layouts.celeba_hq(tmp_path) / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(FileNotFoundError, match=rf"{name}.*: download CelebAMask-HQ \(https"):
        CelebAHQDataModule(str(tmp_path))


@pytest.mark.parametrize(
    "line", ["5 119613", "5 119613 face.jpg", "5 0 000000.jpg", "5 202599 202600.jpg", "5 1 2 000002.jpg"]
)
def test_a_damaged_mapping_is_named(tmp_path, line):
    with (layouts.celeba_hq(tmp_path) / "CelebA-HQ-to-CelebA-mapping.txt").open("a") as file:
        file.write(f"\n{line}\n")
    with pytest.raises(ValueError, match=rf"mapping\.txt, line 8: expected the numbers .*got '{line}': copy"):
        CelebAHQDataModule(str(tmp_path)).dataset("test")
