"""The run folder: refusal, resume, records and merge."""

import csv
import json

import numpy as np
import pytest
import torch
import yaml

import ace.run_store
from ace.explanation import Explanation
from ace.images import load_png
from ace.run_store import Record, RunStore, flatten

SETTINGS = {
    "seed": 0,
    "attack": {"steps": 25, "step_size": 1e-5},
    "decision": {"class_names": ["not smiling", "smiling"]},
}
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
    assert "attack.norm: '(absent)' there, 'l2' now" in message
    assert "another output folder" in message
    assert "step_size" not in message
    assert "seed" not in message


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
    assert Explanation("a", torch.zeros(3, 2, 2), status).attempted is attempted


def test_flatten_gives_dotted_keys():
    nested = {"a": {"b": 1, "c": {"d": [2]}}, "e": {}}
    assert flatten(nested) == {"a.b": 1, "a.c.d": [2], "e": {}}
