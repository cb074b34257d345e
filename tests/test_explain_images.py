"""A folder of images of every kind, broken ones among them: each gets its record, none stops the others."""

import html
import json
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import explain
from ace.images import load_png
from ace.models.classifiers import ImageClassifier
from ace.run_store import RunStore
from datamodules import ImageFolderDataModule
from tests.conftest import KINDS, records

CONFIG = Path(__file__).parents[1] / "configs" / "image_folder" / "explain.yaml"
DEEP = Path("cats", *("deep" * 5 for _ in range(40)), "down.png")


def picture(mode="RGB", size=(70, 60)):
    colours = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), np.uint8)
    return Image.fromarray(colours).convert(mode)


def save_good(root):
    """Images of every kind, under names of every kind."""
    transparent = picture("P")
    transparent.info["transparency"] = 0
    turned = Image.Exif()
    turned[0x0112] = 6
    dogs = root / "dogs"
    picture().save(dogs / "colour.png")
    picture().save(dogs / "CAPITALS.JPEG")
    picture("L").save(dogs / "grey.png")
    picture("LA").save(dogs / "grey-alpha.png")
    picture("1").save(dogs / "one-bit.png")
    picture("RGBA").save(dogs / "alpha.png")
    transparent.save(dogs / "palette.png")
    picture("CMYK").save(dogs / "print.jpg")
    Image.fromarray(np.arange(4200, dtype=np.uint16).reshape(60, 70) * 15).save(dogs / "16-bit.png")
    picture("P").save(dogs / "animated.gif", save_all=True, append_images=[picture("P").rotate(90)], duration=9)
    picture().save(dogs / "turned.jpg", exif=turned)
    picture(size=(1, 1)).save(dogs / "dot.png")
    picture(size=(900, 3)).save(dogs / "strip.webp")
    for name in ("größer 猫 🐈.png", " a 'quoted' \"name\" .png", "--output_dir=elsewhere.png", "$(touch owned).png"):
        picture().save(root / "cats" / name)
    (root / DEEP).parent.mkdir(parents=True)
    picture().save(root / DEEP)
    os.symlink(dogs / "colour.png", root / "cats" / "link.png")


def save_bad(root):
    """Files that cannot be read, with what is said of each."""
    cats = root / "cats"
    picture().save(root / "whole.jpg")
    (cats / "truncated.jpg").write_bytes((root / "whole.jpg").read_bytes()[:1500])
    (root / "whole.jpg").unlink()
    (cats / "empty.png").touch()
    (cats / "text.png").write_text("dear diary")
    (cats / "<img src=x onerror=alert(1)>.png").write_text("markup")
    (cats / "two\nlines.png").write_text("markup")
    header = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)
    (cats / "bomb.png").write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND")
    )
    picture("F").save(cats / "float.tif")
    os.symlink(root / "nowhere.png", cats / "dangling.png")
    (cats / os.fsdecode(b"caf\xe9.png")).write_text("not UTF-8")
    return {
        "truncated.jpg": "truncated",
        "empty.png": "it is empty",
        "text.png": "it is no image",
        "<img src=x onerror=alert(1)>.png": "it is no image",
        "two\nlines.png": "it is no image",
        "bomb.png": "decompression bomb",
        "float.tif": "floating-point",
        "dangling.png": "No such file",
        os.fsdecode(b"caf\xe9.png"): "it is no image",
    }


def chunk(name, data=b""):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def make_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    for name in ("cats", "dogs"):
        (root / "test" / name).mkdir(parents=True)
    save_good(root / "test")
    return root


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """Folder of images that can be read."""
    return make_root(tmp_path_factory)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """Folder of such images and others, and what is said of the others."""
    root = make_root(tmp_path_factory)
    return root, save_bad(root / "test")


@pytest.fixture(scope="module")
def command(ddpm_folder, tmp_path_factory):
    """Makes the arguments of a quick run over the folder."""
    torch.manual_seed(0)
    options = {"growth_rate": 4, "block_config": [1, 1], "num_init_features": 8}
    classifier = ImageClassifier("torchvision.models.DenseNet", ["cats", "dogs"], "multiclass", options).eval()
    weights = tmp_path_factory.mktemp("classifier")
    classifier.save_pretrained(weights)

    def make(root, folder, *overrides):
        return [
            "generate",
            f"--config={CONFIG}",
            f"--data.root={root}",
            "--data.num_images=null",
            f"--model.classifier={weights}",
            f"--model.diffusion={ddpm_folder}",
            "--model.slots=4",
            "--model.steps=1",
            "--model.attack.iterations=1",
            "--trainer.accelerator=cpu",
            "--trainer.logger=false",
            f"--output_dir={folder}",
            *overrides,
        ]

    return make


