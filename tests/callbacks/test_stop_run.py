import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from torch.distributed import HashStore

from ace.explanation import Explanation
from ace.record import Record
from ace.run_store import RunStore
from callbacks import stop_run
from callbacks.counterfactual_writer import CounterfactualWriter
from callbacks.stop_run import StopRun
from callbacks.stop_signals import StopSignals

DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(60)"
WILLING = "import time; print(flush=True); time.sleep(60)"
FAILING = "print(flush=True); raise SystemExit(3)"


@pytest.fixture
def trainer():
    strategy = SimpleNamespace(launcher=None)
    return SimpleNamespace(strategy=strategy, world_size=1, global_rank=0)


@pytest.fixture
def pool():
    return SimpleNamespace(listeners=[])


@pytest.fixture
def before():
    """The handlers of signals that the run finds."""
    return handlers()


@pytest.fixture
def begin(before, trainer, pool, tmp_path):
    """Sets the callback to work in a run of which one image of three is done."""
    store = RunStore.create(tmp_path / "run", {}, {})
    store.add(Record(id="a", seed=0, status="not_flipped"), {})
    callback = StopRun(CounterfactualWriter(store, seed=0), 3)

    def make():
        callback.on_predict_start(trainer, SimpleNamespace(explainer=SimpleNamespace(pool=pool)))
        return callback

    yield make
    for number, handler in zip((signal.SIGTERM, signal.SIGINT), before, strict=True):
        signal.signal(number, handler)


@pytest.fixture
def stop(begin):
    """The callback at work."""
    return begin()


@pytest.fixture
def launch(trainer):
    """Starts a process as Lightning's launcher does; it is gone after the test."""
    processes = []
    trainer.strategy.launcher = SimpleNamespace(procs=[])

    def start(code):
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
        process.stdout.readline()
        processes.append(process)
        trainer.strategy.launcher.procs.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


class Others:
    """A process that arrives after some looks at who has."""

    def __init__(self, store):
        self.store, self.looks, self.heard, self.met = store, 2, False, False

    def sleep(self, _):
        self.heard = isinstance(getattr(signal.getsignal(signal.SIGTERM), "__self__", None), StopSignals)
        self.looks -= 1
        if self.looks == 0:
            self.store.add(stop_run.ARRIVED, 1)

    def meet(self):
        assert self.store.add(stop_run.ARRIVED, 0) % 2 == 0
        self.met = True


@pytest.fixture
def others(trainer, monkeypatch):
    others = Others(HashStore())
    trainer.world_size, trainer.strategy.barrier = 2, others.meet
    monkeypatch.setattr("callbacks.stop_run.distributed_c10d._get_default_store", lambda: others.store)
    monkeypatch.setattr(time, "sleep", others.sleep)
    return others


def handlers():
    return signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)


def told(number):
    os.kill(os.getpid(), number)


@pytest.mark.usefixtures("stop")
def test_an_iteration_after_which_nobody_was_told_to_stop_is_followed_by_the_next(pool):
    [listener] = pool.listeners
    listener()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_stops_after_the_iteration_in_hand_and_says_how_to_go_on(number, stop, trainer, pool, caplog):
    told(number)
    with caplog.at_level("INFO"), pytest.raises(SystemExit) as exit:
        pool.listeners[0]()
    assert exit.value.code == 128 + number
    assert "Stopped with 1 of 3 images done: the same command goes on from there." in caplog.text
    with pytest.raises(SystemExit):
        stop.on_predict_batch_start(trainer, None, None, 1)


def test_what_is_finished_is_written_and_counted_before_it_stops(stop, pool, caplog, monkeypatch):
    add = RunStore.add
    monkeypatch.setattr(RunStore, "add", lambda *arguments: time.sleep(0.1) or add(*arguments))
    finished = [Explanation(name, None, "skipped: why") for name in ("b", "c")]
    stop.writer.on_predict_batch_end(None, None, finished, None, 0)
    told(signal.SIGTERM)
    with caplog.at_level("INFO"), pytest.raises(SystemExit):
        pool.listeners[0]()
    assert "Stopped with 3 of 3 images done" in caplog.text


def test_the_handlers_are_put_back_after_the_wait(before, stop, trainer, others):
    assert handlers() != before
    stop.on_predict_end(trainer, None)
    assert others.heard
    assert handlers() == before


