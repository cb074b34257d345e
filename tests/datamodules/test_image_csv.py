from pathlib import Path

import pytest
import torch
from PIL import Image

from datamodules.image_csv import CSVDataModule
from datamodules.image_files import hashed_split

SPLITS = ("train", "val", "test")


@pytest.fixture
def listed(tmp_path):
    """Makes a CSV file of some lines, and the images that they name in the first column."""

    def make(*lines, encoding="utf-8", **settings):
        file = tmp_path / "list.csv"
        file.write_text("\n".join(lines), encoding=encoding)
        for line in lines[1:]:
            path = tmp_path / line.partition(",")[0].strip('"')
            path.parent.mkdir(exist_ok=True, parents=True)
            if path.suffix == ".png":
                Image.new("RGB", (8, 8), "red").save(path)
        return CSVDataModule(str(file), image_size=8, **settings)

    return make


def labels_of(data):
    """The label of each image, by the name of its file."""
    splits = [data.dataset(split) for split in SPLITS]
    return {Path(path).stem: label for part in splits for path, label in zip(part.paths, part.labels, strict=True)}


def test_class_names_are_sorted_and_become_indices(listed):
    data = listed("image,label", "a.png,dog", "b.png,cat", "c.png,dog")
    assert data.class_names == ["cat", "dog"]
    assert labels_of(data) == {"a": 1, "b": 0, "c": 1}


def test_class_names_can_be_given_in_another_order_and_hold_more(listed):
    data = listed("image,label", "a.png,dog", "b.png,cat", class_names=["dog", "fox", "cat"])
    assert data.class_names == ["dog", "fox", "cat"]
    assert labels_of(data) == {"a": 0, "b": 2}


def test_numbers_are_indices_with_class_names_and_names_without(listed):
    lines = ("image,label", "a.png,10", "b.png,2")
    data = listed(*lines)
    assert data.class_names == ["2", "10"]
    assert labels_of(data) == {"a": 1, "b": 0}
    names = [f"class {index}" for index in range(11)]
    assert labels_of(listed(*lines, class_names=names)) == {"a": 10, "b": 2}
    assert labels_of(listed(*lines, class_names=["10", "2"])) == {"a": 0, "b": 1}


def test_one_column_of_zeros_and_ones_holds_classes(listed):
    data = listed("image,smiling", "a.png,1", "b.png,0", label_columns=("smiling",))
    assert data.class_names == ["0", "1"]
    assert labels_of(data) == {"a": 1, "b": 0}


@pytest.mark.parametrize("no", ["0", "-1"])
def test_several_columns_are_attributes_of_0_or_minus_1_and_1(listed, no):
    columns = {"label_columns": ("smiling", "hat"), "split_column": "part"}
    lines = ("image,hat,age,smiling,part", f"a.png,{no},41,1,train", f"b.png,{no},17,{no},train")
    data = listed(*lines, **columns)
    assert data.class_names == ["smiling", "hat"]
    samples = sorted((data.dataset("train")[index] for index in range(2)), key=lambda sample: sample["id"])
    assert [sample["label"].tolist() for sample in samples] == [[1, 0], [0, 0]]
    assert samples[0]["label"].dtype == torch.float32
    assert samples[0]["image"][:, 0, 0].tolist() == [1, 0, 0]
    assert listed(*lines, **columns, class_names=["smile", "headwear"]).class_names == ["smile", "headwear"]


def test_the_split_column_decides(listed):
    data = listed("image,label,s", "a.png,x,test", "b.png,y,train", "c.png,x,val", "d.png,x,train", split_column="s")
    assert [{id[0] for id in data.dataset(split).ids} for split in SPLITS] == [{"b", "d"}, {"c"}, {"a"}]


def test_the_first_images_are_of_all_classes_whatever_the_order_of_the_lines(listed):
    lines = [f"{name}/{index}.png,{name}" for name in ("dark", "light") for index in range(30)]
    settings = {"val_share": 0.0, "test_share": 0.99, "num_images": 12}
    data = listed("image,label", *lines, **settings)
    first = data.predict_ids()
    assert 3 <= sum(image_id.startswith("dark-") for image_id in first) <= 9
    assert listed("image,label", *lines[::-1], **settings).predict_ids() == first


def test_without_a_split_column_the_path_decides_for_good(listed):
    lines = [f"faces/{index}.png,{index % 2}" for index in range(40)]
    data = listed("image,label", *lines, val_share=0.3, test_share=0.3)
    for split in SPLITS:
        names = [f"faces/{path.rpartition('/')[2]}" for path in data.dataset(split).paths]
        assert names
        assert {hashed_split(name, 0.3, 0.3) for name in names} == {split}


def test_ids_and_splits_do_not_depend_on_how_the_path_is_written(listed, tmp_path):
    plain, dotted, absolute = (
        listed("image,label", f"{start}faces/a.png,x", "b.png,y", val_share=0, test_share=0).dataset("train").ids
        for start in ("", "./", f"{tmp_path}/")
    )
    assert plain == dotted == absolute
    assert sorted(plain)[1].startswith("faces-a-")


