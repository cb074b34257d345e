import pytest
from torch.utils.data import default_collate

from datamodules import ImagePathsDataModule
from datamodules.image_files import image_id
from tests import layouts


@pytest.fixture
def photos(tmp_path):
    for name in ("b.jpg", "a.PNG", "deep/c.webp", ".hidden/d.png", ".e.png"):
        layouts.image(tmp_path / "photos" / name)
    (tmp_path / "photos" / "notes.txt").touch()
    return tmp_path / "photos"


def test_a_file_a_list_a_folder_and_a_pattern(photos):
    a, b, c = (str(photos / name) for name in ("a.PNG", "b.jpg", "deep/c.webp"))
    cases = [
        (b, [b]),
        ([b, a], [b, a]),
        (str(photos), [a, b, c]),
        (f"{photos}/*.jpg", [b]),
        ([f"{photos}/**/*.webp"], [c]),
    ]
    for paths, expected in cases:
        assert ImagePathsDataModule(paths).dataset("test").paths == expected


def test_linked_folders_are_followed_and_links_to_nothing_passed_over(photos, tmp_path):
    layouts.image(tmp_path / "elsewhere" / "d.jpg")
    (photos / "linked").symlink_to(tmp_path / "elsewhere")
    (photos / ".private").symlink_to(tmp_path / "elsewhere")
    (photos / "gone.jpg").symlink_to(tmp_path / "nothing.jpg")
    names = ("a.PNG", "b.jpg", "deep/c.webp", "linked/d.jpg")
    assert ImagePathsDataModule(str(photos)).predict_ids() == [image_id(name) for name in names]


def test_samples_have_no_label_and_all_splits_are_the_same(photos):
    data = ImagePathsDataModule(str(photos), image_size=(8, 16))
    assert default_collate([data.dataset("test")[0]]).keys() == {"image", "id"}
    assert data.dataset("val").ids == data.dataset("train").ids == data.predict_ids()
    assert data.dataset("test")[2]["image"].shape == (3, 8, 16)


def test_ids_depend_neither_on_the_place_nor_on_the_company(photos, tmp_path, monkeypatch):
    alone = ImagePathsDataModule(str(photos / "b.jpg")).predict_ids()
    assert alone == [image_id("b.jpg")]
    assert alone[0] in ImagePathsDataModule(str(photos)).predict_ids()
    assert image_id("deep/c.webp") in ImagePathsDataModule([str(photos)]).predict_ids()
    monkeypatch.chdir(photos)
    assert ImagePathsDataModule(["./b.jpg", "a.PNG"]).predict_ids()[0] == alone[0]
    photos.rename(tmp_path / "moved")
    assert ImagePathsDataModule(str(tmp_path / "moved" / "b.jpg")).predict_ids() == alone


def test_an_image_that_is_given_twice_is_explained_once(photos):
    assert len(ImagePathsDataModule([str(photos), str(photos / "b.jpg"), f"{photos}/*.jpg"]).predict_ids()) == 3


def test_two_images_of_one_name_are_refused(photos, tmp_path):
    layouts.image(tmp_path / "others" / "b.jpg")
    with pytest.raises(ValueError, match=r"photos/b\.jpg and .*others/b\.jpg have the same name 'b\.jpg'.*rename one"):
        ImagePathsDataModule([str(photos), str(tmp_path / "others")])


@pytest.mark.parametrize(
    ("path", "error", "message"),
    [
        ("none.jpg", FileNotFoundError, r"There is no '.*none\.jpg': give image files, folders or patterns"),
        ("*.bmp", FileNotFoundError, r"There is no '.*\*\.bmp'"),
        (".hidden/empty", FileNotFoundError, r"empty holds no images: they end in \.jpg"),
    ],
)
def test_what_does_not_exist_is_named(photos, path, error, message):
    (photos / ".hidden" / "empty").mkdir()
    with pytest.raises(error, match=message):
        ImagePathsDataModule(str(photos / path))


def test_no_paths_are_refused():
    with pytest.raises(ValueError, match="paths is empty: give images"):
        ImagePathsDataModule([])
