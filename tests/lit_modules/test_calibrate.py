"""The calibrate command from end to end, on tiny networks."""

import errno
import re
import shlex

import numpy as np
import pytest
import yaml

import explain
from ace.attacks import PGD
from ace.calibration import Calibration
from ace.images import load_png, save_png
from ace.settings_search import Settings
from lit_modules.calibrate import UNFINISHED, overlay
from tests.conftest import records

pytestmark = pytest.mark.usefixtures("one_thread")
QUICK = ["--data.val_size=4", "--images", "4", "--search_images=4", "--share=0.01", "--taus=[2]"]
PROXIMAL = {
    "class_path": "ace.ProximalGradient",
    "init_args": {"iterations": 3, "step_size": 40.0, "threshold": 2.0, "momentum": 0.5, "stop": None},
}


@pytest.fixture(scope="module")
def calibrate(arguments):
    """Runs the command; gives the file it wrote, and what of it is YAML."""

    def run(folder, *overrides):
        _, *args = arguments(folder / "run", *QUICK, *map(str, overrides))
        explain.main(["calibrate", *args])
        [file] = folder.rglob("*.y*ml")
        return file, yaml.safe_load(file.read_text())

    return run


@pytest.fixture(scope="module")
def proximal(tmp_path_factory):
    """A configuration of the proximal attack."""
    path = tmp_path_factory.mktemp("config") / "proximal.yaml"
    path.write_text(yaml.safe_dump({"model": {"attack": PROXIMAL, "distance": {"l1": 0.0}}}))
    return f"--config={path}"


@pytest.fixture(scope="module")
def calibrated(calibrate, proximal, tmp_path_factory):
    """A calibration of the proximal attack, which the time has cut off; tests only read it."""
    return calibrate(tmp_path_factory.mktemp("calibrated"), proximal, "--budget=0.05")


@pytest.fixture
def refusal(arguments, tmp_path, capsys):
    """The one line with which the command refuses; nothing is written."""

    def refuse(*overrides):
        _, *args = arguments(tmp_path / "run", *QUICK, *overrides)
        with pytest.raises(SystemExit) as exit:
            explain.main(["calibrate", *args])
        return f"{exit.value.code}\n{capsys.readouterr().err}"

    return refuse


def test_the_file_names_every_argument_of_what_was_chosen(calibrated):
    file, content = calibrated
    assert file.name == "run-calibrated.yaml", "beside the run's folder"
    model = content["model"]
    assert set(content) == {"model"}
    assert set(model) == {
        "attack", "distance", "gradient_passes", "steps", "respacing", "segments", "refinement",
    }  # fmt: skip
    assert model["attack"]["class_path"] == PROXIMAL["class_path"]
    assert model["attack"]["init_args"].keys() == PROXIMAL["init_args"].keys()
    assert model["steps"] == 2
    assert model["distance"] == {"l1": 0.0, "l2": 0.0, "schedule": "constant"}
    assert set(model["refinement"]) == {"threshold", "dilation"}


def test_the_file_begins_with_the_table_and_a_picture_lies_beside_it(calibrated):
    file, _ = calibrated
    comment = [line for line in file.read_text().splitlines() if line.startswith("#")]
    for part in ("4 images of val", "survive", "attack", "step_size", "mask_threshold"):
        assert any(part in line for line in comment), part
    picture = load_png(file.with_suffix(".png"))
    assert picture.std() > 10
    assert {path.name for path in file.parent.iterdir()} == {file.name, file.with_suffix(".png").name}


def test_generate_finds_what_the_calibration_has_measured(calibrated, tmp_path):
    """On the same images: noise belongs to an image, and the mask was tried on the chosen pre-explanations."""
    file, content = calibrated
    command = re.search(r"^#   python explain.py (generate .+)$", file.read_text(), re.MULTILINE)[1]
    folder = tmp_path / "run"
    explain.main([*shlex.split(command), f"--output_dir={folder}", "--data.predict_split=val", "--data.val_size=4"])
    found = records(folder).values()
    l1 = [record["l1"] for record in found if record["flipped"]]
    values = [content["model"]["refinement"][name] for name in ("threshold", "dilation")]
    row = next(line.split() for line in file.read_text().partition("mask_threshold")[2].splitlines()
               if line.split()[1:3] == [f"{value:g}" for value in values])  # fmt: skip
    assert row[3:6] == [str(len(l1)), "of", "4"]
    assert float(row[6]) == pytest.approx(np.mean(l1), abs=1e-4)
    stored = yaml.safe_load((folder / "config.yaml").read_text())["config"]["model"]
    assert stored["steps"] == 2
    assert stored["refinement"] == content["model"]["refinement"]
    assert stored["attack"]["init_args"]["threshold"] == content["model"]["attack"]["init_args"]["threshold"]


def test_sign_steps_are_calibrated_too(calibrate, tmp_path, capsys):
    out = tmp_path / "new" / "signs.yml"
    _, content = calibrate(tmp_path, "--budget=0.001", f"--out={out}", "--model.attack.iterations=5")
    assert content["model"]["attack"]["init_args"] == {
        "iterations": 5, "step_size": 20.0, "epsilon": None, "norm": "linf",
    }  # fmt: skip
    printed = capsys.readouterr().out
    assert printed.count("not reached in the time") == 4 + 4, "the neighbours of both starts"
    assert re.search("step_size +iterations +weight +flipped", printed)
    assert f"--config {out}" in printed


