"""The lock of a run folder: one run at a time, and nothing to clear up after a killed one."""

import errno
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import time

import pytest

import ace.run_lock
from ace.files import WriteError
from ace.run_lock import RunLock, RunLockedError

FORK = multiprocessing.get_context("fork")


@pytest.fixture
def run(tmp_path):
    return tmp_path / "outputs" / "run"


def is_free(folder) -> bool:
    try:
        with RunLock(folder):
            return True
    except RunLockedError:
        return False


def start(function, *arguments):
    process = FORK.Process(target=function, args=arguments)
    process.start()
    return process


def test_a_second_run_is_refused_and_told_who_is_there(run, monkeypatch):
    monkeypatch.setattr("sys.argv", ["explain.py", "generate", "--output_dir", "my run"])
    with RunLock(run):
        with pytest.raises(RunLockedError) as refusal:
            RunLock(run).acquire()
        message = str(refusal.value)
        assert message.startswith(f"{run} is in use by process {os.getpid()} on {os.uname().nodename} (user ")
        assert "explain.py generate --output_dir 'my run'" in message
        assert "wait until it ends, stop it, or give another output folder" in message
        assert not is_free(run), "a refusal leaves the lock where it is"
    assert is_free(run)


def test_the_folder_is_made_and_nothing_stays_in_it(run):
    lock = RunLock(run)
    lock.acquire()
    assert [path.name for path in run.iterdir()] == [".lock"]
    lock.release()
    lock.release()
    assert list(run.iterdir()) == []


def test_an_error_in_the_run_frees_the_folder(run):
    with pytest.raises(MemoryError), RunLock(run):
        raise MemoryError
    assert is_free(run)


def sleep_as_worker(pipe):
    pipe.send(os.getpid())
    time.sleep(60)


def hold(folder, child, pipe):
    lock = RunLock(folder)
    lock.acquire()
    if child == "fork":  # as a data loading worker
        start(sleep_as_worker, pipe)
    else:  # as a process of another rank, or a compiler
        pipe.send(subprocess.Popen(["sleep", "60"], close_fds=False).pid)
    time.sleep(60)


@pytest.mark.parametrize("child", ["fork", "exec"])
def test_a_killed_run_frees_the_folder_though_its_children_live_on(run, child):
    here, there = FORK.Pipe()
    owner = start(hold, run, child, there)
    worker = None
    try:
        assert here.poll(20)
        worker = here.recv()
        assert not is_free(run)
        owner.kill()
        owner.join()
        os.kill(worker, 0)
        assert json.loads((run / ".lock").read_text())["pid"] == owner.pid
        assert is_free(run)
        assert list(run.iterdir()) == []
    finally:
        owner.kill()
        if worker is not None:
            os.kill(worker, signal.SIGKILL)


def test_a_forked_child_cannot_release_the_lock_of_its_parent(run):
    with RunLock(run) as lock:
        child = start(lock.release)
        child.join()
        assert child.exitcode == 0
        assert not is_free(run)
        assert (run / ".lock").exists()


def test_the_lock_file_of_another_run_is_left_alone(run):
    """Somebody removed the file of the first run by hand, and a second one began."""
    first, second = RunLock(run), RunLock(run)
    first.acquire()
    (run / ".lock").unlink()
    second.acquire()
    first.release()
    assert not is_free(run)
    second.release()
    assert is_free(run)


def test_a_run_folder_that_is_gone_is_no_error_at_the_end(run):
    with RunLock(run):
        shutil.rmtree(run)
    assert is_free(run)


def contend(folder, counter, rounds):
    for _ in range(rounds):
        while True:
            try:
                with RunLock(folder):
                    value = int(counter.read_text())
                    time.sleep(1e-4)
                    counter.write_text(str(value + 1))
                break
            except RunLockedError:
                time.sleep(1e-4)


def test_never_do_two_processes_hold_it(run, tmp_path):
    counter = tmp_path / "counter"
    counter.write_text("0")
    processes = [start(contend, run, counter, 100) for _ in range(4)]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert counter.read_text() == "400"


@pytest.mark.parametrize("words", [b"", b"\0\0", b"[]", b'{"pid": 1}'])
def test_an_owner_that_has_not_signed_is_another_run(run, words):
    with RunLock(run):
        (run / ".lock").write_bytes(words)
        with pytest.raises(RunLockedError, match="is in use by another run: wait"):
            RunLock(run).acquire()


def test_a_user_without_a_name_is_a_number(run, monkeypatch):
    def unknown():
        raise KeyError("getpwuid(): uid not found: 4711")

    monkeypatch.setattr("getpass.getuser", unknown)
    with RunLock(run):
        assert json.loads((run / ".lock").read_text())["user"] == str(os.getuid())


def no_locks(*_):
    raise OSError(errno.ENOLCK, "No locks available")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("fcntl.flock", no_locks), "this file system has no locks"),
        (("ace.run_lock.fcntl", None), "this system has no"),
    ],
)
def test_without_locks_there_is_a_warning(run, monkeypatch, change, reason):
    monkeypatch.setattr(*change)
    with pytest.warns(UserWarning, match=f"{reason}.*start no second run there"), RunLock(run):
        pass
    assert list(run.iterdir()) == []


def test_other_errors_of_the_system_name_the_file_and_the_remedy(run, monkeypatch):
    def read_only(*_):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(ace.run_lock.os, "open", read_only)
    with pytest.raises(WriteError, match=r"run/\.lock cannot be written \(Read-only file system\): make the"):
        RunLock(run).acquire()


def test_a_file_is_no_run_folder(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="file is a file: give another output folder"):
        RunLock(tmp_path / "file").acquire()


def test_a_link_in_the_place_of_the_lock_is_not_followed(run, tmp_path):
    (tmp_path / "precious").write_text("data")
    run.mkdir(parents=True)
    (run / ".lock").symlink_to(tmp_path / "precious")
    with pytest.raises(WriteError, match="remove it, it is a link"):
        RunLock(run).acquire()
    assert (tmp_path / "precious").read_text() == "data"
