"""A training that was stopped, in whatever way and wherever, goes on as if it had not been."""

import csv
import os
import signal
from pathlib import Path

import pytest
import torch
from diffusers import DDPMScheduler
from lightning import Callback, Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger

from callbacks import EMAWithWarmup, LastCheckpoint
from callbacks.last_checkpoint import WholeFileIO
from datamodules import AvatarsDataModule
from lit_modules import LitDDPM

BY_STEPS = {"max_steps": 14, "check_val_every_n_epoch": None, "val_check_interval": 3}
BY_EPOCHS = {"max_epochs": 3}
ACCUMULATING = {"max_epochs": 2, "accumulate_grad_batches": 2}


class Stop(Callback):
    """Tells the training to stop at a step, or breaks it."""

    def __init__(self, step, how):
        self.step, self.how = step, how

    def on_train_batch_end(self, trainer, *_):
        self.act(trainer)

    def act(self, trainer):
        if trainer.global_step == self.step:
            if self.how == "crash":
                raise RuntimeError("crashed")
            os.kill(os.getpid(), self.how)


class StopInValidation(Stop):
    """The same in the validation behind a step, when the module holds the averaged weights."""

    def on_train_batch_end(self, *_):
        pass

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == 0 and not trainer.sanity_checking:
            self.act(trainer)