def test_attacks_that_flip_nothing_end_with_a_sentence(refusal, tmp_path):
    weak = ["--budget=0.001", "--model.attack.step_size=0.1"]
    assert "error: none of these attacks flips an image" in refusal(*weak)
    assert not list(tmp_path.iterdir())


METHOD = {
    "attack": PROXIMAL,
    "distance": {"l1": 0.0, "l2": 0.5, "schedule": "linear"},
    "gradient_passes": 4,
    "respacing": 50,
    "segments": 3,
}


def test_an_overlay_keeps_what_is_not_searched_and_fits_a_smaller_tau():
    found = overlay(METHOD, Settings(2, 10.0, 3, 1.0, 0.5, 0.3, 7))
    assert found == {
        "attack": PROXIMAL | {"init_args": PROXIMAL["init_args"] | {"step_size": 10.0, "threshold": 1.0}},
        "distance": METHOD["distance"],
        "gradient_passes": 2,
        "steps": 2,
        "respacing": 50,
        "segments": 2,
        "refinement": {"threshold": 0.3, "dilation": 7},
    }
    assert METHOD["attack"]["init_args"]["step_size"] == 40, "the configuration is left as it is"
    assert overlay(METHOD, Settings(9, 10.0, 3, 1.0, 0.5, 0.3, 7))["gradient_passes"] == 4


def test_the_distance_that_is_configured_is_searched():
    l2 = overlay(METHOD, Settings(2, 10.0, 3, None, 0.05, 0.3, 7))["distance"]
    assert l2 == {"l1": 0.0, "l2": 0.05, "schedule": "linear"}
    both = METHOD | {"distance": {"l1": 0.1, "l2": 0.5, "schedule": "linear"}}
    assert overlay(both, Settings(2, 10.0, 3, None, 0.05, 0.3, 7))["distance"]["l1"] == 0.05
    assert overlay(both, Settings(2, 10.0, 3, None, 0.05, 0.3, 7))["distance"]["l2"] == 0.5


def test_what_was_found_before_a_stop_is_kept(calibrate, proximal, tmp_path, monkeypatch):
    def stopped(self, start):
        raise KeyboardInterrupt

    monkeypatch.setattr(Calibration, "masks", stopped)
    with pytest.raises(KeyboardInterrupt):
        calibrate(tmp_path, proximal, "--budget=0.001")
    [file] = tmp_path.glob("*.yaml")
    assert f"# {UNFINISHED}" in file.read_text()
    assert yaml.safe_load(file.read_text())["model"]["steps"] == 2


@pytest.mark.parametrize(("module", "name"), [("lit_modules.calibrate", "yaml"), ("ace.report.sheet", "png")])
def test_a_full_disk_ends_it_with_a_sentence(module, name, refusal, proximal, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(f"{module}.write_whole", full)
    path, said = tmp_path / f"run-calibrated.{name}", refusal(proximal, "--budget=0.001")
    assert f"error: {path} cannot be written (No space left on device): free space" in said


def test_what_an_earlier_run_keeps_out_is_kept_out(proximal, arguments, tmp_path, refusal):
    _, *args = arguments(tmp_path / "earlier", proximal, "--data.predict_split=val", "--data.val_size=4")
    explain.main(["generate", *args])
    for mask in (tmp_path / "earlier/images/mask").iterdir():
        save_png(np.full((64, 64), 255, np.uint8), mask)  # nothing may change
    avoid = f"--model.avoid=[{tmp_path / 'earlier'}]"
    assert "none of these attacks flips an image" in refusal(proximal, "--budget=0.001", avoid)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["--dry_run"], "error: dry_run is an option of generate"),
        (["--taus=[2,51]"], r"error: tau \(steps=51\) must be a whole number in \[1, 25\]"),
        (["--budget=0"], "error: the budget must be positive"),
        (["--search_images=0"], "error: search_images must be at least 1, got 0"),
        (["--share=1.5"], r"error: share must be in \(0, 1\], got 1.5"),
        (["--taus=[]"], "error: taus is empty"),
        (["--out=here.txt"], "error: out is here.txt: give it the ending .yaml"),
        (["--split=nowhere"], "split"),
        (["--model.policy=ace.ToClass", "--model.policy.target=2"], "class 2 does not exist"),
    ],
)
def test_bad_input_ends_with_a_sentence_before_anything_is_written(overrides, words, refusal, tmp_path):
    text = refusal(*overrides)
    assert re.search(words, text), text
    assert "Traceback" not in text
    assert not list(tmp_path.rglob("*.*"))


def test_files_are_not_overwritten(refusal, tmp_path):
    for name in ("mine.yaml", "mine.png"):
        (tmp_path / name).write_text("dear")
        assert f"{name} exists: name another file by --out" in refusal(f"--out={tmp_path / 'mine.yaml'}")
        assert (tmp_path / name).read_text() == "dear"
        (tmp_path / name).unlink()


class Odd(PGD):
    """An attack that names its arguments otherwise."""

    def __init__(self, pace: float = 1.0) -> None:
        super().__init__(3, pace)


def test_an_attack_without_such_arguments_is_refused(refusal):
    text = refusal("--model.attack=tests.lit_modules.test_calibrate.Odd")
    assert "Odd has no step_size and no iterations to calibrate" in text
