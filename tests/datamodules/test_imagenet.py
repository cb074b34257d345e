import shutil

import pytest

from datamodules import ImageNetDataModule, summarise
from datamodules.imagenet import NAMES, WNIDS, class_indices
from tests import layouts

PAIRS = [  # of the paper: names, WordNet ids, indices
    (["zebra", "sorrel"], ["n02391049", "n02389026"], [340, 339]),
    (["cheetah", "cougar"], ["n02130308", "n02125311"], [293, 286]),
    (["Egyptian cat", "Persian cat"], ["n02124075", "n02123394"], [285, 283]),
]


@pytest.fixture
def root(tmp_path):
    return layouts.imagenet(tmp_path)


def test_there_are_a_thousand_classes_in_the_order_of_their_wordnet_ids():
    assert len(NAMES) == len(WNIDS) == len(set(WNIDS)) == 1000
    assert sorted(WNIDS) == WNIDS
    assert (WNIDS[0], WNIDS[-1]) == ("n01440764", "n15075141")


@pytest.mark.parametrize(("names", "wnids", "indices"), PAIRS)
def test_a_class_is_given_by_name_wordnet_id_or_index(names, wnids, indices):
    assert class_indices(names) == class_indices(wnids) == class_indices(indices) == indices


def test_only_images_of_the_pair_are_explained_and_the_first_ones_are_mixed(root):
    data = ImageNetDataModule(str(root), ["zebra", "n02389026"], num_images=2)
    assert data.predict_ids() == ["ILSVRC2012_val_00000000", "ILSVRC2012_val_00000001"]
    dataset = data.dataset("val")
    assert (dataset.ids[2:], dataset.labels) == (
        ["ILSVRC2012_val_00000003", "ILSVRC2012_val_00000004"],
        [340, 339] * 2,
    )
    assert data.class_names == NAMES
    sample = dataset[0]
    assert sample["image"].shape == (3, 256, 256)
    assert sample["label"] == 340
    assert data.dataset("train").labels == [339, 339, 340, 340]


def test_by_default_all_classes_with_a_folder_are_used(root):
    data = ImageNetDataModule(str(root))
    assert data.dataset("train").ids[0] == "n02124075_0"
    assert data.dataset("train").labels == [285, 285, 339, 339, 340, 340]
    assert "images" in summarise(data)


def test_the_test_split_has_no_labels(root):
    with pytest.raises(FileNotFoundError, match="test images are not published: use the val split"):
        ImageNetDataModule(str(root)).dataset("test")


def test_what_is_missing_is_named_and_where_it_is_to_be_had(root, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"val holds no n02130308: get ImageNet .* one folder a class"):
        ImageNetDataModule(str(root), ["cheetah"]).dataset("val")
    shutil.rmtree(root / "train")
    with pytest.raises(FileNotFoundError, match=r"holds no train: get ImageNet"):
        ImageNetDataModule(str(root)).dataset("train")
    for folder in (root / "val").iterdir():
        shutil.rmtree(folder)
    layouts.image(root / "val" / "ILSVRC2012_val_00000001.JPEG")
    with pytest.raises(FileNotFoundError, match=r"val holds no folders: get ImageNet"):
        ImageNetDataModule(str(root)).dataset("val")
    shutil.rmtree(root / "val")
    with pytest.raises(FileNotFoundError, match="holds no train or val: get ImageNet"):
        ImageNetDataModule(str(root))


def test_a_folder_that_is_no_class_is_named(root):
    (root / "val" / "zebra").mkdir()
    with pytest.raises(ValueError, match=r"val/zebra is named after none of ImageNet's WordNet ids"):
        ImageNetDataModule(str(root)).dataset("val")


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (["Zebra"], r"no class 'Zebra': do you mean zebra.*\? Give a name"),
        (["xyzzy"], r"no class 'xyzzy': Give a name as torchvision writes it, a WordNet id, or an index from 0 to 999"),
        ([1000], "no class 1000"),
        ([-1], "no class -1"),
        ([], r"classes is \[\]: name one class or more"),
        (["zebra", 340], r"classes is \['zebra', 340\]: name one class or more, each once"),
    ],
)
def test_classes_that_cannot_be(root, classes, message):
    with pytest.raises(ValueError, match=message):
        ImageNetDataModule(str(root), classes)
