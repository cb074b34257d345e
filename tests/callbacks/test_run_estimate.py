from types import SimpleNamespace

import pytest
import torch

from callbacks import run_estimate
from callbacks.run_estimate import RunEstimate, peak_memory


@pytest.fixture
def clock(monkeypatch):
    """Times that the callback reads, one after the other; half a gibibyte of memory."""
    times = []
    monkeypatch.setattr(run_estimate.time, "perf_counter", lambda: times.pop(0))
    monkeypatch.setattr(run_estimate, "peak_memory", lambda _: 2**29)
    return times


@pytest.fixture
def start():
    """Starts a prediction; gives the callback and its listener."""

    def make(images=10, slots=4, iterations=25, dry_run=False, processes=1):
        pool = SimpleNamespace(listeners=[], attack=SimpleNamespace(iterations=iterations))
        module = SimpleNamespace(explainer=SimpleNamespace(pool=pool, slots=slots), device=torch.device("cpu"))
        trainer = SimpleNamespace(predict_dataloaders=SimpleNamespace(dataset=range(images)), world_size=processes)
        callback = RunEstimate(dry_run)
        callback.on_predict_start(trainer, module)
        [listener] = pool.listeners
        return callback, listener

    return make


def said(caplog):
    return [record.getMessage() for record in caplog.records]


@pytest.fixture(autouse=True)
def _info(caplog):
    caplog.set_level("INFO")


def test_the_second_iteration_tells_how_long_all_will_take(start, clock, caplog):
    _, listener = start(images=10, slots=4, iterations=25)
    clock += [100.0, 102.0]
    listener()
    assert not said(caplog), "the first iteration also loads kernels"
    listener()
    assert said(caplog) == [
        "10 images for each device, 4 at a time: about 0:02:30 (up to 25 iterations of 2 s) and 0.5 GiB"
    ], "3 times 4 images, 25 iterations of 2 seconds each"


@pytest.mark.parametrize(
    ("images", "slots", "iterations", "seconds", "words"),
    [
        (1, 16, 50, 0.0123, "about 0:00:01 (up to 50 iterations of 0.012 s)"),
        (16, 16, 50, 3.0, "about 0:02:30 (up to 50 iterations of 3 s)"),
        (17, 16, 50, 3.0, "about 0:05:00 (up to 50 iterations of 3 s)"),
        (1_000_000, 8, 50, 12.5, "about 904 days, 5:23:20 (up to 50 iterations of 12 s)"),
    ],
)
def test_estimates_of_every_size_are_readable(images, slots, iterations, seconds, words, start, clock, caplog):
    _, listener = start(images, slots, iterations)
    clock += [0.0, seconds]
    listener(), listener()
    assert words in caplog.text


def test_processes_share_the_images(start, clock, caplog):
    _, listener = start(images=17, slots=4, iterations=10, processes=4)
    clock += [0.0, 1.0]
    listener(), listener()
    assert "5 images for each device, 4 at a time: about 0:00:20" in caplog.text


def test_it_speaks_once_and_lets_the_run_go_on(start, clock, caplog):
    callback, listener = start()
    clock += [0.0, 1.0]
    for _ in range(5):
        listener()
    callback.on_predict_end(None, None)
    assert len(said(caplog)) == 1


def test_a_dry_run_ends_there(start, clock, caplog):
    _, listener = start(dry_run=True)
    clock += [0.0, 1.0]
    listener()
    with pytest.raises(SystemExit) as exit:
        listener()
    assert exit.value.code == 0
    assert len(said(caplog)) == 1


@pytest.mark.parametrize("iterations", [0, 1])
def test_a_dry_run_without_a_second_iteration_says_so(iterations, start, clock, caplog):
    callback, listener = start(dry_run=True)
    clock += [0.0]
    for _ in range(iterations):
        listener()
    callback.on_predict_end(None, None)
    [text] = said(caplog)
    assert "there is nothing to time" in text


def test_the_memory_of_a_process_is_in_bytes():
    assert 2**27 < peak_memory(torch.device("cpu")) < 2**36, "torch alone takes more than 128 MiB"