def ids_by_name(root):
    dataset = ImageFolderDataModule(str(root)).dataset("test")
    return {os.path.basename(path): id for path, id in zip(dataset.paths, dataset.ids, strict=True)}


def test_images_of_every_kind_and_name_are_explained(good, command, tmp_path):
    folder = tmp_path / "run"
    explain.main(command(good, folder))
    found = records(folder)
    assert sorted(found) == sorted(ids_by_name(good).values())
    assert len(found) == 19
    assert {record["status"] for record in found.values()} <= {"flipped", "not_flipped"}
    for kind in KINDS:
        assert {path.stem for path in (folder / "images" / kind).iterdir()} == found.keys()
    assert {load_png(path).shape for path in (folder / "images" / "counterfactual").iterdir()} == {(64, 64, 3)}


def test_grey_images_are_explained_by_a_diffusion_model_of_grey_ones(good, command, make_ddpm_folder, tmp_path):
    folder, diffusion = tmp_path / "run", f"--model.diffusion={make_ddpm_folder(channels=1)}"
    with pytest.raises(SystemExit, match=r"3 channels, the diffusion model takes 1: give --data\.channels"):
        explain.main(command(good, folder, diffusion))
    explain.main(command(good, folder, diffusion, "--data.channels=1", "--data.num_images=4"))
    for name in ("original", "counterfactual"):
        assert {load_png(path).shape for path in (folder / "images" / name).iterdir()} == {(64, 64, 1)}
    networks = f"--networks.second_classifier={RunStore.open(folder).config['model']['classifier']}"
    explain.main(["evaluate", str(folder), networks])
    assert {"cout", "non_adversarial_flip_rate"} <= json.loads((folder / "metrics.json").read_text())["metrics"].keys()
    explain.main(["refine", str(folder), "--threshold=0.5"])
    explain.main(["figure", str(folder)])
    assert load_png(folder / "gallery.png").std() > 10


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_images_are_skipped_with_the_reason(workers, mixed, command, tmp_path):
    (root, reasons), folder = mixed, tmp_path / "run"
    explain.main(command(root, folder, f"--data.num_workers={workers}", "--model.slots=3"))
    ids, found = ids_by_name(root), records(folder)
    assert sorted(found) == sorted(ids.values())
    for name, reason in reasons.items():
        record = found.pop(ids[name])
        assert record["status"].startswith("skipped: "), record
        assert reason in record["status"], record
        assert "cannot be read" in record["status"]
        assert record["prediction"] is None
    assert {record["status"] for record in found.values()} <= {"flipped", "not_flipped"}
    assert len(found) == 19

    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["n"] == 19
    assert sum(count for status, count in metrics["status"].items() if status.startswith("skipped: ")) == len(reasons)
    assert len(RunStore.open(folder).merge()) == 19 + len(reasons)
    assert load_png(folder / "gallery.png").std() > 10
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert all(id in page for id in ids.values())
    assert "<img src=x" not in page
    assert html.escape("<img src=x onerror=alert(1)>") in page

    log = (folder / "records.rank0.jsonl").read_bytes()
    explain.main(command(root, folder))
    assert (folder / "records.rank0.jsonl").read_bytes() == log, "what cannot be read is not tried again"


def test_a_folder_of_which_nothing_can_be_read_gets_its_records_too(command, tmp_path):
    root, folder = tmp_path / "images", tmp_path / "run"
    for name in ("cats", "dogs"):
        (root / "test" / name).mkdir(parents=True)
        (root / "test" / name / f"{name}.png").touch()
    explain.main(command(root, folder))
    assert {record["status"].partition(":")[0] for record in records(folder).values()} == {"skipped"}
    assert json.loads((folder / "metrics.json").read_text())["n"] == 0
    assert (folder / "report.html").exists()