def test_after_a_signal_no_handler_of_lightning_comes_back(stop, trainer):
    told(signal.SIGTERM)
    stop.on_exception(trainer, None, SystemExit(143))
    assert handlers() == (signal.SIG_DFL, signal.SIG_DFL)


def test_after_an_error_the_handlers_are_put_back(before, stop, trainer):
    stop.on_exception(trainer, None, OSError())
    assert handlers() == before


def test_a_single_process_waits_for_nobody(before, stop, trainer):
    stop.on_predict_end(trainer, None)
    assert handlers() == before


def test_processes_that_it_has_started_are_told_and_off_the_list_that_lightning_watches(trainer, pool, launch, begin):
    processes = [launch(WILLING), launch(WILLING)]
    begin()
    told(signal.SIGINT)
    with pytest.raises(SystemExit):
        pool.listeners[0]()
    assert [process.returncode for process in processes] == [-signal.SIGTERM] * 2
    assert trainer.strategy.launcher.procs == []


@pytest.mark.parametrize("told_too", [True, False])
def test_it_stops_with_a_process_that_has_ended_early(told_too, trainer, pool, launch, begin, caplog):
    ended, other = launch(FAILING), launch(WILLING)
    begin()
    ended.wait()
    assert trainer.strategy.launcher.procs == [], "Lightning would kill this one"
    if told_too:
        told(signal.SIGINT)
    with caplog.at_level("INFO"), pytest.raises(SystemExit) as exit:
        pool.listeners[0]()
    assert exit.value.code == (130 if told_too else 1)
    why = "" if told_too else ", since another process has failed (exit code 3),"
    assert f"Stopped{why} with 1 of 3 images done: the same command goes on from there." in caplog.text
    assert other.returncode == -signal.SIGTERM


def test_a_process_that_has_ended_well_stops_nothing(pool, launch, begin):
    process = launch("print()")
    begin()
    process.wait()
    pool.listeners[0]()


@pytest.mark.parametrize(("world_size", "launches", "fatal"), [(1, False, True), (2, True, True), (2, False, False)])
def test_a_second_sigterm_is_fatal_unless_another_process_passes_it_on(
    world_size, launches, fatal, trainer, launch, begin
):
    trainer.world_size = world_size
    if launches:
        launch(WILLING)
    begin()
    told(signal.SIGINT)
    assert [handler == signal.SIG_DFL for handler in handlers()] == [fatal, True]


def test_a_process_that_does_not_stop_is_killed(pool, launch, begin, monkeypatch):
    monkeypatch.setattr(stop_run, "WAIT_FOR_OTHERS", 0.2)
    process = launch(DEAF)
    begin()
    told(signal.SIGTERM)
    with pytest.raises(SystemExit) as exit:
        pool.listeners[0]()
    assert exit.value.code == 143
    assert process.returncode == -signal.SIGKILL


@pytest.mark.usefixtures("stop")
@pytest.mark.parametrize(("rank", "stops"), [(0, False), (1, True)])
def test_a_process_stops_without_the_one_that_started_it_unless_it_is_the_first(
    rank, stops, trainer, pool, monkeypatch
):
    trainer.global_rank = rank
    pool.listeners[0]()
    monkeypatch.setattr("os.getppid", lambda: 1)
    if stops:
        with pytest.raises(SystemExit) as exit:
            pool.listeners[0]()
        assert exit.value.code == 143
    else:
        pool.listeners[0]()


def test_it_waits_for_the_others_in_every_run(stop, trainer, others):
    for _ in range(2):
        others.looks, others.met = 2, False
        stop.on_predict_end(trainer, None)
        assert others.met
        assert others.looks == 0


def test_while_it_waits_for_the_others_it_can_be_told_to_stop(begin, trainer, others, launch, monkeypatch):
    process = launch(WILLING)
    stop = begin()
    signals = [signal.SIGTERM]
    monkeypatch.setattr(time, "sleep", lambda _: told(signals.pop()) if signals else None)
    with pytest.raises(SystemExit) as exit:
        stop.on_predict_end(trainer, None)
    assert exit.value.code == 143
    assert process.returncode == -signal.SIGTERM
    assert not others.met
