"""Explanations made by several processes: the bytes of one, whatever happens to some of them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import explain
from ace.images import load_png
from tests.conftest import KINDS, pictures, records
from tests.wandb_files import summary

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).parents[1]
IMAGES = 7
ASKED = ("--model.policy=ace.ToClass", "--model.policy.target=1")  # images that are so already are done at once
LATE = '''
import os
import time

from datamodules import AvatarsDataModule


class LateAvatars(AvatarsDataModule):
    """Every process but the first lists its images late, and takes its time for each batch."""

    def predict_dataloader(self):
        time.sleep(self.trainer.global_rank * float(os.environ["LATE"]))
        return super().predict_dataloader()

    def on_before_batch_transfer(self, batch, dataloader_idx):
        time.sleep(self.trainer.global_rank * float(os.environ["LATE"]))
        return batch

    def on_exception(self, exception):
        print(f"process {self.trainer.global_rank} ends by {exception!r}", flush=True)
'''


@pytest.fixture(scope="module")
def command(arguments, tmp_path_factory):
    """Makes the arguments of a run in which the processes but the first are late."""
    folder = tmp_path_factory.mktemp("late")
    (folder / "late.py").write_text(LATE)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        patch.setenv("PYTHONPATH", str(folder))
        patch.setenv("LATE", "0.5")
        yield lambda folder, *overrides, num_images=IMAGES: arguments(
            folder, "--data=late.LateAvatars", "--trainer.enable_progress_bar=false", *overrides, num_images=num_images
        )


@pytest.fixture(scope="module")
def alone(command, tmp_path_factory):
    """The run of one process."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    explain.main(command(folder, *ASKED))
    statuses = {record["status"] for record in records(folder).values()}
    assert len(statuses) > 1, "some images are skipped, others not"
    return folder


@pytest.fixture
def start(tmp_path):
    """Starts a command in a process group of its own, which is gone after the test; what it prints is in `log.txt`."""
    processes = []

    def make(arguments, count, launcher=()):
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        ranks = (f"--trainer.devices={count}", "--trainer.strategy=ddp")
        with (tmp_path / "log.txt").open("a") as log:
            process = subprocess.Popen(
                [sys.executable, *launcher, ROOT / "explain.py", *arguments, *ranks],
                cwd=ROOT, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
        processes.append(process)
        return process

    yield make
    for process in processes:
        if process_group_lives(process):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def torchrun(count):
    return ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count))


def process_group_lives(process):
    try:
        os.killpg(process.pid, 0)
    except ProcessLookupError:
        return False
    return True


def wait_for(condition, process=None, seconds=100):
    end = time.monotonic() + seconds
    while not condition():
        assert process is None or process.poll() is None, "it has ended already"
        assert time.monotonic() < end
        time.sleep(0.02)


def done_by(folder, rank):
    log = folder / f"records.rank{rank}.jsonl"
    return log.read_bytes().count(b"\n") if log.exists() else 0


@pytest.mark.parametrize("settings", [("--model.slots=1",), ("--model.slots=5",), ("--model.deterministic=false",)])
def test_other_batch_shapes_give_the_same_up_to_rounding(settings, alone, command, tmp_path):
    folder = tmp_path / "run"
    explain.main(command(folder, *ASKED, *settings))
    expected, found = records(alone), records(folder)
    assert {id: record["status"] for id, record in found.items()} == {
        id: record["status"] for id, record in expected.items()
    }
    for kind in KINDS:
        names = {path.name for path in (alone / "images" / kind).iterdir()}
        assert {path.name for path in (folder / "images" / kind).iterdir()} == names
        for name in names:
            pair = [load_png(run / "images" / kind / name) for run in (alone, folder)]
            assert np.mean(pair[0] == pair[1]) >= 0.999, (kind, name)


