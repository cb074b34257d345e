"""Files that appear whole, stay through a power cut, and name a remedy where they cannot be written."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_REMEDIES = {
    errno.ENOSPC: "free space on this disk",
    errno.EDQUOT: "free space in your quota",
    errno.EFBIG: "raise the limit of file sizes, see ulimit -f",
    errno.ELOOP: "remove it, it is a link",
    errno.EROFS: "make the folder writable",
    errno.EACCES: "make the folder writable",
    errno.EPERM: "make the folder writable",
}


class WriteError(OSError):
    """A file of the run could not be written, and what to do about it."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Name the file and a remedy where the system refuses to write.

    Raises:
        WriteError: in place of any other `OSError` of the block, with its `errno`.
    """
    try:
        yield
    except WriteError:
        raise
    except OSError as error:
        remedy = _REMEDIES.get(error.errno, "mend what is wrong there")
        reason = error.strerror or str(error)
        explained = WriteError(f"{path} cannot be written ({reason}): {remedy}, then run the same command again")
        explained.errno = error.errno
        raise explained from error


def write_whole(data: bytes, path: str | Path) -> None:
    """Write a file under a temporary name in its own folder, flush it to the disk, and rename it.

    The temporary name is always the same, so what an interrupted write leaves goes when the file is redone.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.unlink(missing_ok=True)  # made anew: a link of this name would be followed
    with temporary.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync_folder(path.parent)


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it, so that a power cut does not undo it."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Flush the names in a folder to the disk: until then a power cut can undo a renaming or a new file."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:  # Windows opens no folders
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):  # not every file system can
            raise
    finally:
        os.close(descriptor)


def check_inside(path: Path, folder: Path) -> None:
    """Refuse a path that leads out of the run folder by a link.

    Raises:
        ValueError: it does.
    """
    target = path.resolve()
    if not target.is_relative_to(folder.resolve()):
        raise ValueError(
            f"{path} leads out of the run folder, to {target}: replace the link by what it stands for; "
            "the run folder itself may be a link to another disk"
        )