class Poison(Callback):
    """Spoils a weight behind a step, as gradients that are no numbers do."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, pl_module, *_):
        if trainer.global_step == self.step:
            torch.nn.init.constant_(pl_module.unet.conv_in.bias, float("nan"))


@pytest.fixture
def train(make_unet, avatar_cache, tmp_path):
    """Trains a small UNet with dropout, flips and averaged weights; returns trainer and module."""

    def run(name, *callbacks, every=1000, resume=False, workers=0, lr=1e-3, **settings):
        seed_everything(3, verbose=False)
        unet = make_unet(width=8)
        for layer in unet.modules():
            if isinstance(layer, torch.nn.Dropout):
                layer.p = 0.1
        module = LitDDPM(unet, DDPMScheduler(), lr=lr, warmup_steps=2)
        sizes = {"train_size": 11, "val_size": 3, "test_size": 1}
        data = AvatarsDataModule(str(avatar_cache), horizontal_flip=True, batch_size=2, num_workers=workers, **sizes)
        last = LastCheckpoint(str(tmp_path / name), every)
        trainer = Trainer(
            accelerator="cpu", devices=1, default_root_dir=tmp_path / name, logger=CSVLogger(tmp_path / name),
            callbacks=[last, EMAWithWarmup(decay=0.9), *callbacks], log_every_n_steps=1,
            enable_progress_bar=False, enable_model_summary=False, **settings,
        )  # fmt: skip
        try:
            trainer.fit(module, datamodule=data, ckpt_path=str(last.path) if resume else None)
        except (SystemExit, RuntimeError) as ended:
            trainer.ended = ended
        return trainer, module

    return run


def curves(*trainers):
    """Every logged value by name and step; later runs overwrite what they repeat."""
    found = {}
    for trainer in trainers:
        path = Path(trainer.logger.log_dir, "metrics.csv")
        for row in csv.DictReader(path.open()) if path.exists() else []:
            found |= {(name, int(row["step"])): float(value) for name, value in row.items() if value}
    return found


def assert_same(trainer, module, expected_trainer, expected_module, *before):
    assert trainer.global_step == expected_trainer.global_step
    expected = expected_module.state_dict()
    assert all(torch.equal(weight, expected[name]) for name, weight in module.state_dict().items())
    assert curves(*before, trainer) == pytest.approx(curves(expected_trainer), rel=1e-6)


@pytest.mark.parametrize(
    ("settings", "steps"), [(BY_STEPS, (3, 5, 13)), (BY_EPOCHS, (2, 5, 12)), (ACCUMULATING, (2, 3))]
)
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop_it_saves_first_and_goes_on_exactly(settings, steps, how, train):
    expected = train("whole", **settings)
    for step in steps if how == signal.SIGTERM else steps[:1]:
        stopped, _ = train(f"step{step}", Stop(step, how), **settings)
        assert stopped.ended.code == 128 + how
        assert_same(*train(f"step{step}", resume=True, **settings), *expected, stopped)


@pytest.mark.parametrize(("settings", "step"), [(BY_STEPS, 7), (BY_STEPS, 10), (BY_EPOCHS, 8)])
def test_after_a_crash_it_goes_on_exactly_from_the_last_checkpoint(settings, step, train):
    expected = train("whole", **settings)
    crashed, _ = train("crash", Stop(step, "crash"), every=3, **settings)
    assert str(crashed.ended) == "crashed"
    assert_same(*train("crash", resume=True, **settings), *expected, crashed)


@pytest.mark.parametrize(("settings", "step"), [(BY_STEPS, 3), (BY_STEPS, 12), (BY_EPOCHS, 5)])
def test_after_a_crash_in_a_validation_it_goes_on_from_the_step_in_front_of_it(settings, step, train):
    expected, expected_module = train("whole", **settings)
    crashed, _ = train("crash", StopInValidation(step, "crash"), every=step, **settings)
    assert str(crashed.ended) == "crashed"
    assert torch.load(Path(crashed.default_root_dir, "last.ckpt"), weights_only=True)["global_step"] == step
    trainer, module = train("crash", resume=True, **settings)
    weights = expected_module.state_dict()
    assert all(torch.equal(weight, weights[name]) for name, weight in module.state_dict().items())
    found, whole = curves(crashed, trainer), curves(expected)
    assert {name[:4] for name, _ in whole.keys() - found.keys()} == {"val/"}, "of the validation that has failed"
    assert found == pytest.approx({place: whole[place] for place in found}, rel=1e-6)


def test_told_to_stop_in_a_validation_amid_accumulation_it_goes_on_to_the_next_whole_step(train):
    settings = {"max_epochs": 2, "accumulate_grad_batches": 3, "val_check_interval": 2}
    expected = train("whole", **settings)
    stopped, _ = train("stopped", StopInValidation(1, signal.SIGTERM), every=1, **settings)
    assert stopped.ended.code == 128 + signal.SIGTERM
    assert stopped.global_step == 2
    assert_same(*train("stopped", resume=True, **settings), *expected, stopped)


def test_weights_that_are_no_numbers_are_never_saved(train):
    trainer, _ = train("poisoned", Poison(5), every=2, **BY_STEPS)
    last = Path(trainer.default_root_dir, "last.ckpt")
    assert str(trainer.ended).startswith("the weights are no finite numbers any more at step 6: lower lr")
    assert f"continues from the last good checkpoint ({last})" in str(trainer.ended)
    state = torch.load(last, weights_only=True)
    assert state["global_step"] == 4
    for kind in ("state_dict", "current_model_state"):
        assert all(weight.isfinite().all() for weight in state[kind].values())


def test_processes_that_load_data_change_nothing(train):
    expected = train("whole", **BY_STEPS)
    stopped, _ = train("workers", Stop(6, signal.SIGTERM), workers=1, **BY_STEPS)
    assert_same(*train("workers", resume=True, workers=1, **BY_STEPS), *expected, stopped)


def test_a_finished_training_can_be_made_longer(train):
    settings = BY_STEPS | {"max_steps": 8}
    train("longer", **settings)
    longer, module = train("longer", resume=True, lr=5e-4, **BY_STEPS)
    assert longer.global_step == 14
    assert longer.ended is None if hasattr(longer, "ended") else True
    rates = longer.optimizers[0].param_groups[0]
    assert rates["initial_lr"] == module.lr == 5e-4, "the checkpoint must not bring its learning rate back"
    assert rates["lr"] == pytest.approx(0, abs=1e-9), "the cosine follows the new length"


def test_the_handlers_are_put_back(train):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    train("fine", **BY_STEPS | {"max_steps": 1})
    train("crash", Stop(1, "crash"), **BY_STEPS)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_a_checkpoint_replaces_the_old_one_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "last.ckpt"
    WholeFileIO().save_checkpoint({"step": 1}, path)

    class Breaks:
        def __reduce__(self):
            raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        WholeFileIO().save_checkpoint({"step": 2, "more": Breaks()}, path)
    assert torch.load(path, weights_only=True) == {"step": 1}


def test_a_pause_below_one_is_refused(tmp_path):
    with pytest.raises(ValueError, match="every_n_train_steps must be at least 1, got 0"):
        LastCheckpoint(str(tmp_path), 0)
