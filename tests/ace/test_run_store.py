"""The run folder: refusal, resume, records and merge."""

import csv
import errno
import json
import os
import resource
import stat
import subprocess
import sys

import numpy as np
import pytest
import yaml

import ace.run_store
from ace.files import WriteError
from ace.images import load_png
from ace.run_store import Record, RunStore

SETTINGS = {
    "seed": 0,
    "attack": {"steps": 25, "step_size": 1e-5},
    "decision": {"class_names": ["not smiling", "smiling"]},
}
WRITER = """
import os, sys, time
lines = sys.stdin.buffer.read()
log = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
for start in range(0, len(lines), 97):
    os.write(log, lines[start : start + 97])
    time.sleep(0.001)
"""
PICTURE = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)


def make(folder, rank=0, **changes) -> RunStore:
    return RunStore.create(folder, config={"trainer": {"devices": 1}}, settings=SETTINGS | changes, rank=rank)


def flipped(id: str, **changes) -> Record:
    return Record(**{"id": id, "seed": 0, "status": "flipped", "flipped": True, "l1": 0.25, **changes})


def files(folder) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_new_run_writes_its_configuration(tmp_path):
    make(tmp_path / "deep" / "run")
    content = yaml.safe_load((tmp_path / "deep" / "run" / "config.yaml").read_text())
    assert content["settings"] == SETTINGS
    assert content["config"] == {"trainer": {"devices": 1}}
    assert {"python", "torch", "diffusers", "lightning"} <= content["versions"].keys()
    assert len(content["settings_hash"]) == 64


def test_add_writes_files_and_a_record_that_read_back(tmp_path):
    store = make(tmp_path)
    mask = np.full((4, 4, 1), 255, np.uint8)
    store.add(flipped("a"), {"original": PICTURE, "mask": mask})
    assert files(tmp_path) == {
        "config.yaml",
        "records.rank0.jsonl",
        "images/original/a.png",
        "images/mask/a.png",
    }
    assert np.array_equal(load_png(store.image_path("original", "a")), PICTURE)
    assert np.array_equal(load_png(store.image_path("mask", "a")), mask)
    assert RunStore.open(tmp_path).records() == [flipped("a")]


def test_the_record_is_written_after_the_files(tmp_path, monkeypatch):
    store = make(tmp_path)

    def disk_full(*_):
        raise OSError("disk full")

    monkeypatch.setattr(ace.run_store, "save_png", disk_full)
    with pytest.raises(OSError, match="disk full"):
        store.add(flipped("a"), {"original": PICTURE})
    assert store.finished_ids() == set()


def test_records_name_the_settings_that_they_were_made_with(tmp_path):
    store, other = make(tmp_path / "run"), make(tmp_path / "other", seed=1)
    store.add(flipped("a"), {})
    other.add(flipped("b"), {})
    log = tmp_path / "run" / "records.rank0.jsonl"
    [line] = log.read_text().splitlines()
    assert (
        json.loads(line)["settings"]
        == yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["settings_hash"][:16]
    )
    (tmp_path / "run" / "records.rank1.jsonl").write_bytes((tmp_path / "other" / "records.rank0.jsonl").read_bytes())
    for read in (make(tmp_path / "run").finished_ids, store.records, store.merge):
        with pytest.raises(ValueError, match=r"records\.rank1\.jsonl: record 'b' is of a run with other settings"):
            read()


def test_records_of_older_runs_name_no_settings(tmp_path):
    store = make(tmp_path)
    (tmp_path / "records.rank0.jsonl").write_text('{"id": "a", "seed": 0, "status": "not_flipped"}\n')
    assert store.finished_ids() == {"a"}
    assert store.merge() == [Record(id="a", seed=0, status="not_flipped")]


def test_a_reader_beside_a_writer_sees_whole_records_only(tmp_path):
    store = make(tmp_path / "source")
    ids = [f"image-{index:03d}" for index in range(100)]
    for id in ids:
        store.add(flipped(id), {})
    make(tmp_path / "run")
    lines = (tmp_path / "source" / "records.rank0.jsonl").read_bytes()
    command = [sys.executable, "-c", WRITER, tmp_path / "run" / "records.rank0.jsonl"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE)
    process.stdin.write(lines)
    process.stdin.close()
    counts = {0}
    while process.poll() is None:
        found = [record.id for record in RunStore.open(tmp_path / "run").records()]
        assert found == ids[: len(found)]
        assert len(found) >= max(counts)
        counts.add(len(found))
    assert process.returncode == 0
    assert len(counts) > 3, "there was nothing to see in between"
    assert RunStore.open(tmp_path / "run").finished_ids() == set(ids)


