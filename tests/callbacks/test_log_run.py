"""A finished run in the loggers, read back from what they have written."""

import io

import numpy as np
import pytest
import wandb
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ace.closeness import l1
from ace.evaluation import evaluate
from ace.examples import choose_examples, example_pictures
from ace.images import load_png
from ace.judges import Judges
from ace.record import Record
from ace.report import write_gallery
from ace.run_store import RunStore
from callbacks.log_run import log_config, log_metrics, log_run
from tests.wandb_files import artifacts, config, history, summary, table

PICTURES = ("original", "pre_explanation", "counterfactual", "mask", "change")
NUMBERS = ("p_before", "p_attack", "p_after", "l1", "l2", "linf", "changed_area", "iterations")
SETTINGS = {"decision": {"class_names": ["no", "yes"]}, "weights": {"classifier": "abc", "diffusion": "def"}}


def fill(store, count):
    """Finished images; each one's pictures have levels of their own."""
    numbers = {"p_before": 0.1, "p_attack": 0.8, "l1": 0.02, "l2": 0.5, "linf": 0.25, "changed_area": 0.125}
    costs = {"iterations": 3, "unet_forwards": 9, "unet_backwards": 6, "seconds": 1.5}
    for index in range(count):
        record = Record(
            id=f"image-{index}", label=1, prediction=index % 2, target=1 - index % 2, flipped=index > 0,
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
    for name, reason in (
        ("left-out", "skipped: already so"),
        ("other", "skipped: already so"),
        ("lost", "failed: NaN"),
    ):
        store.add(Record(id=name, seed=0, status=reason), {"original": np.zeros((8, 8, 3), np.uint8)})


@pytest.fixture
def make_store(tmp_path):
    def make(count):
        store = RunStore.create(tmp_path / "run", {"model": {"steps": 5}}, SETTINGS)
        fill(store, count)
        return store

    return make


@pytest.fixture
def logged(make_store, monkeypatch):
    """A run and its offline W&B run, whose files all lie in the run folder."""
    monkeypatch.delenv("WANDB_DATA_DIR")
    store = make_store(4)
    metrics = evaluate(store)
    write_gallery(store)
    (store.folder / "report.html").write_text("the page")
    logger = WandbLogger(project="test", save_dir=store.folder, offline=True)
    log_config([logger], store)
    log_run([logger], store, metrics, examples=3)
    [folder] = (store.folder / "wandb").glob("offline-run-*")
    return store, metrics, folder


def test_wandb_shows_examples_numbers_and_files_of_a_run(logged):
    store, metrics, folder = logged
    [picture] = folder.glob("files/media/images/gallery*.png")
    shown = load_png(picture)
    assert np.array_equal(shown, load_png(store.folder / "gallery.png")), "clipped, scaled or black"
    assert shown.min() < 100 < shown.max()

    rows = table(folder, "counterfactuals")
    chosen = choose_examples(store, 3)
    assert [row["id"] for row in rows] == [record.id for record in chosen]
    assert list(rows[0]) == ["id", "status", "label", "prediction", "target", *PICTURES, *NUMBERS]
    files = artifacts(folder)[f"run-{folder.name[-8:]}-counterfactuals"][2]
    for row, record in zip(rows, chosen, strict=True):
        assert (row["status"], row["label"], row["target"]) == (record.status, "yes", ["no", "yes"][record.target])
        assert all(row[name] == getattr(record, name) for name in NUMBERS)
        for kind, expected in example_pictures(store, record).items():
            seen = load_png(files[row[kind]["path"]])
            assert np.array_equal(seen, expected), (record.id, kind)
            assert 0 < seen.mean() < 255, "neither black nor clipped"
    captions = {row["id"]: [row[kind]["caption"] for kind in PICTURES] for row in rows}
    assert captions["image-0"] == [
        "no; yes 0.10", "yes 0.80", "not_flipped; yes 0.10 -> 0.00", "12.5% repainted", "mean change 0.0200",
    ]  # fmt: skip

    for row in table(folder, "evaluation"):
        measured = metrics["metrics"][row["metric"]]
        assert row == {
            "metric": row["metric"], "value": measured["value"], "n": measured["n"],
            "low": pytest.approx(measured["interval"][0]), "high": pytest.approx(measured["interval"][1]),
            "subset": measured["subset"], "convention": measured["convention"],
        }  # fmt: skip
    outcomes = {(row["status"], row["reason"]): row["images"] for row in table(folder, "outcomes")}
    assert outcomes == {("flipped", ""): 3, ("not_flipped", ""): 1, ("skipped", "already so"): 2, ("failed", "NaN"): 1}
    bars = {row["pair"]: (row["flip rate"], row["images"]) for row in table(folder, "flip_rate_table")}
    assert bars == {"no -> yes": (0.5, 2), "yes -> no": (1, 2), "? -> ?": (0, 1)}


def test_wandb_has_the_summary_the_configuration_and_the_files_of_a_run(logged):
    store, metrics, folder = logged
    values = summary(folder)
    for name, measured in metrics["metrics"].items():
        assert values[f"metrics/{name}"] == pytest.approx(measured["value"])
    assert values["metrics/flip_rate"] == 0.6
    assert values["metrics/valid_closeness"] == pytest.approx(0.6 * 0.98)
    counts = {name: value for name, value in values.items() if name.startswith("status/")}
    assert counts == {"status/flipped": 3, "status/not_flipped": 1, "status/skipped": 2, "status/failed": 1}
    assert sum(values["histogram/l1.values"]) == sum(values["histogram/iterations.values"]) == 4
    assert {row["trainer/global_step"] for row in history(folder)} == {7}, "images done"

    shown = config(folder)
    assert (shown["model"], shown["settings"]) == ({"steps": 5}, SETTINGS)
    assert shown["versions"] == store.versions

    name = f"counterfactuals-{folder.name[-8:]}"
    kind, metadata, files = artifacts(folder)[name]
    assert (kind, metadata) == ("counterfactuals", {"settings_hash": store.settings_hash})
    assert files.keys() == {"config.yaml", "records.csv", "metrics.json", "gallery.png"}
    for name, copy in files.items():
        with open(copy, "rb") as file:
            assert file.read() == (store.folder / name).read_bytes()
        assert (store.folder / "wandb").resolve() in (store.folder / copy).resolve().parents, "not at home"


def test_tensorboard_gets_the_same_numbers_and_the_pictures(make_store, tmp_path):
    store = make_store(4)
    metrics = evaluate(store)
    write_gallery(store)
    logger = TensorBoardLogger(tmp_path / "boards", default_hp_metric=False)
    log_config([logger], store)
    logger.finalize("success")  # as Lightning does before
    log_run([logger], store, metrics)
    events = EventAccumulator(logger.log_dir).Reload()
    names = {f"metrics/{name}" for name in ("n", *metrics["metrics"])}
    names |= {f"status/{name}" for name in ("flipped", "not_flipped", "skipped", "failed")}
    assert set(events.Tags()["scalars"]) == names
    [rate] = events.Scalars("metrics/flip_rate")
    assert (rate.step, rate.value) == (7, pytest.approx(0.6))
    [gallery] = events.Images("gallery")
    shown = np.asarray(Image.open(io.BytesIO(gallery.encoded_image_string)))
    assert np.array_equal(shown, load_png(store.folder / "gallery.png"))
    assert set(events.Tags()["histograms"]) == {"histogram/iterations", "histogram/l1", "histogram/p_after"}
    [closeness] = events.Histograms("histogram/p_after")
    assert (closeness.histogram_value.num, closeness.histogram_value.max) == (4, 3 / 8)


def test_csv_gets_the_numbers(make_store, tmp_path):
    store = make_store(2)
    evaluate(store, Judges(distances={"lpips": l1}))
    logger = CSVLogger(tmp_path / "csv")
    log_metrics([logger], store, evaluate(store))
    [file] = (tmp_path / "csv").rglob("metrics.csv")
    header, values = file.read_text().splitlines()
    row = dict(zip(header.split(","), values.split(","), strict=True))
    assert float(row["metrics/flip_rate"]) == pytest.approx(1 / 3)
    assert float(row["metrics/lpips"]) == pytest.approx(0.25 * 100 / 255), "of networks too"
    assert (row["step"], row["status/skipped"], row["metrics/n"]) == ("5", "2", "3")


def test_a_run_without_explanations_has_numbers_alone(make_store):
    store = make_store(0)
    log_run([WandbLogger(project="test", save_dir=store.folder, offline=True)], store, evaluate(store))
    [folder] = (store.folder / "wandb").glob("offline-run-*")
    assert summary(folder)["metrics/n"] == 1
    assert {path.name.partition("_")[0] for path in folder.glob("files/media/table/*")} == {"evaluation", "outcomes"}
    assert not list(folder.rglob("*.png"))


def test_a_disabled_run_writes_nothing(make_store, monkeypatch):
    monkeypatch.delenv("WANDB_DATA_DIR")
    store = make_store(2)
    metrics = evaluate(store)
    write_gallery(store)
    before = set(store.folder.rglob("*"))
    logger = WandbLogger(project="test", save_dir=store.folder, mode="disabled")
    log_config([logger], store)
    log_run([logger], store, metrics)
    assert set(store.folder.rglob("*")) == before
    assert wandb.run is None
