"""What a run of explanations meets with: kills, signals, a second run, failing classifiers, files that mean harm."""

import errno
import json
import multiprocessing
import os
import pickle
import random
import re
import shutil
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
import wandb

import explain
from ace.images import from_uint8, load_png
from ace.models.classifiers import ImageClassifier
from ace.slots import SlotPool
from lit_modules.counterfactual import LitCounterfactual
from tests.conftest import pictures, records

pytestmark = pytest.mark.usefixtures("one_thread")

# What is forked from a process that has imported everything starts at once.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["explain", "datamodules", "torchvision.models"])

IMAGES = 60
KILLS = 24
SOME = 6  # images, where a few will do
GOES_ON = "the same command goes on from there"


@pytest.fixture(scope="module")
def command(arguments):
    """Makes the arguments of a run that takes two images at a time, and a moment for them."""

    def make(folder, *overrides, num_images=SOME):
        quick = ("--data.test_size=60", "--data.num_workers=0", "--model.steps=1")
        return arguments(folder, *quick, "--trainer.enable_progress_bar=false", *overrides, num_images=num_images)

    return make


@pytest.fixture(scope="module")
def undisturbed(command, tmp_path_factory):
    """A run of all images that nothing has happened to."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    explain.main(command(folder, num_images=IMAGES))
    return folder


@pytest.fixture
def start(tmp_path):
    """Starts `explain.py`; what it prints is in `log.txt`. Nothing of it is left after the test."""
    processes = []
    (tmp_path / "log.txt").touch()

    def make(arguments, **mishap):
        process = PROCESSES.Process(target=run_script, args=(arguments, tmp_path / "log.txt"), kwargs=mishap)
        process.start()
        processes.append(process)
        return process

    yield make
    for process in processes:
        process.kill()
        process.join()


def run_script(arguments, log, fatal=0, hang=False):
    """Be `explain.py` in a process group of its own.

    Args:
        arguments: of the command line.
        log: file for what is printed.
        fatal: in which operation on a file to die; 0 for none.
        hang: whether the first iteration never ends.
    """
    os.setsid()
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the background jobs of a shell ignore it
    torch.set_num_threads(1)
    sys.argv = ["explain.py"]
    if fatal:
        die_in_file_operation(fatal)
    if hang:
        SlotPool._iterate = sleep_for_ever
    explain.main(arguments)


def sleep_for_ever(pool):
    print("hangs", flush=True)
    while True:
        time.sleep(0.05)


def die_in_file_operation(number):
    """Make the n-th operation that writes the last, in the middle where it has one."""
    left = iter(range(number - 1, -1, -1))

    def deadly(name, operation):
        def wrapped(*arguments):
            if not next(left):
                if name == "write":
                    operation(arguments[0], arguments[1][: len(arguments[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return operation(*arguments)

        return wrapped

    for name in ("write", "fsync", "replace"):
        setattr(os, name, deadly(name, getattr(os, name)))


def count(folder):
    """Number of records, half-written ones included."""
    return sum(log.read_bytes().count(b'"id"') for log in folder.glob("records.rank*.jsonl"))


def wait_for(condition, process, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert process.exitcode is None, "it has ended already"
        assert time.monotonic() < end
        time.sleep(0.005)


def assert_equal(folder, undisturbed, images):
    """A run has the bytes and the records of the first so many images of another."""
    expected = dict(sorted(records(undisturbed).items())[:images])
    assert records(folder) == expected
    names = {f"{id}.png" for id in expected}
    whole = pictures(undisturbed)
    assert pictures(folder) == {key: value for key, value in whole.items() if key.partition("/")[2] in names}
    rows = (folder / "records.csv").read_text().splitlines()
    assert [row.partition(",")[0] for row in rows[1:]] == list(expected)


def refusal(capsys, arguments):
    """What the command says when it refuses."""
    with pytest.raises(SystemExit) as exit:
        explain.main(arguments)
    assert exit.value.code not in (0, None)
    return f"{exit.value.code}\n{capsys.readouterr().err}"


# --- kills and signals


def test_a_run_killed_over_and_over_loses_nothing(undisturbed, command, start, tmp_path):
    chance, folder = random.Random(0), tmp_path / "run"
    run = command(folder, num_images=IMAGES)
    for kill in range(KILLS):
        if kill % 2:  # in the middle of writing
            process = start(run, fatal=chance.randrange(1, 50))
        else:  # at any moment, of the set-up too
            process, target = start(run), IMAGES * 0.8 * kill / KILLS
            wait_for(lambda process=process, target=target: count(folder) >= target, process)
            time.sleep(chance.uniform(0, 0.4))
            process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, f"life {kill} ended of itself"
    assert 0 < count(folder) < IMAGES
    process = start(run)
    process.join()
    assert process.exitcode == 0, (tmp_path / "log.txt").read_text()
    assert_equal(folder, undisturbed, IMAGES)
    assert not list(folder.rglob("*.tmp"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop_it_says_how_to_go_on_and_does(number, undisturbed, command, start, tmp_path):
    folder = tmp_path / "run"
    process = start(command(folder))
    wait_for(lambda: count(folder), process)
    os.kill(process.pid, number)
    process.join(30)
    assert process.exitcode == 128 + number
    assert f"Stopped with {len(records(folder))} of {SOME} images done: {GOES_ON}" in (tmp_path / "log.txt").read_text()
    assert len(records(folder)) < SOME
    explain.main(command(folder))
    assert_equal(folder, undisturbed, SOME)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_a_long_iteration_at_once(number, command, start, tmp_path):
    process = start(command(tmp_path / "run"), hang=True)
    wait_for(lambda: "hangs" in (tmp_path / "log.txt").read_text(), process)
    os.kill(process.pid, number)
    process.join(0.5)
    assert process.exitcode is None, "the iteration is in hand"
    os.kill(process.pid, number)
    process.join(10)
    assert process.exitcode == -number


def test_a_folder_takes_one_run_at_a_time_and_a_dead_one_is_no_obstacle(undisturbed, command, start, tmp_path, capsys):
    folder = tmp_path / "run"
    process = start(command(folder), hang=True)
    wait_for(lambda: "hangs" in (tmp_path / "log.txt").read_text(), process)
    text = refusal(capsys, command(folder))
    assert f"error: {folder} is in use by process {process.pid}" in text
    assert process.exitcode is None
    assert not records(folder)
    os.killpg(process.pid, signal.SIGKILL)
    process.join()
    explain.main(command(folder))
    assert_equal(folder, undisturbed, SOME)
    assert not (folder / ".lock").exists()


# --- a full disk


def test_a_full_disk_ends_the_run_with_its_sentence_and_with_room_it_goes_on(
    undisturbed, command, tmp_path, capsys, monkeypatch
):
    folder, fsync, left = tmp_path / "run", os.fsync, iter(range(40))

    def fsync_while_there_is_room(descriptor):
        if next(left, None) is None:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync_while_there_is_room)
    text = refusal(capsys, command(folder))
    assert re.search(r"error: \S+ cannot be written \(No space left on device\): free space on this disk, then", text)
    assert 0 < len(records(folder)) < SOME
    monkeypatch.undo()
    explain.main(command(folder))
    assert_equal(folder, undisturbed, SOME)


# --- too little memory


def out_of_memory(*_):
    raise torch.OutOfMemoryError("out of memory")


def test_too_little_memory_for_one_image_ends_the_run_with_its_sentence_and_with_more_it_goes_on(
    undisturbed, command, tmp_path, capsys, monkeypatch
):
    folder, iterate, left = tmp_path / "run", SlotPool._iterate, iter(range(2))

    def iterate_while_there_is_memory(pool):
        out_of_memory() if next(left, None) is None else iterate(pool)

    monkeypatch.setattr(SlotPool, "_iterate", iterate_while_there_is_memory)
    with pytest.warns(UserWarning, match="the memory is not enough for 2 images at a time: going on with 1"):
        text = refusal(capsys, command(folder))
    assert "error: the memory is not enough: free some, and the same command goes on" in text
    assert "--trainer.precision bf16-mixed" in text
    assert len(records(folder)) == 2, "what was finished before"
    monkeypatch.undo()
    explain.main(command(folder))
    assert_equal(folder, undisturbed, SOME)


def test_too_little_memory_for_a_plan_names_the_least_that_a_run_can_do_with(command, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("lit_modules.counterfactual.measure", out_of_memory)
    text = refusal(capsys, command(tmp_path / "run", "--model.steps=3", "--model.slots=null"))
    assert "error: the memory is not enough: free some, or give --model.slots 1 --model.segments 3" in text


# --- a classifier that fails


@pytest.fixture
def spoil(undisturbed, monkeypatch):
    """Makes the classifier answer NaN to some images, by position."""

    def make(*positions):
        ids = sorted(records(undisturbed))
        names = [undisturbed / "images" / "original" / f"{ids[position]}.png" for position in positions]
        spoilt = torch.stack([from_uint8(load_png(name)) for name in names])
        forward = ImageClassifier.forward

        def forward_or_fail(self, images):
            hit = (images[:, None] == spoilt).flatten(2).all(2).any(1)
            return torch.where(hit[:, None], torch.nan, forward(self, images))

        monkeypatch.setattr(ImageClassifier, "forward", forward_or_fail)
        return [ids[position] for position in positions]

    return make


FAILED = "failed: the classifier's output is not finite"


def test_an_image_that_fails_stops_no_other_and_is_told_by_the_exit_code(undisturbed, command, spoil, tmp_path, capsys):
    [id] = spoil(1)
    folder = tmp_path / "run"
    assert f"error: 1 images failed, more than max_failures=0 (1 {FAILED})" in refusal(capsys, command(folder))
    expected, found = records(undisturbed), records(folder)
    assert len(found) == SOME
    assert found.pop(id)["status"] == FAILED
    assert found == {name: expected[name] for name in found}
    assert json.loads((folder / "metrics.json").read_text())["status"][FAILED] == 1
    assert id in (folder / "report.html").read_text()
    explain.main(command(folder, "--max_failures=1"))


def test_more_failures_than_allowed_are_an_error(command, spoil, tmp_path, capsys):
    spoil(0, 3)
    text = refusal(capsys, command(tmp_path / "run", "--max_failures=1"))
    assert f"error: 2 images failed, more than max_failures=1 (2 {FAILED})" in text
    explain.main(command(tmp_path / "other", "--max_failures=2"))
    assert len(records(tmp_path / "other")) == SOME


def test_a_run_whose_images_all_fail_ends_with_the_reason(command, spoil, tmp_path, capsys):
    spoil(*range(SOME))
    text = refusal(capsys, command(tmp_path / "run"))
    assert f"error: {SOME} images failed, more than max_failures=0 ({SOME} {FAILED})" in text
    assert (tmp_path / "run" / "report.html").is_file()
    assert not (tmp_path / "run" / "gallery.png").exists()


def test_a_run_of_which_only_failing_images_are_left_ends(undisturbed, command, spoil, tmp_path, capsys):
    folder = tmp_path / "run"
    explain.main(command(folder, num_images=2))
    [id] = spoil(2)
    assert FAILED in refusal(capsys, command(folder, num_images=3))
    assert records(folder)[id]["status"] == FAILED
    assert len(records(folder)) == 3


# --- images that are lost


@pytest.mark.parametrize("batches", [0, 1, 2])
def test_images_without_a_record_are_told_by_the_exit_code(
    batches, undisturbed, command, tmp_path, capsys, monkeypatch
):
    folder, step, left = tmp_path / "run", LitCounterfactual.predict_step, iter(range(batches))

    def end_early(*arguments):
        next(left)  # Lightning takes a StopIteration for the end of the data
        return step(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(LitCounterfactual, "predict_step", end_early)
        text = refusal(capsys, command(folder))
    missing = SOME - 2 * batches
    assert f"error: {missing} of {SOME} images have no record: the same command again explains them" in text
    assert len(records(folder)) == SOME - missing
    measured = [json.loads(path.read_text())["n"] for path in folder.glob("metrics.json")]
    assert measured == [SOME - missing] * (batches > 0), "what there is"
    explain.main(command(folder))
    assert_equal(folder, undisturbed, SOME)


# --- a dry run


def everything_below(*folders):
    return {path for folder in folders for path in Path(folder).rglob("*")}


def test_a_dry_run_estimates_and_writes_nothing(undisturbed, command, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    run = command(tmp_path / "run", "--trainer.logger=lightning.pytorch.loggers.WandbLogger")
    before = everything_below(tmp_path, os.environ["WANDB_DIR"])
    with caplog.at_level("INFO"), pytest.raises(SystemExit) as exit:
        explain.main([*run, "--dry_run"])
    assert exit.value.code == 0
    assert re.search(rf"{SOME} images .*2 at a time: about 0:00:\d\d .*2 iterations of .* and \d+\.\d GiB", caplog.text)
    assert everything_below(tmp_path, os.environ["WANDB_DIR"]) == before
    assert wandb.run is None
    explain.main(command(tmp_path / "run"))
    assert_equal(tmp_path / "run", undisturbed, SOME)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["--model.attack.iterations=1", "--model.slots=6"], "nothing to time"),
        (["--model.attack.iterations=1", "--model.slots=4"], "6 images for each device, 4 at a time: about 0:00:"),
        (["--model.policy=ace.ToClass", "--model.policy.target=1"], "6 images for each device, 2 at a time: about 0:"),
    ],
    ids=["one iteration in all", "one iteration of each", "some are skipped"],
)
def test_a_dry_run_times_what_there_is(overrides, words, command, tmp_path, caplog):
    with caplog.at_level("INFO"), suppress(SystemExit):
        explain.main(command(tmp_path / "run", *overrides, "--dry_run"))
    assert words in caplog.text
    assert not list(tmp_path.iterdir())


# --- files that mean harm


class Trap:
    """Touches a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize(
    ("network", "file"),
    [
        ("classifier", "model.safetensors"),
        ("diffusion", "unet/diffusion_pytorch_model.safetensors"),
        ("diffusion", "unet/diffusion_pytorch_model.bin"),
    ],
)
@pytest.mark.parametrize("save", [torch.save, lambda trap, path: path.write_bytes(pickle.dumps(trap))])
def test_pickled_code_in_the_place_of_weights_is_never_run(
    network, file, save, command, classifier_folder, ddpm_folder, tmp_path, capsys
):
    folder, sprung = tmp_path / "weights", tmp_path / "sprung"
    shutil.copytree({"classifier": classifier_folder, "diffusion": ddpm_folder}[network], folder)
    next((folder / file).parent.glob("*.safetensors")).unlink()
    save({"network.weight": Trap(sprung)}, folder / file)
    assert str(folder) in refusal(capsys, command(tmp_path / "run", f"--model.{network}={folder}"))
    assert [path.name for path in tmp_path.iterdir()] == ["weights"]
    torch.load(folder / file, weights_only=False) if save is torch.save else pickle.loads((folder / file).read_bytes())
    assert sprung.exists(), "the trap works"


@pytest.mark.parametrize("name", ["generate", "evaluate", "report", "refine"])
def test_code_in_yaml_is_never_run(name, command, tmp_path, capsys):
    sprung = tmp_path / "sprung"
    harm = f"output_dir: !!python/object/apply:os.system ['touch {sprung}']\n"
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text(f"settings: {{}}\nconfig: {{}}\n{harm}")
    (tmp_path / "harm.yaml").write_text(harm)
    run = (
        [*command(tmp_path / "new"), f"--config={tmp_path / 'harm.yaml'}"]
        if name == "generate"
        else [name, str(folder)]
    )
    assert "python/object/apply:os.system" in refusal(capsys, run)
    assert not sprung.exists()
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("id", ["../escape", "/etc/passwd", "a/../../escape", "..", ""])
def test_ids_that_lead_out_of_the_run_folder_are_refused_before_any_work(id, command, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("datamodules.AvatarsDataModule.predict_ids", lambda _: ["a", id])
    monkeypatch.setattr(ImageClassifier, "forward", lambda *_: pytest.fail("an image is classified"))
    assert f"error: id {id!r} cannot name a file" in refusal(capsys, command(tmp_path / "run"))
    assert not list(tmp_path.iterdir())
