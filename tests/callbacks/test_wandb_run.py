"""What is logged about a run folder goes into one W&B run."""

import json
import shutil

import pytest
import wandb
from lightning.pytorch.loggers import CSVLogger, WandbLogger

import explain
from ace.run_store import RunStore
from callbacks.wandb_run import remember_run, remembered_run, run_loggers
from tests.wandb_files import artifacts, history, table

WANDB = "{class_path: lightning.pytorch.loggers.WandbLogger, init_args: {project: mine, offline: true}}"


@pytest.fixture
def store(tmp_path):
    return RunStore.create(tmp_path / "run", {}, {})


@pytest.fixture
def online(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "online")
    wandb.teardown()  # W&B reads the variable once
    yield
    wandb.finish()
    wandb.teardown()


def test_a_folder_without_a_run_has_no_logger(store, tmp_path):
    remember_run([CSVLogger(tmp_path), WandbLogger(project="mine", save_dir=tmp_path, mode="disabled")], store.folder)
    assert remembered_run(store.folder) == {}
    assert run_loggers(store) == []


def test_a_run_is_gone_on_with_by_its_id(store, tmp_path):
    first = WandbLogger(project="mine", save_dir=store.folder)
    remember_run([first], store.folder)
    found = remembered_run(store.folder)
    assert found == {"id": first.experiment.id, "project": "mine", "entity": None, "mode": "offline"}
    wandb.finish()
    [again] = run_loggers(store)
    assert (again.experiment.id, again.experiment.project) == (first.experiment.id, "mine")


@pytest.mark.usefixtures("online")
def test_an_offline_run_stays_offline(store):
    store.write_json("wandb.json", {"id": "abc", "project": "mine", "entity": None, "mode": "offline"})
    [logger] = run_loggers(store)
    assert logger.experiment.offline


def test_generate_and_evaluate_write_one_run(arguments, tmp_path):
    def logged():
        parts = sorted((run / "wandb").glob("offline-run-*"))
        assert {part.name.split("-")[3] for part in parts} == {json.loads((run / "wandb.json").read_text())["id"]}
        return parts, {key: value for row in history(parts[-1]) for key, value in row.items()}

    run = tmp_path / "run"
    explain.main(arguments(run, f"--trainer.logger={WANDB}", num_images=1))
    parts, values = logged()
    assert len(parts) == 1
    assert values["metrics/n"] == 1

    explain.main(["evaluate", str(run)])
    metrics = json.loads((run / "metrics.json").read_text())["metrics"]
    parts, values = logged()
    assert len(parts) == 2, "offline, W&B makes a folder each time"
    assert any(name.startswith("counterfactuals-") for name in artifacts(parts[-1])), "the new metrics.json"
    assert "cout" in metrics
    for name, measured in metrics.items():
        assert values[f"metrics/{name}"] == pytest.approx(measured["value"])
    assert values["evaluation.nrows"] == len(metrics)

    explain.main(arguments(run, f"--trainer.logger={WANDB}", num_images=2))
    parts, values = logged()
    assert len(parts) == 3
    ids = [row["id"] for row in table(parts[-1], "counterfactuals")]
    assert sorted(ids) == ["avatars-test-000000", "avatars-test-000001"], "of both times"
    assert values["trainer/global_step"] == values["progress/images"] == 2, "curves go on"
    assert values["metrics/n"] == 2

    shutil.rmtree(run / "wandb")
    (run / "wandb.json").unlink()
    explain.main(["evaluate", str(run)])
    assert not (run / "wandb").exists(), "a run without W&B gets none"
