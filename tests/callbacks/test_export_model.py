"""What `ExportModel` exports of a training."""

import math

import pytest
import torch
from diffusers import DDPMScheduler
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging
from safetensors.torch import load_file
from torch.utils.data import DataLoader

from ace.models.unet import load_diffusion
from callbacks import ExportModel
from lit_modules import LitDDPM

SIZE = 16


class Scored(LitDDPM):
    """Logs a number of its own at each validation."""

    scores = ()

    def on_validation_epoch_end(self):
        super().on_validation_epoch_end()
        if self.trainer.current_epoch < len(self.scores):
            self.log("val/score", self.scores[self.trainer.current_epoch])


class Validated(Callback):
    """Keeps the weights that each validation ran with, and those of the training behind it."""

    def __init__(self):
        self.used, self.raw = [], []

    def on_validation_batch_start(self, trainer, pl_module, *_):
        self.used.append(pl_module.unet.conv_in.weight.detach().clone())

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.raw.append(pl_module.unet.conv_in.weight.detach().clone())


@pytest.fixture
def fit(make_unet, tmp_path):
    """Trains a tiny diffusion model for an epoch a score, two steps each."""

    def run(scores, *callbacks, ckpt_path=None, **settings):
        quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
        torch.manual_seed(0)
        module = Scored(make_unet(SIZE), DDPMScheduler(), lr=1e-2, warmup_steps=0)
        module.scores = scores
        images = torch.rand(4, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
        loader = DataLoader([{"image": image, "id": str(i)} for i, image in enumerate(images)], batch_size=2)
        standard = {"default_root_dir": tmp_path, "limit_val_batches": 1, "max_epochs": len(scores)}
        trainer = Trainer(accelerator="cpu", devices=1, callbacks=list(callbacks), **quiet, **(standard | settings))
        trainer.fit(module, loader, loader, ckpt_path=ckpt_path)
        return trainer, module

    return run


def exported(folder):
    return load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")["conv_in.weight"]


@pytest.mark.parametrize(("mode", "scores", "best"), [("min", [2.0, 0.5, 1.0], 1), ("max", [2.0, 3.0, 2.5], 1)])
@pytest.mark.parametrize("averaging_first", [True, False])
def test_the_averaged_weights_of_the_best_validation_are_exported(averaging_first, mode, scores, best, fit, tmp_path):
    weights = Validated()
    pair = [EMAWeightAveraging(decay=0.5), ExportModel(str(tmp_path / "ddpm"), monitor="val/score", mode=mode)]
    fit(scores, weights, *(pair if averaging_first else reversed(pair)), num_sanity_val_steps=0)
    assert torch.equal(exported(tmp_path / "ddpm"), weights.used[best])
    assert not any(torch.equal(weights.used[best], raw) for raw in weights.raw)
    load_diffusion(tmp_path / "ddpm")


def test_without_averaging_the_weights_of_the_best_validation_are_exported(fit, tmp_path):
    weights = Validated()
    fit([1.0, 2.0], weights, ExportModel(str(tmp_path / "ddpm"), monitor="val/score"), num_sanity_val_steps=0)
    assert torch.equal(exported(tmp_path / "ddpm"), weights.raw[1])


@pytest.mark.parametrize("averaging", [True, False])
def test_the_export_changes_nothing_in_the_training(averaging, fit, tmp_path):
    states = []
    for export in ([], [ExportModel(str(tmp_path / "ddpm"), monitor="val/score")]):
        weights = Validated()
        _, module = fit([3.0, 2.0, 1.0], weights, *[EMAWeightAveraging(decay=0.5)] * averaging, *export)
        states.append([*module.state_dict().values(), *weights.raw])
    assert all(torch.equal(one, other) for one, other in zip(*states, strict=True))


def test_a_training_that_goes_on_knows_the_best_value(fit, tmp_path):
    def callbacks():
        return Validated(), ExportModel(str(tmp_path / "ddpm"), monitor="val/score")

    weights, export = callbacks()
    trainer, _ = fit([3.0, 1.0], weights, export, num_sanity_val_steps=0)
    best, checkpoint = weights.used[1], tmp_path / "last.ckpt"
    trainer.save_checkpoint(checkpoint)
    weights, export = callbacks()
    fit([3.0, 1.0, 2.0], weights, export, ckpt_path=checkpoint)
    assert export.best == 1.0
    assert torch.equal(exported(tmp_path / "ddpm"), best)
    weights, export = callbacks()
    fit([3.0, 1.0, 0.5], weights, export, ckpt_path=checkpoint)
    assert torch.equal(exported(tmp_path / "ddpm"), weights.used[-1])


@pytest.mark.parametrize(("monitor", "place"), [(None, "ddpm"), ("val/score", "outputs/ddpm")])
def test_a_training_says_what_it_is_going_to_replace(monitor, place, fit, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    words = f"The network in {place} is going to be replaced"
    message = words if monitor is None else f"{words} by the best of this training"
    settings = {"default_root_dir": "outputs"}
    fit([1.0], ExportModel("ddpm", monitor=monitor), **settings)
    assert words not in caplog.text
    trainer, _ = fit([1.0, 2.0], ExportModel("ddpm", monitor=monitor), **settings)
    assert message in caplog.messages
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    caplog.clear()
    fit([1.0, 2.0], ExportModel("ddpm", monitor=monitor), ckpt_path=tmp_path / "last.ckpt", **settings)
    assert (words in caplog.text) == (monitor is None), "a training that goes on keeps its own best"


def test_each_of_several_exports_has_its_own_best_value(fit, tmp_path):
    def callbacks():
        return [
            ExportModel(str(tmp_path / "score"), monitor="val/score", mode="max"),
            ExportModel(str(tmp_path / "loss"), monitor="val/loss"),
            ExportModel(str(tmp_path / "last")),
        ]

    trainer, _ = fit([5.0], *callbacks())
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    resumed = callbacks()
    fit([5.0], *resumed, ckpt_path=tmp_path / "last.ckpt")
    assert resumed[0].best == 5.0
    assert resumed[1].best == trainer.callback_metrics["val/loss"].item()
    assert all(load_diffusion(tmp_path / name) for name in ("score", "loss", "last"))


def test_an_unknown_metric_ends_the_training_with_the_names_that_exist(fit, tmp_path):
    with pytest.raises(ValueError, match=r"no metric 'val/los' is logged.*these: train/loss, val/loss, .*val/score"):
        fit([1.0], ExportModel(str(tmp_path / "ddpm"), monitor="val/los"))


def test_a_value_that_is_no_number_is_no_best_one(fit, tmp_path):
    export = ExportModel(str(tmp_path / "ddpm"), monitor="val/score")
    fit([math.nan], export)
    assert not (tmp_path / "ddpm").exists()
    assert export.best == math.inf


@pytest.mark.parametrize("averaging_first", [True, False])
def test_going_on_from_a_finished_training_exports_the_same_bytes(averaging_first, fit, tmp_path):
    def callbacks(name):
        pair = [EMAWeightAveraging(decay=0.5), ExportModel(str(tmp_path / name))]
        return pair if averaging_first else reversed(pair)

    trainer, _ = fit([1.0], *callbacks("finished"), Saves(tmp_path / "last.ckpt"))
    again, _ = fit([1.0], *callbacks("again"), ckpt_path=tmp_path / "last.ckpt")
    assert again.global_step == trainer.global_step == 2
    assert folder_bytes(tmp_path / "again") == folder_bytes(tmp_path / "finished")


class Saves(Callback):
    """A checkpoint of the end, as `LastCheckpoint` writes it."""

    def __init__(self, path):
        self.path = path

    def on_train_epoch_end(self, trainer, pl_module):
        trainer.save_checkpoint(self.path)


def folder_bytes(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class Fails(Callback):
    def __init__(self, error):
        self.error = error

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == 3:
            raise self.error


@pytest.mark.parametrize("error", [RuntimeError("no more"), KeyboardInterrupt(), SystemExit(143)])
def test_a_training_that_was_stopped_leaves_an_older_export_alone(error, fit, tmp_path):
    fit([1.0], ExportModel(str(tmp_path / "ddpm")))
    before = exported(tmp_path / "ddpm")
    with pytest.raises((RuntimeError, SystemExit)):
        fit([1.0, 2.0], ExportModel(str(tmp_path / "ddpm")), Fails(error))
    assert torch.equal(exported(tmp_path / "ddpm"), before)


class StopBeforeTraining(Callback):
    def on_train_start(self, *_):
        raise RuntimeError("the sanity check is over")


def test_a_training_of_no_steps_leaves_an_older_export_alone(fit, tmp_path):
    fit([1.0], ExportModel(str(tmp_path / "ddpm")))
    before = exported(tmp_path / "ddpm")
    fit([1.0], ExportModel(str(tmp_path / "ddpm")), limit_train_batches=0)
    assert torch.equal(exported(tmp_path / "ddpm"), before)


def test_a_sanity_check_and_a_validation_alone_export_nothing(fit, tmp_path):
    export = ExportModel(str(tmp_path / "ddpm"), monitor="val/loss")
    with pytest.raises(RuntimeError):
        fit([1.0], export, StopBeforeTraining())
    trainer, module = fit([1.0])
    trainer.callbacks.append(export)
    trainer.validate(module, trainer.val_dataloaders, verbose=False)
    assert not (tmp_path / "ddpm").exists()
