"""The lock of a run folder: two runs that write into one folder at a time are refused."""

import errno
import getpass
import json
import os
import platform
import shlex
import sys
import time
import warnings
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Self

from ace.files import make_folder, writing

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
_COMMAND_LENGTH = 500


class RunLockedError(RuntimeError):
    """Another run is writing into the folder."""


class RunLock:
    """Holds a run folder for this process, from `acquire` to `release` or in a `with` block.

    In a distributed run the process of rank 0 holds it for all. The system frees the lock when that process ends,
    however it ends: nothing needs clearing up after a killed run. Child processes do not hold on to it. Where the
    system or the file system has no locks, there is a warning and no lock.

    Args:
        folder: the run folder, made if absent.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._path = self.folder / ".lock"
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Take the lock, at once or not at all.

        Raises:
            RunLockedError: another run holds it; the message names that process.
            ValueError: the folder is a file.
            WriteError: the folder cannot be written.
        """
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"{self.folder} is a file: give another output folder")
        with writing(self._path):
            make_folder(self.folder)
            if fcntl is None:
                self._warn("this system has no file locks")
                return
            while not self._try():
                pass

    def release(self) -> None:
        """Give the lock back; nothing happens where it is not held."""
        if self._descriptor is None:
            return
        with suppress(OSError):  # the file may stay, the lock goes with the descriptor
            if _names(self._path, self._descriptor):
                self._path.unlink()  # while it is held: a moment later it can be another run's
        self._drop()

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def _try(self) -> bool:
        """Take the lock; false where its last owner removed the file after it was opened here."""
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        with ExitStack() as stack:
            stack.callback(os.close, descriptor)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RunLockedError(
                    f"{self.folder} is in use by {_owner(descriptor)}: wait until it ends, stop it, or give another "
                    "output folder"
                ) from None
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    raise
                self._path.unlink(missing_ok=True)
                self._warn(f"this file system has no locks ({error.strerror})")
                return True
            if not _names(self._path, descriptor):
                return False
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, _this_process(), 0)
            stack.pop_all()
        self._descriptor = descriptor
        _held.add(self)
        return True

    def _drop(self) -> None:
        os.close(self._descriptor)
        self._descriptor = None
        _held.discard(self)

    def _warn(self, reason: str) -> None:
        warnings.warn(f"{self.folder} is not locked, {reason}: start no second run there", stacklevel=2)


_held: set[RunLock] = set()


def _drop_in_child() -> None:
    """Close what a fork has copied: a data loading worker that outlives a killed run would keep the lock."""
    for lock in list(_held):
        lock._drop()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_drop_in_child)


def _names(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _this_process() -> bytes:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # in a container, an id can have no name
        user = str(os.getuid())
    values = {
        "pid": os.getpid(),
        "host": platform.node(),
        "user": user,
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        "command": shlex.join(sys.argv)[:_COMMAND_LENGTH],
    }
    return json.dumps(values).encode()


def _owner(descriptor: int) -> str:
    try:
        owner = json.loads(os.pread(descriptor, 1 << 16, 0))
        return "process {pid} on {host} (user {user}, since {since}: {command})".format(**owner)
    except (ValueError, TypeError, KeyError):  # it has the lock and has not signed yet
        return "another run"
