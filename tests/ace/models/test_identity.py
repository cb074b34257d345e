"""The hash of weights: of what is in the files, not of where they are."""

import os
import shutil

import pytest
import torch

from ace.models.identity import folder_hash, tensors_hash


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "weights"
    (folder / "unet").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "unet" / "model.safetensors").write_bytes(bytes(range(256)) * 100)
    return folder


def test_the_hash_is_of_the_content_alone(folder, tmp_path):
    before = folder_hash(folder)
    assert len(before) == 64
    assert folder_hash(str(folder)) == before
    copied = shutil.copytree(folder, tmp_path / "else" / "where")
    assert folder_hash(copied) == before
    moved = folder.rename(tmp_path / "moved")
    os.utime(moved / "config.json", (0, 0))
    assert folder_hash(moved) == before


def flip_a_bit(folder):
    path = folder / "unet" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[12345] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "change",
    [
        flip_a_bit,
        lambda folder: (folder / "config.json").write_text("{ }"),
        lambda folder: (folder / "config.json").rename(folder / "config.yaml"),
        lambda folder: (folder / "config.json").rename(folder / "unet" / "config.json"),
        lambda folder: (folder / "config.json").unlink(),
        lambda folder: (folder / "empty.json").touch(),
        lambda folder: (folder / "unet" / "model.safetensors").write_bytes(b""),
    ],
)
def test_every_change_changes_the_hash(folder, change):
    before = folder_hash(folder)
    change(folder)
    assert folder_hash(folder) != before


@pytest.mark.parametrize("name", ["README.md", ".gitattributes", "unet/model.bin", "unet/.DS_Store", "samples/0.png"])
def test_files_beside_the_model_do_not_matter(folder, name):
    before = folder_hash(folder)
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("hello")
    assert folder_hash(folder) == before


def test_content_cannot_move_between_files(tmp_path):
    cases = [{"1": b"ab", "2": b"c"}, {"1": b"a", "2": b"bc"}, {"1": b"abc", "2": b""}, {"1": b"ab2.json\0c"}]
    hashes = set()
    for number, files in enumerate(cases):
        folder = tmp_path / str(number)
        folder.mkdir()
        for name, content in files.items():
            (folder / f"{name}.json").write_bytes(content)
        hashes.add(folder_hash(folder))
    assert len(hashes) == len(cases)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere"):
        folder_hash(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(FileNotFoundError, match="no folder"):
        folder_hash(tmp_path / "file")


def test_tensors_are_known_by_name_type_shape_and_value():
    tensors = {"a": torch.arange(4.0), "b": torch.tensor(3)}
    same = tensors_hash(dict(reversed(tensors.items())))
    assert same == tensors_hash(tensors)
    others = [
        {"a": torch.arange(4.0), "c": torch.tensor(3)},
        {"a": torch.arange(4.0).view(2, 2), "b": torch.tensor(3)},
        {"a": torch.arange(4.0).view(torch.int32), "b": torch.tensor(3)},
        {"a": torch.arange(4.0) + 1, "b": torch.tensor(3)},
    ]
    assert len({same, *map(tensors_hash, others)}) == 5
    assert tensors_hash({"half": torch.ones(2, 3, dtype=torch.bfloat16).t()}) == tensors_hash(
        {"half": torch.ones(3, 2, dtype=torch.bfloat16)}
    )