# --- full and read-only disks


def no_space(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_disk_that_is_full_at_an_image_stops_with_the_remedy_and_the_run_goes_on_later(tmp_path):
    store = make(tmp_path)
    store.add(flipped("a"), {"original": PICTURE})
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(WriteError, match=r"images/original/b\.png cannot be written .*ulimit -f.*same command"):
            store.add(flipped("b"), {"original": noise})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert store.finished_ids() == make(tmp_path).finished_ids() == {"a"}
    assert not store.image_path("original", "b").exists()
    store.add(flipped("b"), {"original": noise})
    assert np.array_equal(load_png(store.image_path("original", "b")), noise)
    assert [path for path in files(tmp_path) if path.endswith(".tmp")] == []


def test_a_half_written_line_that_could_not_be_taken_back_is_cut_off_by_the_next(tmp_path, monkeypatch):
    store = make(tmp_path)
    store.add(flipped("a"), {})
    log = tmp_path / "records.rank0.jsonl"
    whole = log.read_bytes()

    def write_half(path, *_):
        path.write_bytes(whole + whole[:50])
        no_space()

    with monkeypatch.context() as patch:
        patch.setattr(ace.run_store, "append_record", write_half)
        with pytest.raises(WriteError, match=r"records\.rank0\.jsonl cannot be written \(No space left.*free space"):
            store.add(flipped("b"), {})
    assert store.finished_ids() == {"a"}
    store.add(flipped("b"), {})
    assert store.finished_ids() == {"a", "b"}
    assert log.read_bytes().startswith(whole)
    assert log.read_bytes().count(b"\n") == 2


@pytest.mark.parametrize("write", [RunStore.merge, lambda store: store.write_json("metrics.json", {})])
def test_what_cannot_be_replaced_stays_as_it_was(tmp_path, monkeypatch, write):
    store = make(tmp_path)
    store.add(flipped("a"), {})
    store.merge()
    store.write_json("metrics.json", {"n": 1})
    before = {name: (tmp_path / name).read_bytes() for name in files(tmp_path)}
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", no_space)
        with pytest.raises(WriteError, match="free space on this disk"):
            write(store)
    assert {name: (tmp_path / name).read_bytes() for name in before} == before
    write(store)
    assert files(tmp_path) == before.keys()


def test_a_run_that_cannot_be_begun_says_why(tmp_path, monkeypatch):
    def read_only(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("pathlib.Path.mkdir", read_only)
    with pytest.raises(WriteError, match=r"config\.yaml cannot be written \(Read-only.*make the folder writable"):
        make(tmp_path / "run")


def test_names_reach_the_disk_with_their_files(tmp_path, monkeypatch):
    synced, fsync = set(), os.fsync

    def note(descriptor):
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            synced.add(status.st_ino)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    make(tmp_path / "run").add(flipped("a"), {"original": PICTURE})
    for folder in ("", "run", "run/images", "run/images/original"):
        assert (tmp_path / folder).stat().st_ino in synced, folder
    synced.clear()
    make(tmp_path / "run").add(flipped("b"), {"original": PICTURE})
    assert synced == {(tmp_path / "run/images/original").stat().st_ino}


def test_a_file_system_that_cannot_flush_folders_will_do(tmp_path, monkeypatch):
    fsync = os.fsync

    def files_only(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", files_only)
    store = make(tmp_path)
    store.add(flipped("a"), {"original": PICTURE})
    assert store.finished_ids() == {"a"}


# --- links


@pytest.mark.parametrize("link", ["images", "images/original", "records.rank0.jsonl"])
@pytest.mark.parametrize("there", [True, False])
def test_links_out_of_the_run_folder_are_refused(tmp_path, link, there):
    store, outside = make(tmp_path / "run"), tmp_path / "outside"
    if there:
        outside.touch() if link.endswith("jsonl") else outside.mkdir()
    path = tmp_path / "run" / link
    path.parent.mkdir(exist_ok=True)
    path.symlink_to(outside)
    with pytest.raises(ValueError, match=rf"{link}.* leads out of the run folder, to {outside}.*: replace the link"):
        store.add(flipped("a"), {"original": PICTURE})
    assert outside.exists() is there
    assert files(outside) == set()
    path.unlink()
    assert store.finished_ids() == set()


@pytest.mark.parametrize("name", ["a.png", ".a.png.tmp"])
def test_a_link_in_the_place_of_a_file_is_replaced_and_not_followed(tmp_path, name):
    store, precious = make(tmp_path / "run"), tmp_path / "precious"
    precious.write_text("data")
    folder = store.image_path("original", "a").parent
    folder.mkdir(parents=True)
    (folder / name).symlink_to(precious)
    store.add(flipped("a"), {"original": PICTURE})
    assert precious.read_text() == "data"
    assert [path.name for path in folder.iterdir()] == ["a.png"]
    assert not (folder / "a.png").is_symlink()
    assert np.array_equal(load_png(folder / "a.png"), PICTURE)


def test_the_run_folder_itself_may_be_a_link(tmp_path):
    (tmp_path / "big disk").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "big disk")
    store = make(tmp_path / "run")
    store.add(flipped("a"), {"original": PICTURE})
    assert files(tmp_path / "big disk") == {"config.yaml", "records.rank0.jsonl", "images/original/a.png"}


# --- what an interruption leaves


@pytest.mark.parametrize("cut", [1, 30])
def test_a_half_written_line_is_cut_off_and_its_image_redone(tmp_path, cut):
    store = make(tmp_path)
    store.add(flipped("a"), {})
    store.add(flipped("b"), {})
    log = tmp_path / "records.rank0.jsonl"
    log.write_bytes(log.read_bytes()[:-cut])
    again = make(tmp_path)
    assert again.finished_ids() == {"a"}
    again.add(flipped("b", l1=0.5), {})
    again.add(flipped("c"), {})
    assert [json.loads(line)["id"] for line in log.read_text().splitlines()] == ["a", "b", "c"]
    assert [(record.id, record.l1) for record in again.merge()] == [("a", 0.25), ("b", 0.5), ("c", 0.25)]


def test_zeros_left_by_a_power_cut_are_cut_off(tmp_path):
    make(tmp_path).add(flipped("a"), {})
    log = tmp_path / "records.rank0.jsonl"
    log.write_bytes(log.read_bytes() + b"\0" * 40 + b"\n")
    again = make(tmp_path)
    again.add(flipped("b"), {})
    assert again.finished_ids() == {"a", "b"}
    assert b"\0" not in log.read_bytes()


def test_damage_before_the_last_line_is_reported(tmp_path):
    store = make(tmp_path)
    store.add(flipped("a"), {})
    log = tmp_path / "records.rank0.jsonl"
    log.write_bytes(b'{"id": \n' + log.read_bytes())
    with pytest.raises(ValueError, match=r"records\.rank0\.jsonl, line 1 is damaged"):
        store.records()


def test_other_settings_are_refused_and_every_differing_key_named(tmp_path):
    make(tmp_path)
    with pytest.raises(ValueError, match="other settings") as error:
        make(tmp_path, attack={"steps": 50, "step_size": 1e-5, "norm": "l2"})
    message = str(error.value)
    assert "attack.steps: 25 there, 50 now" in message
    assert "attack.norm: None there, 'l2' now" in message
    assert "another output folder" in message
    assert "step_size" not in message
    assert "seed" not in message


def test_a_setting_that_is_null_is_as_one_that_is_absent(tmp_path):
    make(tmp_path, attack={"steps": 25, "step_size": 1e-5, "norm": None}).add(flipped("a"), {})
    assert make(tmp_path).finished_ids() == {"a"}


def test_equal_settings_continue_whatever_the_container_type(tmp_path):
    make(tmp_path).add(flipped("a"), {})
    again = make(tmp_path, decision={"class_names": ("not smiling", "smiling")})
    assert again.finished_ids() == {"a"}


def test_a_folder_with_foreign_content_is_refused_and_left_alone(tmp_path):
    (tmp_path / "holiday.jpg").write_text("sun")
    with pytest.raises(ValueError, match=r"holiday\.jpg"):
        make(tmp_path)
    assert files(tmp_path) == {"holiday.jpg"}
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file"):
        make(tmp_path / "file")


def test_a_foreign_config_is_refused(tmp_path):
    (tmp_path / "config.yaml").write_text("trainer: {}\n")
    with pytest.raises(ValueError, match=r"not the config\.yaml of a run"):
        make(tmp_path)


def test_what_is_no_plain_value_is_named(tmp_path):
    with pytest.raises(TypeError, match=r"settings\.attack\.steps\[1\].*float64"):
        make(tmp_path / "run", attack={"steps": [1, np.float64(2)]})
    assert not (tmp_path / "run").exists()


def test_only_rank_zero_writes_the_configuration(tmp_path):
    make(tmp_path / "run", rank=1)
    assert not (tmp_path / "run").exists()
    make(tmp_path / "run")
    with pytest.raises(ValueError, match="seed: 0 there, 7 now"):
        make(tmp_path / "run", rank=1, seed=7)


def test_opening_what_is_no_run_says_what_to_give(tmp_path):
    with pytest.raises(FileNotFoundError, match="generate"):
        RunStore.open(tmp_path)


def test_ranks_merge_sorted_with_one_row_per_id_and_the_last_written_wins(tmp_path):
    first, second = make(tmp_path), make(tmp_path, rank=1)
    second.add(flipped("b", l1=0.1), {})
    second.add(flipped("a"), {})
    first.add(flipped("b", l1=0.9), {})
    first.add(Record(id="c", seed=0, status="failed: out of memory,\nor so"), {})
    assert first.finished_ids() == {"a", "b", "c"}
    merged = first.merge()
    assert [(record.id, record.l1) for record in merged] == [("a", 0.25), ("b", 0.9), ("c", None)]
    with (tmp_path / "records.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == ["a", "b", "c"]
    assert float(rows[1]["l1"]) == 0.9
    assert rows[2]["l1"] == ""
    assert rows[2]["status"] == merged[2].status
    assert files(tmp_path) == {"config.yaml", "records.csv", "records.rank0.jsonl", "records.rank1.jsonl"}


@pytest.mark.parametrize("id", ["../a", "a/b", "a\\b", "", ".hidden", "a..b", "/etc", "a b", "a\n", "é", "a" * 201])
def test_unsafe_ids_cannot_name_files(tmp_path, id):
    store = make(tmp_path)
    with pytest.raises(ValueError, match="cannot name a file"):
        flipped(id)
    with pytest.raises(ValueError, match="cannot name a file"):
        store.image_path("original", id)
    with pytest.raises(ValueError, match="cannot name a file"):
        store.write_json(id, {})


def test_an_unsafe_id_in_a_record_file_is_refused(tmp_path):
    store = make(tmp_path)
    store.add(flipped("a"), {})
    log = tmp_path / "records.rank0.jsonl"
    log.write_text(log.read_text().replace('"a"', '"../a"'))
    with pytest.raises(ValueError, match="cannot name a file"):
        store.records()


def test_an_unknown_kind_of_image_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"'\.\./original' is unknown"):
        make(tmp_path).add(flipped("a"), {"../original": PICTURE})


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"l2": float("nan")}, ValueError, "l2 is nan"),
        ({"l1": np.float32(1)}, TypeError, "l1 must be a plain value, got float32"),
        ({"status": "done"}, ValueError, "'done'"),
        ({"status": "failed: "}, ValueError, "failed"),
        ({"flipped": False}, ValueError, "flipped=False"),
    ],
)
def test_records_hold_sound_plain_values(changes, error, message):
    with pytest.raises(error, match=message):
        flipped("a", **changes)


