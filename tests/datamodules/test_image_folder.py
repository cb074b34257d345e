import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets.folder import make_dataset

from datamodules import ImagePathsDataModule, summarise
from datamodules.image_folder import ImageFolderDataModule
from tests import layouts

SPLITS = ("train", "val", "test")


@pytest.fixture
def root(tmp_path):
    levels = {"dark": 40, "light": 200}
    for split in SPLITS:
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
    (sample,) = (sample for sample in data.dataset("test") if sample["id"].startswith("light-photo-1-"))
    assert sample["image"].shape == (3, 16, 16)
    assert sample["image"].dtype == torch.float32
    assert torch.allclose(sample["image"], torch.tensor(201 / 255), atol=1e-6)
    assert sample["label"] == 1


def test_ids_are_unique_safe_and_come_from_the_file_name(root):
    ids = ImageFolderDataModule(str(root), image_size=16).dataset("test").ids
    assert len(set(ids)) == 6
    assert all(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9-]*", image_id) for image_id in ids)
    assert sum(image_id.startswith("dark-photo-0-") for image_id in ids) == 1
    (root / "test" / "dark" / "another.png").write_bytes((root / "test" / "dark" / "photo 0.png").read_bytes())
    assert set(ids) < set(ImageFolderDataModule(str(root), image_size=16).dataset("test").ids)


def test_a_missing_split_is_named_with_what_to_do_when_it_is_asked_for(root):
    shutil.rmtree(root / "train")
    shutil.rmtree(root / "val")
    data = ImageFolderDataModule(str(root))
    assert data.class_names == ["dark", "light"]
    assert len(data.dataset("test")) == len(data.predict_ids()) == 6
    for split in ("train", "val"):
        with pytest.raises(FileNotFoundError, match=f"{split}': the {split} split is missing, make that folder"):
            data.dataset(split)


def test_without_a_test_split_another_one_can_be_explained(root):
    shutil.rmtree(root / "test")
    with pytest.raises(FileNotFoundError, match=r"test split is missing.*explain .* --data\.predict_split val"):
        ImageFolderDataModule(str(root)).predict_ids()
    assert len(ImageFolderDataModule(str(root), predict_split="val").predict_ids()) == 6


@pytest.mark.parametrize("has_test", [True, False])
def test_without_a_val_split_a_hash_draws_it_from_the_training_images(has_test, tmp_path):
    flat(tmp_path / "train", 60)
    if has_test:
        flat(tmp_path / "test", 6)
    data = ImageFolderDataModule(str(tmp_path), val_share=0.2)
    train, val = (set(data.dataset(split).paths) for split in ("train", "val"))
    assert 4 <= len(val) <= 20
    assert not train & val
    assert train | val == set(map(str, (tmp_path / "train").rglob("*.png")))
    if has_test:
        assert set(data.dataset("test").paths) == set(map(str, (tmp_path / "test").rglob("*.png")))
    flat(tmp_path / "train", 90)
    more = ImageFolderDataModule(str(tmp_path), val_share=0.2)
    assert len(more.dataset("train")) + len(more.dataset("val")) == 90
    assert val < set(more.dataset("val").paths)


@pytest.mark.parametrize("name", ["training", "validation", "valid", "dev", "testing", "Val"])
@pytest.mark.parametrize("beside", ["train", "cats"])
def test_folders_that_are_meant_as_splits_are_refused(name, beside, tmp_path):
    flat(tmp_path / beside, 4)
    flat(tmp_path / name, 4)
    told = (
        rf"look like splits \({name}\): rename them to train, val and test; .*classes.* move them into a folder train"
    )
    with pytest.raises(ValueError, match=told):
        ImageFolderDataModule(str(tmp_path))


def test_classes_may_be_called_like_splits_below_a_split(tmp_path):
    flat(tmp_path / "train", 4, classes=("invalid", "valid"))
    assert ImageFolderDataModule(str(tmp_path)).class_names == ["invalid", "valid"]


@pytest.mark.parametrize("split", ["", "val"])
@pytest.mark.parametrize("count", [1, 3])
def test_images_beside_folders_are_counted_in_a_warning(count, split, root):
    for index in range(count):
        (root / split / f"loose {index}.JPG").touch()
    for other in ("notes.txt", ".hidden.png"):
        (root / split / other).touch()
    with pytest.warns(UserWarning, match=rf"^{count} images in {re.escape(str(root / split))} are left out") as told:
        ImageFolderDataModule(str(root))
    assert len(told) == 1


