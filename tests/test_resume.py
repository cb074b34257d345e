"""``train.py`` killed by a signal, in a process of its own, and continued by ``--ckpt_path last``."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

import train

ROOT = Path(__file__).parents[1]
STEPS = 40


@pytest.fixture
def command(avatar_cache):
    """Makes the command of a short training in a folder of its own."""

    def make(*more):
        return [
            sys.executable, ROOT / "train.py", "fit", f"--config={ROOT / 'configs/avatars/ddpm.yaml'}",
            "--model.unet.block_out_channels=[8, 8, 8, 8]", "--model.unet.norm_num_groups=4",
            "--model.unet.attention_head_dim=8", "--model.unet.dropout=0.1",
            "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.log_every_n_steps=1",
            f"--trainer.max_steps={STEPS}", "--trainer.val_check_interval=6", "--checkpoint.every_n_train_steps=4",
            "--trainer.callbacks=callbacks.EMAWithWarmup", "--trainer.callbacks.decay=0.9",
            "--trainer.callbacks+=callbacks.ExportModel", "--trainer.callbacks.folder=weights",
            "--data.batch_size=2", "--data.train_size=15", "--data.val_size=2", "--data.test_size=2",
            "--data.horizontal_flip=true", f"--data.cache_dir={avatar_cache}", *more,
        ]  # fmt: skip

    return make


def start(command, folder, **options):
    folder.mkdir(exist_ok=True)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}
    with (folder / "log.txt").open("a") as log:
        return subprocess.Popen(
            command, cwd=folder, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL, **options
        )  # fmt: skip


def wait_for(condition, process, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, "the training has ended already"
        assert time.monotonic() < end
        time.sleep(0.02)


def exported(folder):
    return load_file(folder / "weights" / "unet" / "diffusion_pytorch_model.safetensors")


def test_a_training_killed_by_every_signal_ends_with_the_weights_of_an_undisturbed_one(command, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert start(command(), whole).wait(200) == 0
    last = broken / "outputs/avatars/ddpm/checkpoints/last.ckpt"

    process = start(command(), broken)
    wait_for(last.exists, process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 128 + signal.SIGTERM
    log = (broken / "log.txt").read_text()
    assert "--ckpt_path last goes on from there" in log
    stopped_at = torch.load(last, weights_only=True)["global_step"]
    assert f"Stopped at step {stopped_at}" in log
    assert 4 <= stopped_at < STEPS
    assert not (broken / "weights").exists(), "half a training is no model to explain with"

    generator = random.Random(0)
    for _ in range(2):
        process, written = start(command("--ckpt_path=last"), broken), last.stat().st_mtime_ns
        wait_for(lambda before=written: last.stat().st_mtime_ns != before, process)
        time.sleep(generator.uniform(0, 0.2))
        process.kill()
        process.wait()
    assert start(command("--ckpt_path=last"), broken).wait(200) == 0, (broken / "log.txt").read_text()
    weights = exported(broken)
    assert all(torch.equal(weight, weights[name]) for name, weight in exported(whole).items())


SLOW = """
import time
from pathlib import Path
from lightning import Callback

class Slow(Callback):
    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == 5:
            Path("training").touch()
            time.sleep(2)

    def on_validation_batch_start(self, trainer, *_):
        if not trainer.sanity_checking:
            Path("validation").touch()
            time.sleep(2)
"""


@pytest.mark.parametrize(("number", "place"), [(signal.SIGINT, "training"), (signal.SIGTERM, "validation")])
def test_a_signal_to_the_processes_that_load_data_too_ends_the_training_as_one_to_it_alone(
    number, place, command, tmp_path
):
    (tmp_path / "slow.py").write_text(SLOW)
    more = ("--data.num_workers=1", "--data.val_size=6", "--trainer.callbacks+=slow.Slow")
    process = start(command(*more), tmp_path, start_new_session=True)
    wait_for((tmp_path / place).exists, process)
    workers = psutil.Process(process.pid).children()
    assert workers
    os.killpg(process.pid, number)
    assert process.wait(60) == 128 + number, (tmp_path / "log.txt").read_text()
    state = torch.load(tmp_path / "outputs/avatars/ddpm/checkpoints/last.ckpt", weights_only=True)
    assert state["global_step"] == 6, "of the step in hand, and of the one before the validation"
    assert "Traceback" not in (tmp_path / "log.txt").read_text()
    assert not psutil.wait_procs(workers, timeout=10)[1]


def test_going_on_from_nothing_is_an_error(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["train.py"])
    with pytest.raises(SystemExit) as exit:
        train.main([str(part) for part in command("--ckpt_path=last")[2:]])
    assert str(exit.value.code).startswith("error: nothing to go on from: there is no ")
    assert "leave --ckpt_path out" in str(exit.value.code)
