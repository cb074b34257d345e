import json
import struct
from unittest.mock import Mock

import numpy as np
import pytest
import wandb
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from wandb.proto.wandb_internal_pb2 import Record as WandbRecord

from ace.evaluation import evaluate
from ace.images import load_png
from ace.judges import Judges
from ace.metrics.closeness import l1
from ace.record import Record
from ace.report import write_gallery
from ace.run_store import RunStore
from callbacks.wandb_gallery import log_run

COLUMNS = [
    "id", "status", "prediction", "target", "original", "pre_explanation", "counterfactual", "mask",
    "p_before", "p_attack", "p_after", "l1", "l2", "linf", "changed_area", "iterations",
]  # fmt: skip


def history(path):
    """The values logged to an offline run, step by step: its file is a LevelDB log of protocol buffers."""
    data, position, message, rows = path.read_bytes(), 7, b"", []
    while position + 7 <= len(data):
        if (left := 32768 - position % 32768) < 7:
            position += left
            continue
        _, size, kind = struct.unpack_from("<IHB", data, position)
        message += data[position + 7 : position + 7 + size]
        position += 7 + size
        if kind in (1, 4):  # a whole message, or the last part of one
            record, message = WandbRecord.FromString(message), b""
            if record.WhichOneof("record_type") == "history":
                items = record.history.item
                rows.append({".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items})
    return rows


def fill(store, count):
    """Finished images; each one's pictures have levels of their own."""
    numbers = {"p_before": 0.1, "p_attack": 0.8, "l1": 0.02, "l2": 0.5, "linf": 0.25, "changed_area": 0.125}
    costs = {"iterations": 3, "unet_forwards": 9, "unet_backwards": 6, "seconds": 1.5}
    for index in range(count):
        record = Record(
            id=f"image-{index}", prediction=index % 2, target=1 - index % 2, flipped=index > 0,
            p_after=index / 8, seed=0, status="flipped" if index else "not_flipped", **numbers, **costs,
        )  # fmt: skip
        original = np.full((8, 8, 3), 60 + index, np.uint8)
        change = np.zeros_like(original)
        change[2:4] = 100
        images = {
            "original": original,
            "pre_explanation": original + change // 2,
            "counterfactual": original + change,
            "mask": np.where(change[..., :1] > 0, 255, 0).astype(np.uint8),
        }
        store.add(record, images)
    store.add(Record(id="left-out", seed=0, status="skipped: already so"), {"original": np.zeros((8, 8, 3), np.uint8)})


@pytest.fixture
def make_store(tmp_path):
    def make(count):
        store = RunStore.create(tmp_path / "run", {}, {"decision": {"class_names": ["no", "yes"]}})
        fill(store, count)
        return store

    return make


def test_a_run_is_shown_in_wandb(make_store, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "data"))
    store = make_store(3)
    metrics = evaluate(store)
    write_gallery(store)
    logger = WandbLogger(project="test", save_dir=tmp_path, offline=True)
    log_run([logger], store, metrics)
    wandb.finish()
    [folder] = (tmp_path / "wandb").glob("offline-run-*")

    [picture] = (folder / "files" / "media" / "images").glob("gallery*.png")
    shown = load_png(picture)
    assert np.array_equal(shown, load_png(store.folder / "gallery.png")), "clipped, scaled or black"
    assert shown.min() < 100 < shown.max()

    [table] = (folder / "files" / "media" / "table").glob("counterfactuals*.table.json")
    content = json.loads(table.read_text())
    assert content["columns"] == COLUMNS
    rows = [dict(zip(content["columns"], row, strict=True)) for row in content["data"]]
    assert [row["id"] for row in rows] == ["image-0", "image-1", "image-2"]
    assert [row["status"] for row in rows] == ["not_flipped", "flipped", "flipped"]
    assert [(row["prediction"], row["target"]) for row in rows] == [("no", "yes"), ("yes", "no"), ("no", "yes")]
    assert [row["p_after"] for row in rows] == [0, 1 / 8, 2 / 8]
    # The pictures of a table are files of its artifact, which `wandb sync` uploads.
    staged = [path for path in (tmp_path / "data").rglob("*") if path.is_file() and path.read_bytes()[1:4] == b"PNG"]
    pictures = [store.image_path(kind, row["id"]) for row in rows for kind in COLUMNS[4:8]]
    assert {load_png(path).tobytes() for path in staged} == {load_png(path).tobytes() for path in pictures}

    [table] = (folder / "files" / "media" / "table").glob("evaluation*.table.json")
    content = json.loads(table.read_text())
    assert content["columns"] == ["metric", "value", "low", "high", "n", "subset", "convention"]
    for name, value, low, high, n, subset, convention in content["data"]:
        measured = metrics["metrics"][name]
        assert [value, (low, high), n] == [measured["value"], pytest.approx(measured["interval"]), measured["n"]]
        assert (subset, convention) == (measured["subset"], measured["convention"])

    [file] = folder.glob("*.wandb")
    logged = {key: value for row in history(file) for key, value in row.items()}
    assert logged["metrics/n"] == 3
    assert logged["metrics/flip_rate"] == pytest.approx(2 / 3)
    assert logged["metrics/l1"] == pytest.approx(0.02)
    assert not [key for key in logged if "directions" in key or "status" in key]
    assert logged["counterfactuals.nrows"] == 3


class Recorder(WandbLogger):
    """Keeps what it is given."""

    experiment = Mock()

    def __init__(self):
        self.metrics, self.pictures, self.tables = [], [], {}

    def log_metrics(self, metrics, step=None):
        self.metrics.append(metrics)

    def log_image(self, key, images, step=None, **_):
        self.pictures.append(key)

    def log_table(self, key, columns, data, **_):
        self.tables[key] = data


def test_the_table_shows_the_pictures_of_the_run(make_store):
    store, recorder = make_store(3), Recorder()
    metrics = evaluate(store)
    write_gallery(store)
    log_run([recorder], store, metrics, examples=2)
    rows = recorder.tables["counterfactuals"]
    assert len(rows) == 2
    for index, row in enumerate(rows):
        for kind, shown in zip(COLUMNS[4:8], row[4:8], strict=True):
            stored = load_png(store.image_path(kind, f"image-{index}")).squeeze()
            assert np.array_equal(np.asarray(shown.image), stored)


def test_other_loggers_get_the_metrics(make_store, tmp_path):
    store = make_store(2)
    evaluate(store, Judges(distances={"lpips": l1}))
    logger = CSVLogger(tmp_path / "csv")
    log_run([logger], store, evaluate(store))
    [file] = (tmp_path / "csv").rglob("metrics.csv")
    header, values = file.read_text().splitlines()
    logged = dict(zip(header.split(","), values.split(","), strict=True))
    assert float(logged["metrics/flip_rate"]) == 0.5
    assert float(logged["metrics/lpips"]) == pytest.approx(0.25 * 100 / 255), "of networks too"
    scalars = {"n", *evaluate(store)["metrics"]}
    assert logged.keys() - {"step"} == {f"metrics/{name}" for name in scalars}


def test_a_run_without_explanations_logs_its_metrics_alone(make_store):
    store, recorder = make_store(0), Recorder()
    log_run([recorder], store, evaluate(store))
    assert recorder.metrics == [{"metrics/n": 0}]
    assert recorder.pictures == []
    assert recorder.tables == {"evaluation": []}
