"""Record files: power cuts, full disks, and lines of other runs."""

import errno
import os
import resource

import pytest

from ace.record import Record, append_record, cut_half_written, read_records

HASH = "0123456789abcdef"


def record(id: str, **changes) -> Record:
    return Record(**{"id": id, "seed": 0, "status": "flipped", "flipped": True, "l1": 0.25, **changes})


def ids(log) -> list[str]:
    return [record.id for record, _ in read_records(log, HASH)]


@pytest.fixture
def log(tmp_path):
    """A file of two records."""
    path = tmp_path / "records.rank0.jsonl"
    append_record(path, record("a"), HASH)
    append_record(path, record("b"), HASH)
    return path


def test_a_line_cut_at_any_byte_is_passed_over_and_redone(log, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: None)  # for speed
    whole = log.read_bytes()
    first = whole.index(b"\n") + 1
    for size in range(first, len(whole)):
        log.write_bytes(whole[:size])
        assert ids(log) == ["a"], size
        cut_half_written(log)
        assert log.read_bytes() == whole[:first], size
        append_record(log, record("b"), HASH)
        assert ids(log) == ["a", "b"], size


@pytest.mark.parametrize("end", [b"", b"\n"])
def test_zeros_from_any_byte_of_the_last_line_are_passed_over_and_cut_off(log, end):
    whole = log.read_bytes()
    first = whole.index(b"\n") + 1
    for size in range(first, len(whole) - 1):
        for line in (
            whole[:size] + b"\0" * (len(whole) - 1 - size),
            whole[:first] + b"\0" * (size + 1 - first) + whole[size + 1 : -1],
        ):
            log.write_bytes(line + end)
            assert ids(log) == ["a"], size
            cut_half_written(log)
            assert log.read_bytes() == whole[:first], size


def test_an_only_line_that_is_cut_leaves_an_empty_file(tmp_path):
    path = tmp_path / "records.rank0.jsonl"
    path.write_bytes(b'{"id": "a", "see')
    cut_half_written(path)
    assert path.read_bytes() == b""
    assert ids(path) == []


@pytest.mark.parametrize("room", [0, 1, 100])
def test_a_disk_that_is_full_in_the_middle_of_a_line_leaves_no_part_of_it(log, room):
    before = log.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + room, hard))
    try:
        with pytest.raises(OSError, match="too large"):
            append_record(log, record("c"), HASH)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert log.read_bytes() == before
    append_record(log, record("c"), HASH)
    assert ids(log) == ["a", "b", "c"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_line_that_does_not_reach_the_disk_is_taken_back(log, monkeypatch, error):
    def fail(_):
        raise error

    before = log.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(type(error)):
            append_record(log, record("c"), HASH)
    assert log.read_bytes() == before


def test_lines_of_other_settings_are_refused_and_lines_without_any_accepted(log):
    other = "f" * 16
    append_record(log, record("c"), other)
    with pytest.raises(ValueError, match=r"records\.rank0\.jsonl: record 'c' is of a run with other settings") as error:
        ids(log)
    assert other in str(error.value)
    assert HASH in str(error.value)
    assert "delete the line, and its image is redone" in str(error.value)
    log.write_bytes(log.read_bytes().replace(f', "settings": "{other}"'.encode(), b""))
    assert ids(log) == ["a", "b", "c"]


def test_records_of_another_version_are_refused_by_name(log):
    log.write_bytes(log.read_bytes().replace(b'"l2"', b'"l3"'))
    with pytest.raises(ValueError, match=r"record 'a' is of another version: .*'l3'"):
        ids(log)


def test_a_record_reads_back_as_it_was(tmp_path):
    numbers = dict.fromkeys(("p_before", "p_attack", "p_after", "l2", "linf", "changed_area", "seconds"), 1 / 3)
    passes = ("iterations", "unet_forwards", "unet_backwards")
    counts = dict.fromkeys(("label", "prediction", "target", "peak_memory", *passes), 7)
    written = record("x.y-z_0", status="failed: é\n\"'", flipped=False, **numbers, **counts)
    append_record(tmp_path / "log", written, HASH)
    [(found, _)] = read_records(tmp_path / "log", HASH)
    assert found == written