def test_images_beside_class_folders_are_counted_in_a_warning(tmp_path):
    flat(tmp_path, 4, classes=("thumbs",))
    (tmp_path / "loose.png").touch()
    with pytest.warns(UserWarning, match="^1 images in .* are left out, loose.png"):
        assert ImageFolderDataModule(str(tmp_path)).class_names == ["thumbs"]


@pytest.mark.filterwarnings("error")
def test_no_image_is_loose_where_there_are_no_folders(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    ImageFolderDataModule(str(tmp_path))


def test_a_folder_with_neither_folders_nor_images_is_refused(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(FileNotFoundError, match=r"holds neither folders nor images: put images there"):
        ImageFolderDataModule(str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere': give the one that holds your images"):
        ImageFolderDataModule(str(tmp_path / "nowhere"))


def test_a_class_without_images_is_named_when_its_split_is_asked_for(root):
    for file in (root / "train" / "dark").iterdir():
        file.unlink()
    data = ImageFolderDataModule(str(root))
    assert len(data.dataset("test")) == 6
    with pytest.raises(ValueError, match=r"train: .* classes dark\. Images end in \.jpg"):
        data.dataset("train")


def test_a_split_is_read_once_and_only_if_it_is_asked_for(root, monkeypatch):
    read = []

    def counted(folder, *arguments, **options):
        read.append(Path(folder).name)
        return make_dataset(folder, *arguments, **options)

    monkeypatch.setattr("datamodules.image_folder.make_dataset", counted)
    data = ImageFolderDataModule(str(root), image_size=16)
    assert read == []
    assert data.dataset("val") is data.dataset("val")
    assert read == ["val"]


@pytest.mark.parametrize("split", ["val", "test"])
def test_classes_that_train_has_not_are_refused(split, root):
    (root / split / "light").rename(root / split / "bright")
    told = rf"{split} holds classes that .*train has not \(bright\): give .*train all class folders"
    with pytest.raises(ValueError, match=told):
        ImageFolderDataModule(str(root))
    (root / split / "dark").rename(root / split / "dull")
    with pytest.raises(ValueError, match=r"has not \(bright, dull\)"):
        ImageFolderDataModule(str(root))


@pytest.mark.parametrize("split", ["val", "test"])
@pytest.mark.parametrize("folder_left", [True, False])
def test_a_class_may_be_absent_from_val_and_test(split, folder_left, root):
    shutil.rmtree(root / split / "dark")
    if folder_left:
        (root / split / "dark").mkdir()
    data = ImageFolderDataModule(str(root))
    assert data.class_names == ["dark", "light"]
    assert data.dataset(split).labels == [1, 1, 1]
    assert sorted(data.dataset("train").labels) == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("below", ["", "images"])
def test_a_test_split_without_labels_is_refused_only_when_it_is_asked_for(below, root):
    shutil.rmtree(root / "test")
    layouts.image(root / "test" / below / "1.jpg")
    data = ImageFolderDataModule(str(root))
    assert "test" not in summarise(data).splitlines()[1]
    assert len(data.dataset("train")) == len(data.dataset("val")) == 6
    told = rf"images in {root}/test lie in none of the class folders of {root}/train: sort .*ImagePathsDataModule "
    with pytest.raises(FileNotFoundError, match=told + rf"--data\.paths {root}/test\)"):
        data.predict_ids()
    assert len(ImagePathsDataModule(str(root / "test")).predict_ids()) == 1


def test_a_val_split_without_labels_is_refused(root):
    shutil.rmtree(root / "val")
    layouts.image(root / "val" / "1.jpg")
    told = r"val lie in none of the class folders of .*train: sort .* or move .*val elsewhere"
    with pytest.raises(ValueError, match=told):
        ImageFolderDataModule(str(root))


def test_hidden_names_are_passed_over_and_any_case_of_an_ending_is_taken(root):
    (root / "test" / ".thumbnails").mkdir()
    for name in (".thumbnails/a.png", "dark/._photo 0.png", "dark/.trash/a.png", "dark/notes.txt", "dark/PHOTO.JPG"):
        (root / "test" / name).parent.mkdir(exist_ok=True)
        (root / "test" / name).touch()
    data = ImageFolderDataModule(str(root))
    assert data.class_names == ["dark", "light"]
    new = [path for path in data.dataset("test").paths if "photo" not in path]
    assert [Path(path).name for path in new] == ["PHOTO.JPG"]
    assert len(data.dataset("test")) == 7


def flat(tmp_path, count=60, classes=("dark", "light")):
    """A folder of images in class folders, without folders of splits."""
    for index in range(count):
        folder = tmp_path / classes[index % len(classes)]
        folder.mkdir(exist_ok=True, parents=True)
        Image.new("RGB", (8, 8), (index, 0, 0)).save(folder / f"{index}.png")
    return str(tmp_path)


def split_of_ids(data):
    return {image_id: split for split in SPLITS for image_id in data.dataset(split).ids}


def test_images_of_a_format_that_is_not_read_are_counted_in_a_warning(root):
    for index in range(2):
        (root / "train" / "dark" / f"phone {index}.HEIC").write_bytes(b"")
    (root / "train" / "light" / "notes.txt").write_text("")
    with pytest.warns(UserWarning, match="2 images in .*train are left out: .heic is not read") as found:
        assert len(ImageFolderDataModule(str(root)).dataset("train")) == 6
    assert len(found) == 1


def test_class_folders_without_splits_are_split_for_good(tmp_path):
    data = ImageFolderDataModule(flat(tmp_path), val_share=0.2, test_share=0.2)
    before = split_of_ids(data)
    assert data.class_names == ["dark", "light"]
    assert sum(len(data.dataset(split)) for split in SPLITS) == len(before) == 60
    assert all(4 <= len(data.dataset(split)) <= 20 for split in ("val", "test"))
    after = split_of_ids(ImageFolderDataModule(flat(tmp_path, 90), val_share=0.2, test_share=0.2))
    assert len(after) == 90
    assert before.items() < after.items()


@pytest.mark.parametrize("split", ["", "test"])
def test_the_first_images_are_of_all_classes_and_stay_the_first(split, tmp_path):
    flat(tmp_path / split, 60)
    shares = {"val_share": 0.0, "test_share": 0.99}
    data = ImageFolderDataModule(str(tmp_path), num_images=12, **shares)
    labels = dict(zip(data.dataset("test").ids, data.dataset("test").labels, strict=True))
    first = data.predict_ids()
    assert 3 <= sum(labels[image_id] for image_id in first) <= 9
    gone = next(
        path for path, image_id in zip(data.dataset("test").paths, labels, strict=True) if image_id not in first
    )
    Path(gone).unlink()
    assert ImageFolderDataModule(str(tmp_path), num_images=12, **shares).predict_ids() == first


def test_images_are_mirrored_only_where_that_is_asked_for(root):
    assert not ImageFolderDataModule(str(root)).horizontal_flip
    assert ImageFolderDataModule(str(root), horizontal_flip=True).horizontal_flip


def test_a_split_does_not_depend_on_where_the_folder_is(tmp_path, monkeypatch):
    here, there = (split_of_ids(ImageFolderDataModule(flat(tmp_path / name))) for name in ("here", "there/x"))
    assert here == there
    monkeypatch.chdir(tmp_path / "here")
    assert split_of_ids(ImageFolderDataModule(".")) == here


@pytest.mark.parametrize("split", ["", "train"])
def test_images_without_class_folders_are_one_class(tmp_path, split):
    for index in range(40):
        (tmp_path / split).mkdir(exist_ok=True)
        Image.new("L", (8, 8), index).save(tmp_path / split / f"{index}.png")
    data = ImageFolderDataModule(str(tmp_path), image_size=8)
    assert data.class_names == ["images"]
    sample = data.dataset("train")[0]
    assert sample["label"] == 0
    assert re.fullmatch(r"\d+-[0-9a-f]{8}", sample["id"])
    assert 20 < len(data.dataset("train")) < 40
    assert sum(len(data.dataset(name)) for name in (("train", "val") if split else SPLITS)) == 40


def test_one_class_is_enough_for_a_diffusion_model(tmp_path):
    data = ImageFolderDataModule(flat(tmp_path, 10, ["faces"]), val_share=0, test_share=0)
    assert data.class_names == ["faces"]
    assert len(data.dataset("train")) == 10


def test_resize_and_corrupt_files_are_the_users_choice(root):
    (root / "val" / "dark" / "broken.png").touch()
    data = ImageFolderDataModule(str(root), image_size=(4, 8), resize="squash", corrupt="skip")
    with pytest.warns(UserWarning, match=r"1 images of val are left out:\n.*broken\.png cannot be read: it is empty"):
        assert len(data.dataset("val")) == 6
    assert data.dataset("val")[0]["image"].shape == (3, 4, 8)


@pytest.mark.parametrize("settings", [{"val_share": -1.0}, {"val_share": 0.6, "test_share": 0.4}])
def test_impossible_shares_are_named(root, settings):
    with pytest.raises(ValueError, match="val_share is"):
        ImageFolderDataModule(str(root), **settings)
