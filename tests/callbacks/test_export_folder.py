"""Where `ExportModel` writes, and that no half of a folder is ever there."""

import itertools
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from callbacks import ExportModel


class Module:
    """Exports a number."""

    number = 0

    def export(self, folder, dtype):
        (folder / "unet").mkdir(parents=True)
        (folder / "config.json").write_text(str(self.number))
        (folder / "unet" / f"{str(dtype)[6:]}.txt").write_text(str(self.number))


def trainer(**settings):
    standard = {"is_global_zero": True, "fast_dev_run": False, "sanity_checking": False, "callbacks": [], "loggers": []}
    standard |= {"state": SimpleNamespace(fn="fit"), "callback_metrics": {"val/loss": torch.zeros(())}}
    return SimpleNamespace(**(standard | {"default_root_dir": "outputs", "global_step": 1} | settings))


def content(folder):
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_the_module_is_exported_at_the_end_in_the_precision_asked_for(dtype, tmp_path, caplog):
    export = ExportModel(str(tmp_path / "own" / "weights"), dtype)
    export.on_validation_end(trainer(), Module())
    assert not list(tmp_path.iterdir())
    export.on_fit_end(trainer(), Module())
    assert content(tmp_path) == {"own/weights/config.json": "0", f"own/weights/unet/{dtype}.txt": "0"}
    assert caplog.messages == [f"The trained network is in {tmp_path / 'own' / 'weights'}"]


@pytest.mark.parametrize("monitor", [None, "val/loss"])
@pytest.mark.parametrize("settings", [{"is_global_zero": False}, {"fast_dev_run": 1}])
def test_other_ranks_and_trial_runs_export_nothing(settings, monitor, tmp_path):
    export = ExportModel(str(tmp_path / "weights"), monitor=monitor)
    export.on_validation_end(trainer(**settings), Module())
    export.on_fit_end(trainer(**settings), Module())
    assert not list(tmp_path.iterdir())


def test_another_mode_is_refused():
    with pytest.raises(ValueError, match="mode must be min or max, got 'least'"):
        ExportModel("weights", monitor="val/loss", mode="least")


def test_the_folder_is_replaced_but_for_files_of_others(tmp_path):
    folder = tmp_path / "weights"
    ExportModel(str(folder), "float16").on_fit_end(trainer(), Module())
    (folder / "notes").mkdir()
    (folder / "notes" / "mine.txt").write_text("mine")
    new = Module()
    new.number = 1
    ExportModel(str(folder)).on_fit_end(trainer(), new)
    assert content(tmp_path) == {
        "weights/config.json": "1",
        "weights/unet/float32.txt": "1",  # and no file of the old precision beside it
        "weights/notes/mine.txt": "mine",
    }
    assert [path.name for path in tmp_path.iterdir()] == ["weights"]


def test_a_link_leads_to_the_new_export(tmp_path):
    (tmp_path / "disk" / "weights").mkdir(parents=True)
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "disk" / "weights")
    ExportModel(str(link)).on_fit_end(trainer(), Module())
    assert link.is_symlink()
    assert content(tmp_path / "disk" / "weights") == {"config.json": "0", "unet/float32.txt": "0"}


class Killed(BaseException):
    pass


def kill_at(monkeypatch, count):
    """Everything that changes the disk ends the program at its ``count``-th use."""
    uses = itertools.count(1)

    def mortal(function):
        def run(*args, **options):
            if next(uses) == count:
                raise Killed
            return function(*args, **options)

        return run

    for owner, name in ((Path, "rename"), (Path, "mkdir"), (Path, "write_text"), (shutil, "rmtree")):
        monkeypatch.setattr(owner, name, mortal(getattr(owner, name)))


@pytest.mark.parametrize("count", range(1, 9))
def test_a_kill_leaves_no_half_of_a_folder_and_the_next_export_is_whole(count, tmp_path, monkeypatch):
    folder = tmp_path / "weights"
    export, module = ExportModel(str(folder)), Module()
    export.on_fit_end(trainer(), module)
    (folder / "mine.txt").write_text("mine")

    module.number = 1
    with monkeypatch.context() as patch:
        kill_at(patch, count)
        with pytest.raises(Killed):
            export.on_fit_end(trainer(), module)
    left = content(folder)
    left.pop("mine.txt", None)
    assert left in ({}, *({"config.json": n, "unet/float32.txt": n} for n in "01"))

    module.number = 2
    export.on_fit_end(trainer(), module)
    assert content(tmp_path) == {
        "weights/config.json": "2",
        "weights/unet/float32.txt": "2",
        "weights/mine.txt": "mine",
    }
    assert [path.name for path in tmp_path.iterdir()] == ["weights"]


def test_the_best_of_a_training_lies_in_its_output_folder_and_the_end_where_it_is_said(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, monitor in (("best", "val/loss"), ("end", None)):
        for run in ("one", "other"):
            export = ExportModel(name, monitor=monitor)
            export.on_validation_end(trainer(default_root_dir=run), Module())
            export.on_fit_end(trainer(default_root_dir=run), Module())
    ExportModel(str(tmp_path / "there"), monitor="val/loss").on_validation_end(trainer(), Module())
    assert {path.parent.as_posix() for path in Path().rglob("config.json")} == {
        "one/best",
        "other/best",
        "end",
        "there",
    }
