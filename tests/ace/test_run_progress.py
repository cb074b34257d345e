import pytest

from ace import run_progress
from ace.record import Record
from ace.run_progress import RunProgress
from ace.run_store import RunStore

NUMBERS = {"l1": 0.2, "l2": 1.5, "linf": 0.5, "changed_area": 0.25, "iterations": 10}


@pytest.fixture
def store(tmp_path):
    """Makes the store of a process."""
    return lambda rank=0: RunStore.create(tmp_path / "run", {}, {}, rank)


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    """The time, to be set."""
    now = [100.0]
    monkeypatch.setattr(run_progress.time, "monotonic", lambda: now[0])
    return now


def add(store, *names, status="flipped", **numbers):
    for name in names:
        store.add(Record(id=name, seed=0, status=status, flipped=status == "flipped", **numbers), {})


def test_it_counts_what_all_processes_finish_from_now_on(store, clock):
    add(store(0), "before", **NUMBERS)
    add(store(1), "earlier", status="failed: why")
    progress = RunProgress(store(), 6)
    progress.update(at_once=True)
    assert (progress.done, progress.flip_rate, progress.total) == (0, None, 6)
    assert progress.metrics() == {"progress/images": 2, "progress/images_per_second": 0}

    add(store(0), "a", **NUMBERS)
    add(store(1), "b", status="skipped: why")
    add(store(2), "c", status="not_flipped", **(NUMBERS | {"l1": 0.4, "iterations": 30}))
    add(store(1), "d", status="failed: why")
    clock[0] += 8
    progress.update(at_once=True)
    assert (progress.done, progress.attempted, progress.flipped) == (4, 3, 1)
    assert progress.metrics() == pytest.approx(
        {
            "progress/images": 6,
            "progress/images_per_second": 0.5,
            "progress/flip_rate": 1 / 3,
            "progress/l1": 0.3,
            "progress/l2": 1.5,
            "progress/linf": 0.5,
            "progress/changed_area": 0.25,
            "progress/iterations": 20,
        }
    )
    progress.update(at_once=True)
    assert progress.done == 4, "nothing is counted twice"


def test_a_line_that_is_being_written_is_counted_when_it_is_whole(store):
    progress = RunProgress(store(), 2)
    add(store(), "a")
    [log] = store().logs()
    line = log.read_bytes()
    log.write_bytes(line + line[:20])
    progress.update(at_once=True)
    assert progress.done == 1
    log.write_bytes(line + line)
    progress.update(at_once=True)
    assert progress.done == 2


def test_what_a_kill_left_half_written_is_cut_off_and_not_counted(store):
    add(store(), "a")
    [log] = store().logs()
    log.write_bytes(log.read_bytes() + b'{"id": "half')
    progress = RunProgress(store(), 1)
    add(store(), "b")
    progress.update(at_once=True)
    assert progress.done == 1


def test_it_looks_once_a_second_unless_it_is_told_to(store, clock):
    progress = RunProgress(store(), 2)
    progress.update()
    add(store(), "a")
    clock[0] += 0.5
    progress.update()
    assert progress.done == 0
    clock[0] += 0.6
    progress.update()
    assert progress.done == 1