def test_two_processes_of_torchrun_give_the_bytes_of_one_though_the_second_is_late(alone, command, start, tmp_path):
    folder = tmp_path / "run"
    logger = "--trainer.logger=lightning.pytorch.loggers.WandbLogger"
    # Four images for each process, which make a batch of the same shape.
    process = start(command(folder, *ASKED, logger, "--model.slots=null"), 2, torchrun(2))
    assert process.wait(200) == 0, (tmp_path / "log.txt").read_text()
    assert (tmp_path / "log.txt").read_text().count("Memory plan: slots 4,") == 1
    assert done_by(folder, 0) + done_by(folder, 1) == IMAGES
    [logged] = (folder / "wandb").glob("offline-run-*")
    assert summary(logged)["progress/images"] == IMAGES, "one W&B run, of all processes"
    assert done_by(folder, 0) > done_by(folder, 1), "who is late does less"
    assert records(folder) == records(alone)
    assert pictures(folder) == pictures(alone)
    for name in ("metrics.json", "gallery.png"):
        assert (folder / name).exists()


def test_more_processes_than_images_end_well(alone, command, start, tmp_path):
    folder = tmp_path / "run"
    process = start(command(folder, *ASKED, num_images=2), 3, torchrun(3))
    assert process.wait(200) == 0, (tmp_path / "log.txt").read_text()
    assert sum(done_by(folder, rank) for rank in range(3)) == 2
    whole = records(alone)
    assert records(folder) == {id: whole[id] for id in sorted(whole)[:2]}


@pytest.fixture
def stopped_while_the_second_works(command, start, tmp_path, monkeypatch):
    """Starts a run, stops its first process when that waits for the second, and returns its exit code."""

    def make(stop):
        folder = tmp_path / "run"
        monkeypatch.setenv("LATE", "3")
        process = start(command(folder, *ASKED), 2)
        wait_for(lambda: done_by(folder, 0) >= 4, process)
        time.sleep(0.5)
        stop(process)
        code = process.wait(30)
        wait_for(lambda: not process_group_lives(process), seconds=30)
        assert done_by(folder, 1) == 0, "it has not gone on by itself"
        return code

    return make


def test_the_processes_stop_with_the_first_and_the_same_command_goes_on(
    stopped_while_the_second_works, alone, command, tmp_path
):
    folder = tmp_path / "run"
    assert stopped_while_the_second_works(subprocess.Popen.terminate) == 128 + signal.SIGTERM
    said = f"Stopped with {done_by(folder, 0)} of 7 images done: the same command goes on from there"
    assert said in (tmp_path / "log.txt").read_text()
    explain.main(command(folder, *ASKED))
    assert records(folder) == records(alone)
    assert pictures(folder) == pictures(alone)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_all_processes_lets_each_finish_what_it_has_in_hand(
    number, stopped_while_the_second_works, alone, command, tmp_path
):
    """As by ctrl-C in a terminal; the second process hears of it from the first too."""
    folder = tmp_path / "run"
    assert stopped_while_the_second_works(lambda process: os.killpg(process.pid, number)) == 128 + number
    log = (tmp_path / "log.txt").read_text()
    assert all(f"process {rank} ends by SystemExit({128 + number})" in log for rank in (0, 1)), log
    explain.main(command(folder, *ASKED))
    assert records(folder) == records(alone)


def test_a_second_ctrl_c_ends_all_processes_at_once(stopped_while_the_second_works, tmp_path):
    def press_twice(process):
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.5)
        assert process.poll() is None, "it waits for the second one"
        os.killpg(process.pid, signal.SIGINT)

    assert stopped_while_the_second_works(press_twice) == -signal.SIGINT
    assert "process 1 ends" not in (tmp_path / "log.txt").read_text()


def test_no_process_outlives_the_first_and_the_same_command_goes_on(
    stopped_while_the_second_works, alone, command, tmp_path
):
    folder = tmp_path / "run"
    assert stopped_while_the_second_works(subprocess.Popen.kill) == -signal.SIGKILL
    explain.main(command(folder, *ASKED))
    assert records(folder) == records(alone)
    assert pictures(folder) == pictures(alone)
