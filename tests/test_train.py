"""Real training with the real configurations, shrunken."""

import csv
import io
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import wandb
import yaml
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import train
from ace.images import load_png
from ace.models.classifiers import ImageClassifier
from ace.models.identity import folder_hash
from ace.models.unet import load_diffusion
from callbacks.wandb_run import remembered_run
from tests.wandb_files import artifacts, config, history

ROOT = Path(__file__).parents[1]
CLASSIFIER = [
    f"--config={ROOT / 'configs/avatars/classifier.yaml'}",
    "--model.options={growth_rate: 4, block_config: [1, 1], num_init_features: 8}",
    "--trainer.max_epochs=1",
    "--data.batch_size=8",
]
DDPM = [
    f"--config={ROOT / 'configs/avatars/ddpm.yaml'}",
    "--model.unet.block_out_channels=[8, 8, 8, 8]",
    "--model.unet.norm_num_groups=4",
    "--model.unet.attention_head_dim=8",
    "--trainer.max_steps=2",
    "--trainer.val_check_interval=2",
    "--data.batch_size=2",
]
COMMON = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.log_every_n_steps=1"]


@pytest.fixture
def arguments(avatar_cache):
    """Makes the arguments of a short training on few images."""

    def make(command, settings, *overrides):
        sizes = [f"--data.{split}_size=16" for split in ("train", "val", "test")]
        return [command, *settings, *COMMON, *sizes, f"--data.cache_dir={avatar_cache}", *overrides]

    return make


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """The configurations' folders for weights and output are relative."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "weights/avatars/classifier", "weights/avatars/classifier")  # for the check of the filter
    monkeypatch.setattr("sys.argv", ["train.py"])  # LightningCLI warns of pytest's own arguments


def test_the_classifier_is_trained_exported_and_tested(arguments, tmp_path):
    cli = train.main(arguments("fit", CLASSIFIER))
    metrics = cli.trainer.callback_metrics
    assert {"train/loss", "val/loss", "val/accuracy", "val/accuracy_smiling"} <= set(metrics)
    assert cli.trainer.global_step == 2

    folder = tmp_path / "weights" / "avatars" / "classifier"
    assert {tensor.dtype for tensor in load_file(folder / "model.safetensors").values()} == {torch.float16, torch.int64}
    classifier = ImageClassifier.from_pretrained(folder)
    assert classifier.class_names == cli.datamodule.class_names
    images = torch.stack([cli.datamodule.dataset("test")[index]["image"] for index in range(2)])
    with torch.no_grad():
        torch.testing.assert_close(classifier(images), cli.model.eval()(images), rtol=0.05, atol=0.05)

    # A second run takes the same folder.
    exported = (folder / "model.safetensors").read_bytes()
    again = train.main(arguments("fit", CLASSIFIER, "--seed_everything=1"))
    assert (folder / "model.safetensors").read_bytes() != exported
    output = tmp_path / "outputs" / "avatars" / "classifier"
    stored = sorted(output.rglob("config.yaml"))
    assert yaml.safe_load(stored[-1].read_text())["seed_everything"] == 1

    assert sorted(output.rglob("*.ckpt")) == [output / "checkpoints" / "last.ckpt"]
    tested = train.main(arguments("test", CLASSIFIER, "--ckpt_path=last"))
    assert {"test/accuracy", "test/accuracy_smiling"} <= set(tested.trainer.callback_metrics)
    weights, loaded = again.model.state_dict(), tested.model.state_dict()
    assert all(torch.equal(weight, loaded[name]) for name, weight in weights.items() if "accuracy" not in name)


def test_an_exported_classifier_is_tested_from_its_folder(arguments):
    """The normalisation is not the default: the numbers depend on it."""
    normalisation = ("--model.mean=[0.3, 0.4, 0.5]", "--model.std=[0.1, 0.2, 0.3]")
    train.main(arguments("fit", CLASSIFIER, *normalisation))
    expected = train.main(arguments("test", CLASSIFIER, *normalisation, "--ckpt_path=last"))
    expected = expected.trainer.callback_metrics["test/loss"].item()
    for place in ("weights/avatars/classifier", "weights/avatars/classifier/model.safetensors"):
        tested = train.main(arguments("test", CLASSIFIER, f"--model.pretrained={place}")).trainer.callback_metrics
        assert tested["test/loss"].item() == pytest.approx(expected, rel=1e-3), place


def test_a_diffusion_model_is_tested_with_its_averaged_weights_from_the_checkpoint_as_from_the_export(arguments):
    export = {"class_path": "callbacks.ExportModel", "init_args": {"folder": "weights/new"}}
    quick = ("--model.lr=0.03", "--model.warmup_steps=0", "--trainer.max_steps=4", "--trainer.limit_val_batches=0")
    cli = train.main(arguments("fit", DDPM, f"--trainer.callbacks={['callbacks.EMAWithWarmup', export]}", *quick))
    last = Path(cli.trainer.default_root_dir, "checkpoints/last.ckpt")
    state = torch.load(last, weights_only=True)
    torch.save(state | {"state_dict": state["current_model_state"]}, "raw.ckpt")

    def loss(option):
        return train.main(arguments("test", DDPM, option)).trainer.callback_metrics["test/loss"].item()

    averaged = loss("--ckpt_path=last")
    assert loss("--model.pretrained=weights/new") == pytest.approx(averaged, rel=1e-6)
    assert loss("--ckpt_path=raw.ckpt") != pytest.approx(averaged, rel=1e-4)


@pytest.mark.parametrize("command", ["validate", "test"])
@pytest.mark.parametrize("settings", [CLASSIFIER, DDPM])
def test_a_network_without_weights_is_not_measured(command, settings, arguments):
    with pytest.raises(SystemExit) as exit:
        train.main(arguments(command, settings))
    told = f"error: {command} would measure random weights: give --ckpt_path last .*, or --model.pretrained FOLDER .*"
    assert re.fullmatch(told, exit.value.code)


def test_there_is_nothing_to_predict(arguments, capsys):
    with pytest.raises(SystemExit):
        train.main(arguments("predict", CLASSIFIER, "--ckpt_path=last"))
    assert "invalid choice: 'predict'" in capsys.readouterr().err


def test_the_diffusion_model_is_trained_sampled_exported_and_trained_on(arguments, tmp_path):
    output = tmp_path / "outputs" / "avatars" / "ddpm"
    folder = tmp_path / "weights" / "avatars" / "ddpm"
    cli = train.main(arguments("fit", DDPM))
    assert {"train/loss", "val/loss", "val/filter_agreement_tau5"} <= set(cli.trainer.callback_metrics)
    unet, scheduler = load_diffusion(folder)
    assert scheduler.config.prediction_type == "v_prediction"
    averaged = cli.model.unet.state_dict()  # after the fit the module holds the averaged weights
    assert all(torch.equal(weight, averaged[name].half().float()) for name, weight in unet.state_dict().items())
    [grid] = (output / "samples").iterdir()
    assert load_png(grid).shape == (4 * 66 + 2, 4 * 66 + 2, 3)

    # It goes on in the same folders.
    shutil.rmtree(folder)
    more = ("--trainer.max_steps=3", "--trainer.limit_val_batches=0", "--ckpt_path=last")
    cli = train.main(arguments("fit", DDPM, *more))
    assert cli.trainer.global_step == 3
    load_diffusion(folder)


def test_wandb_is_one_config_more_and_gets_curves_pictures_settings_and_the_model(arguments, tmp_path):
    wandb.teardown()  # a service that an earlier test has started elsewhere takes relative paths as from there
    more = f"--config={ROOT / 'configs/logger/wandb.yaml'}"
    callbacks = [
        {"class_path": "callbacks.SampleGrid", "init_args": {"count": 4, "inference_steps": 2}},
        {"class_path": "callbacks.ExportModel", "init_args": {"folder": "weights/new"}},
    ]
    output = tmp_path / "outputs/avatars/ddpm"
    train.main(arguments("fit", DDPM, more, f"--trainer.callbacks={callbacks}"))
    wandb.finish()
    [run] = (output / "wandb").glob("offline-run-*")
    [picture] = run.glob("files/media/images/samples*.png")
    assert load_png(picture).shape == (2 * 66 + 2, 2 * 66 + 2, 3)

    curves = {name: value for row in history(run) for name, value in row.items()}
    assert {"train/loss", "val/loss", "lr-AdamW"} <= curves.keys()
    assert curves["lr-AdamW"] == pytest.approx(6e-4)
    shown = config(run)
    assert shown["model"]["init_args"]["unet"]["init_args"]["block_out_channels"] == [8, 8, 8, 8]
    assert shown["output_dir"] == "outputs/avatars/ddpm"
    assert shown["versions"].keys() >= {"lightning-ace", "torch"}

    [(kind, metadata, files)] = [a for name, a in artifacts(run).items() if name.startswith("new-")]
    assert (kind, metadata) == ("model", {"hash": folder_hash("weights/new")}), "as in the settings of explanations"
    for name, copy in files.items():
        assert Path(copy).read_bytes() == Path("weights/new", name).read_bytes()
    assert "unet/diffusion_pytorch_model.safetensors" in files

    train.main(arguments("fit", DDPM, more, "--trainer.callbacks=[]", "--trainer.max_steps=4", "--ckpt_path=last"))
    wandb.finish()
    train.main(arguments("validate", DDPM, more, "--ckpt_path=last"))
    wandb.finish()
    [again] = [part for part in (output / "wandb").glob(f"offline-run-*-{remembered_run(output)['id']}") if part != run]
    assert again.name.split("-")[-1] == run.name.split("-")[-1], "a training that goes on has one W&B run"
    assert {row["trainer/global_step"] for row in history(again) if "train/loss" in row} == {3, 4}


def test_tensorboard_and_csv_get_the_same_curves(arguments, tmp_path):
    loggers = [{"class_path": f"lightning.pytorch.loggers.{name}Logger"} for name in ("TensorBoard", "CSV")]
    callbacks = "--trainer.callbacks=[{class_path: callbacks.SampleGrid, init_args: {count: 4, inference_steps: 2}}]"
    cli = train.main(arguments("fit", DDPM, callbacks, f"--trainer.logger={loggers}"))
    board, table = cli.trainer.loggers
    with Path(table.log_dir, "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    events = EventAccumulator(board.log_dir).Reload()
    assert set(events.Tags()["scalars"]) - {"hp_metric"} == rows[0].keys() - {"step"}
    for name in ("train/loss", "lr-AdamW", "val/loss"):
        written = [(int(row["step"]), float(row[name])) for row in rows if row[name]]
        assert written == [(event.step, pytest.approx(event.value)) for event in events.Scalars(name)], name
    [samples] = events.Images("samples")
    assert np.asarray(Image.open(io.BytesIO(samples.encoded_image_string))).std() > 0
    for logger in (board, table):
        assert "block_out_channels" in Path(logger.log_dir, "hparams.yaml").read_text()


COUNTING = """
import os
from pathlib import Path
from lit_modules import LitClassifier

