"""Files that appear whole, and errors of the system."""

import errno
import os

import pytest

from ace.files import WriteError, make_folder, write_whole, writing


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_whole(b"old", path)

    def power_cut(*_):
        raise OSError("power cut")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", power_cut)
        with pytest.raises(OSError, match="power cut"):
            write_whole(b"new", path)
    assert path.read_bytes() == b"old"
    write_whole(b"new", path)
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "free space on this disk"),
        (errno.EDQUOT, "free space in your quota"),
        (errno.EROFS, "make the folder writable"),
        (errno.EACCES, "make the folder writable"),
        (errno.EIO, "mend what is wrong there"),
    ],
)
def test_an_error_of_the_system_names_the_file_and_the_remedy(number, remedy, tmp_path):
    with pytest.raises(WriteError) as error, writing(tmp_path / "outer"), writing(tmp_path / "file"):
        raise OSError(number, os.strerror(number))
    assert str(error.value) == (
        f"{tmp_path / 'file'} cannot be written ({os.strerror(number)}): {remedy}, then run the same command again"
    )
    assert error.value.errno == number
    assert isinstance(error.value, OSError)


def test_folders_are_made_with_those_above(tmp_path):
    make_folder(tmp_path / "a" / "b")
    make_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        make_folder(tmp_path / "file" / "a")