def test_paths_start_from_root(listed, tmp_path):
    listed("image,label", "photos/a.png,x")
    (tmp_path / "list.csv").write_text("image,label\na.png,x\n")
    data = CSVDataModule(str(tmp_path / "list.csv"), str(tmp_path / "photos"), val_share=0, test_share=0)
    assert data.dataset("train").paths == [str(tmp_path / "photos" / "a.png")]


def test_what_spreadsheets_write_is_read(listed):
    data = listed("file,label", '"a.png","cat, grey"', "", "b.png, dog ", encoding="utf-8-sig", image_column="file")
    assert data.class_names == ["cat, grey", "dog"]


@pytest.mark.parametrize(
    ("lines", "settings", "message"),
    [
        ([], {}, r"list\.csv is empty: give it a line of column names"),
        (["image,label"], {}, r"list\.csv is empty: .*one for each image"),
        (["path;class", "a.png;x"], {}, r"list\.csv has no column 'image', but 'path;class': name one .*image_column"),
        (
            ["image,label", "a.png,x"],
            {"label_columns": ("label", "hat")},
            r"list\.csv has no column 'hat', but 'image'",
        ),
        (["image,label", "a.png,x"], {"split_column": "s"}, r"list\.csv has no column 's'"),
        (["image,label", "a.png,x"], {"label_columns": ()}, r"label_columns is \[\]: name one column or more"),
        (["image,label", "a.png,x"], {"label_columns": ("label", "label")}, "each once"),
        (["image,label", "a.png,x", "b.png"], {}, r"list\.csv, line 3: it has not the 2 cells.*look for commas"),
        (["image,label", "a.png,x,y"], {}, r"list\.csv, line 2: it has not the 2 cells"),
        (["image,label", "", "a.png,"], {}, r"list\.csv, line 3: 'label' is empty: fill it, or drop"),
        (["image,label", "a.png,x", "./a.png,y"], {}, r"line 3: './a\.png' is in line 2 already: leave one"),
        (
            ["image,label,s", "a.png,x,dev"],
            {"split_column": "s"},
            r"list\.csv, line 2: the split is 'dev': give one of train, val, test",
        ),
        (
            ["image,label", "a.png,cat", "b.png,cow"],
            {"class_names": ["cat", "dog"]},
            r"list\.csv, line 3: 'label' is 'cow': give one of cat, dog, or add it to class_names",
        ),
        (
            ["image,label", "a.png,0", "b.png,2"],
            {"class_names": ["cat", "dog"]},
            r"list\.csv, line 3: 'label' is '2': give one of 0, 1, or add it to class_names",
        ),
        (["image,label", "a.png,-1"], {"class_names": ["cat", "dog"]}, "line 2: 'label' is '-1': give one of 0, 1,"),
        (["image,label", "a.png,x"], {"class_names": ["x", "x"]}, r"class_names is \['x', 'x'\]: give every class"),
        (
            ["image,hat,hair", "a.png,0,1", "b.png,0,2"],
            {"label_columns": ("hat", "hair")},
            r"list\.csv, line 3: 'hair' is '2': give 0 or 1 in every line",
        ),
        (
            ["image,hat,hair", "a.png,-1,1", "b.png,0,1"],
            {"label_columns": ("hat", "hair")},
            r"list\.csv, line 3: 'hat' is '0': give -1 or 1 in every line",
        ),
        (
            ["image,hat,hair", "a.png,0,1"],
            {"label_columns": ("hat", "hair"), "class_names": ["hat"]},
            r"class_names has 1 names for 2 label columns: give as many",
        ),
        (["image,label", "a.png,x"], {"val_share": 1.0}, r"val_share is 1\.0 and test_share 0\.1: give"),
    ],
)
def test_what_is_wrong_in_the_file_is_named_with_its_line(listed, lines, settings, message):
    with pytest.raises(ValueError, match=message):
        listed(*lines, **settings)


def test_missing_files_are_counted_and_the_first_ones_named(listed, tmp_path):
    lines = [f"{index}.jpg,x" for index in range(8)]
    with pytest.raises(
        FileNotFoundError, match=r"8 of the 9 images in .*list\.csv are missing \(line 3: .*0\.jpg; "
    ) as e:
        listed("image,label", "a.png,x", *lines)
    assert f"root, which is {tmp_path}" in str(e.value)
    assert "4.jpg" in str(e.value)
    assert "5.jpg" not in str(e.value)


def test_a_missing_or_misencoded_file_is_named(listed, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file '.*other\.csv': give the CSV file"):
        CSVDataModule(str(tmp_path / "other.csv"))
    with pytest.raises(ValueError, match=r"list\.csv is not in UTF-8: save it"):
        listed("image,label", "a.png,Käfer", encoding="latin-1")


def test_corrupt_files_can_be_skipped(listed, tmp_path):
    data = listed("image,label", "a.png,x", "b.png,y", val_share=0, test_share=0, corrupt="skip")
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.warns(UserWarning, match=r"a\.png cannot be read: it is empty"):
        assert data.dataset("train").labels == [1]
