"""A diffusion model trained by two processes: stopped, continued, and ended where its weights are spoilt."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers.utils import SAFETENSORS_WEIGHTS_NAME as WEIGHTS_NAME
from safetensors.torch import load_file

from ace.models.unet import load_diffusion

ROOT = Path(__file__).parents[1]
STOP, STEPS, POISONED = 2, 4, 5
BEHIND = """
import os
import signal

import torch
from lightning import Callback


class Behind(Callback):
    '''Does something to the second process alone, behind a step.'''

    def __init__(self, step: int, what: str) -> None:
        self.step, self.what = step, what

    def on_train_batch_end(self, trainer, pl_module, *_):
        if trainer.global_rank == 1 and trainer.global_step == self.step:
            if self.what == "stop":
                os.kill(os.getpid(), signal.SIGTERM)
            else:
                torch.nn.init.constant_(pl_module.unet.conv_in.bias, float("nan"))
"""
TRAININGS = """
import json
import sys

import train

for command in json.loads(sys.argv[1]):
    ended = None
    try:
        train.main(command)
    except (RuntimeError, SystemExit) as error:
        ended = str(error)
    print("ended:", json.dumps(ended), flush=True)
"""


@pytest.fixture
def command(avatar_cache, classifier_folder):
    """Makes the arguments of a training in a folder of its own, with everything that a training may do besides."""

    def make(folder, *more, behind=None, steps=STEPS):
        callbacks = [
            {"class_path": "callbacks.EMAWithWarmup", "init_args": {"decay": 0.5}},
            {"class_path": "callbacks.SampleGrid", "init_args": {"count": 1, "inference_steps": 2}},
            {"class_path": "callbacks.FilterCheck",
             "init_args": {"classifier": str(classifier_folder), "query": "smiling", "steps": [1, 2]}},
            {"class_path": "callbacks.ExportModel", "init_args": {"folder": "best", "monitor": "val/loss"}},
            {"class_path": "callbacks.ExportModel", "init_args": {"folder": f"{folder}/weights"}},
        ]  # fmt: skip
        if behind:
            callbacks.insert(0, {"class_path": "behind.Behind", "init_args": {"step": behind[0], "what": behind[1]}})
        return [
            "fit", f"--config={ROOT / 'configs/avatars/ddpm.yaml'}", f"--output_dir={folder}",
            "--model.unet.block_out_channels=[8, 8, 8, 8]", "--model.unet.norm_num_groups=4",
            "--model.unet.attention_head_dim=8", "--model.unet.dropout=0.1", f"--trainer.callbacks={callbacks}",
            "--trainer.accelerator=cpu", "--trainer.devices=2", "--trainer.strategy=ddp",
            "--trainer.enable_progress_bar=false", "--trainer.num_sanity_val_steps=0",
            f"--trainer.max_steps={steps}", "--trainer.val_check_interval=2", "--trainer.log_every_n_steps=1",
            "--checkpoint.every_n_train_steps=1", "--data.batch_size=4", "--data.train_size=24", "--data.val_size=9",
            "--data.test_size=2", "--data.num_workers=0", f"--data.cache_dir={avatar_cache}", *more,
        ]  # fmt: skip

    return make


@pytest.fixture
def run(tmp_path):
    """Two processes train one after the other what they are told; how each training ended, for both."""
    (tmp_path / "behind.py").write_text(BEHIND)
    (tmp_path / "trainings.py").write_text(TRAININGS)

    def start(*commands):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        shared = {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}", "WORLD_SIZE": "2"}
        shared |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
        logs, processes = [tmp_path / f"rank{rank}.txt" for rank in range(2)], []
        try:
            for rank, log in enumerate(logs):
                with log.open("w") as output:
                    process = subprocess.Popen(
                        [sys.executable, "trainings.py", json.dumps(commands)], cwd=tmp_path,
                        env=os.environ | shared | {"LOCAL_RANK": str(rank)},
                        stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                    )  # fmt: skip
                processes.append(process)
            for process in processes:
                process.wait(200)
        finally:
            for process in processes:
                process.kill()
        texts = [log.read_text() for log in logs]
        endings = [[json.loads(line[7:]) for line in text.splitlines() if line.startswith("ended: ")] for text in texts]
        assert [len(ended) for ended in endings] == [len(commands)] * 2, "\n".join(texts)
        return endings

    return start


def test_two_processes_train_stop_go_on_and_end_where_one_has_spoilt_weights(command, run, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    goes_on = "--ckpt_path=last"
    first, second = run(
        command(whole),
        command(broken, behind=(STOP, "stop")),
        command(broken, goes_on),
        command(broken, goes_on, steps=10, behind=(POISONED, "poison")),
    )
    assert first[:3] == second[:3] == [None, str(128 + signal.SIGTERM), None]
    for folder in (whole, broken):
        load_diffusion(folder / "best")
    once, continued = (load_file(folder / "weights/unet" / WEIGHTS_NAME) for folder in (whole, broken))
    assert all(torch.equal(weight, continued[name]) for name, weight in once.items())

    for ended in (first[3], second[3]):
        assert ended.startswith(f"the weights are no finite numbers any more at step {POISONED}: ")
    good = torch.load(broken / "checkpoints" / "last.ckpt", weights_only=True)
    assert good["global_step"] == POISONED - 1
    for kind in ("state_dict", "current_model_state"):
        assert all(weight.isfinite().all() for weight in good[kind].values())