def test_json_files_hold_null_for_what_is_not_finite(tmp_path):
    path = make(tmp_path).write_json("metrics.json", {"fid": float("nan"), "flip": [float("inf"), 0.5]})
    assert json.loads(path.read_text()) == {"fid": None, "flip": [None, 0.5]}
    assert files(tmp_path) == {"config.yaml", "metrics.json"}


def test_classes_are_named_by_the_settings_or_by_number(tmp_path):
    store = make(tmp_path / "named")
    assert [store.class_name(index) for index in (0, 1, 2, -1, None)] == [
        "not smiling",
        "smiling",
        "2",
        "-1",
        "?",
    ]
    assert make(tmp_path / "bare", decision=None).class_name(0) == "0"


def test_targets_have_names_of_their_own_or_those_of_the_classes(tmp_path):
    store = make(tmp_path / "plain")
    assert [store.target_name(index) for index in (1, 2, None)] == ["smiling", "2", "?"]
    names = {"class_names": ["a", "b"], "target_names": ["not a", "not b"]}
    store = make(tmp_path / "untargeted", decision=names)
    assert [store.target_name(index) for index in (1, 2, None)] == ["not b", "2", "?"]
    assert store.class_name(1) == "b"
    assert store.direction(flipped("x", prediction=1, target=1)) == "b -> not b"
    assert store.direction(Record(id="y", seed=0, status="skipped: why", prediction=0)) == "a -> ?"


@pytest.mark.parametrize(
    ("status", "explained", "attempted"),
    [
        ("flipped", True, True),
        ("not_flipped", True, True),
        ("failed: why", False, True),
        ("skipped: why", False, False),
    ],
)
def test_a_status_says_whether_an_image_was_explained_and_attempted(status, explained, attempted):
    record = Record(id="a", seed=0, status=status, flipped=status == "flipped")
    assert (record.explained, record.attempted) == (explained, attempted)