class CountingClassifier(LitClassifier):
    def on_train_start(self):
        super().on_train_start()
        with open("ranks.txt", "a") as file:
            file.write(f"{self.global_rank}/{self.trainer.world_size}\\n")

    def export(self, folder, dtype):
        with open("exports.txt", "a") as file:
            file.write(f"{self.global_rank}\\n")
        super().export(folder, dtype)
"""


def test_two_processes_train_together_and_export_once(arguments, tmp_path):
    (tmp_path / "counting.py").write_text(COUNTING)
    command = arguments(
        "fit", CLASSIFIER, "--model=counting.CountingClassifier", "--trainer.devices=2", "--trainer.strategy=ddp",
        "--data.batch_size=4", "--data.val_size=9",  # 5 and 4 images: two batches and one
    )  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    done = subprocess.run(
        [sys.executable, ROOT / "train.py", *command],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert sorted((tmp_path / "ranks.txt").read_text().split()) == ["0/2", "1/2"]
    assert (tmp_path / "exports.txt").read_text().split() == ["0"]
    ImageClassifier.from_pretrained(tmp_path / "weights" / "avatars" / "classifier")

    [logged] = (tmp_path / "outputs").rglob("metrics.csv")
    together = {k: float(v) for row in csv.DictReader(logged.open()) for k, v in row.items() if v and k[:4] == "val/"}
    single = train.main(arguments("validate", CLASSIFIER, "--ckpt_path=last", "--data.val_size=9"))
    alone = {name: value.item() for name, value in single.trainer.callback_metrics.items()}
    assert together == pytest.approx(alone, rel=1e-5), "every image once, in one process or two"


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ([], ["fit", "validate", "test", "classifier or a diffusion model"]),
        (["fit"], ["--model", "--data", "--output_dir", "--ckpt_path", "Folder of all that the run writes"]),
        (["test"], ["--model", "--data", "--ckpt_path"]),
    ],
)
def test_help_is_readable(command, words, capsys):
    with pytest.raises(SystemExit) as exit:
        train.main([*command, "--help"])
    assert exit.value.code == 0
    text = capsys.readouterr().out
    one_line = " ".join(text.split())
    assert all(word in one_line for word in words)
    assert re.match(r"usage: train\.py ", one_line)


@pytest.mark.parametrize(
    ("settings", "overrides", "words"),
    [
        (CLASSIFIER, ["--data.batch_size=0"], "batch_size is 0: give at least 1"),
        (
            CLASSIFIER,
            ["--trainer.overfit_batches=2"],
            "trainer.overfit_batches is 2, .* --trainer.limit_train_batches 2",
        ),
        (CLASSIFIER, ["--data.batch_size=17"], "The train split has 16 images, fewer than batch_size=17 for each of 1"),
        (CLASSIFIER, ["--data.val_size=0"], "val_size"),
        (
            CLASSIFIER,
            ["--trainer.precision=bf16-true"],
            "trainer.precision is bf16-true: use one of 32-true, bf16-mixed",
        ),
        (CLASSIFIER, ["--trainer.accelerator=mps"], ".*MPSAccelerator"),
        (CLASSIFIER, ["--model.architecture=resnet_18"], "unknown architecture 'resnet_18'"),
        (CLASSIFIER, ["--model.adversarial.epsilon=-3"], r"epsilon must be positive \(grey levels\), got -3.0"),
        (
            DDPM,
            ["--trainer.callbacks=callbacks.SampleGrid", "--trainer.callbacks.every_n_epochs=0"],
            "every_n_epochs must be at least 1, got 0",
        ),
        (
            DDPM,
            ["--trainer.callbacks=callbacks.FilterCheck", "--trainer.callbacks.classifier=nowhere"],
            "no classifier at 'nowhere'",
        ),
        (
            CLASSIFIER,
            ["--trainer.callbacks=callbacks.FilterCheck", "--trainer.callbacks.classifier=weights/avatars/classifier"],
            "FilterCheck is for the training of a diffusion model, got a LitClassifier",
        ),
    ],
)
def test_bad_settings_end_with_a_sentence(settings, overrides, words, arguments):
    with pytest.raises(SystemExit) as exit:
        train.main(arguments("fit", settings, *overrides))
    assert re.match(f"error: {words}", str(exit.value.code))
