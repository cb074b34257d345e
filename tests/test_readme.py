"""Every command of the README and of docs/ runs as it stands there, on less work and in temporary folders."""

import importlib
import json
import re
import shlex
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import explain
import train
from ace.models import convert
from ace.models.unet import load_diffusion
from datamodules import AvatarsDataModule

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
DOCS = [path.read_text() for path in sorted((ROOT / "docs").glob("*.md"))]
COMMANDS = [line for text in (README, *DOCS) for line in text.splitlines() if line.startswith(("python ", "make "))]
SCRIPTS = {"train.py": train.main, "explain.py": explain.main}
NETWORK = """
from torch import nn

class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, 2))
"""
PUBLISHED = "configs/celeba/e"  # explain and evaluate: its data and weights are not here
LARGE = "configs/celeba/ddpm.yaml"  # on one's own images
FEW_CHANNELS = ["--model.unet.block_out_channels", "[8, 8, 8, 8, 8]", "--model.unet.norm_num_groups", "4"]
FEW_CHANNELS += ["--model.unet.attn_norm_num_groups", "4", "--model.unet.layers_per_block", "1"]
QUICK = ["--data.num_images", "2", "--model.slots", "2", "--model.attack.iterations", "1", "--model.steps", "1"]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """Images to train on, and folders that stand for those the README names."""
    root = tmp_path_factory.mktemp("own")
    rng = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        for name in ("cats", "dogs"):
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(2):
                Image.fromarray(rng.integers(0, 255, (64, 64, 3), np.uint8)).save(folder / f"{index}.png")
    rows = [
        f"{path.relative_to(root)},{path.parent.name},{place % 2},{place // 2 % 2},{path.parts[-3]}"
        for place, path in enumerate(sorted(root.rglob("*.png")))
    ]
    (root / "labels.csv").write_text("\n".join(["image,label,smiling,glasses,split", *rows]))
    return tmp_path_factory.mktemp("work"), root


def run(command, workplace):
    work, root = workplace
    _, script, *args = shlex.split(command)
    own = {"ROOT": str(root), "FILE": str(root / "labels.csv"), "outputs/own/explain": str(work / "digits")}
    own |= {f"weights/own/{name}": str(work / "own" / name) for name in ("classifier", "second")}
    args = [own.get(arg, arg) for arg in args]
    args = [re.sub(r"^(outputs/[\w.-]+)$", lambda match: str(work / match[1]), arg) for arg in args]
    if script == "train.py":
        kind = "classifier" if "/classifier.yaml" in command else "photographs" if LARGE in command else "ddpm"
        less = ["--trainer.max_steps", "1", "--trainer.limit_val_batches", "1", "--data.batch_size", "2"]
        less += ["--output_dir", str(work / kind), *(FEW_CHANNELS if LARGE in command else [])]
        less += ["--trainer.callbacks.folder", str(work / "own" / ("second" if "second" in command else kind))]
        less += ["--data.num_workers", "0", *(["--data.split_column", "split"] if "--data.csv" in args else [])]
        more = next((place for place, arg in enumerate(args) if "callbacks+=" in arg), len(args))
        args[more:more] = less  # what follows is of another callback
    elif "evaluate" in args and "image_folder" in command:
        args += ["--networks.second_classifier", own["weights/own/second"]]
    elif "calibrate" in args:
        args += ["--images", "1", "--search_images", "1", "--taus", "[1]", "--budget", "0.001", "--model.slots", "1"]
        args += ["--data.cache_dir", str(work / "avatars"), "--output_dir", str(work / "explain")]
    elif "generate" in args:
        own = ["--model.classifier", str(work / "own" / "classifier"), "--model.diffusion", str(work / "own" / "ddpm")]
        args += QUICK + (own if "image_folder" in command else ["--data.cache_dir", str(work / "avatars")])
        name = "digits" if "--data.image_size" in args else "explain"
        if "--data.csv" in args:
            name, args = "csv", [*args, "--data.split_column", "split"]
        args += [] if "--output_dir" in args else ["--output_dir", str(work / name)]
    SCRIPTS[script](args)


def test_python_commands(workplace, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("sys.argv", ["train.py"])  # LightningCLI warns of pytest's own arguments
    work, _ = workplace
    run(f"python explain.py generate --config configs/avatars/explain.yaml --output_dir {work}/outputs/demo", workplace)
    commands = [one for one in COMMANDS if re.match(r"python \w+\.py ", one) and PUBLISHED not in one]
    assert len(commands) >= 7
    for command in commands:
        run(command, workplace)
    assert (work / "outputs" / "glasses" / "records.csv").is_file()
    assert (work / "outputs" / "demo-threshold0.3-dilation5" / "records.csv").is_file()
    assert (work / "explain" / "report.html").is_file()
    assert (work / "outputs" / "demo" / "compare.html").is_file()
    assert (work / "outputs" / "figure.pdf").is_file()
    assert (work / "outputs" / "calibrated.png").is_file()
    assert "non_adversarial_flip_rate" in json.loads((work / "digits" / "metrics.json").read_text())["metrics"]
    assert load_diffusion(work / "own" / "photographs")[0].config.sample_size == 128


def test_a_classifier_of_the_users_own_is_explained(ddpm_folder, workplace, tmp_path, monkeypatch):
    [settings] = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "your-own.md").read_text(), re.DOTALL)
    (tmp_path / "mine.yaml").write_text(settings)
    (tmp_path / "my_net.py").write_text(NETWORK)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    torch.save(importlib.import_module("my_net").Net().state_dict(), "my_net.pth")
    config = str(ROOT / "configs" / "image_folder" / "explain.yaml")
    run_folder = str(tmp_path / "run")  # W&B's service may have been started elsewhere, and would write "run" there
    data = ["--data.root", str(workplace[1]), "--output_dir", run_folder, "--model.diffusion", str(ddpm_folder)]
    explain.main(["generate", "--config", config, "--config", "mine.yaml", *data, *QUICK])
    assert (tmp_path / "run" / "records.csv").is_file()


def test_checkpoints_would_be_converted_if_they_were_there():
    commands = [shlex.split(command) for command in COMMANDS if command.startswith("python -m ace.models.convert ")]
    assert len(commands) == sum(command.startswith("python -m ") for command in COMMANDS) > 0
    for _, _, _, checkpoint, *rest in commands:
        with pytest.raises(SystemExit, match=f"no checkpoint at '{re.escape(checkpoint)}'"):
            convert.main([checkpoint, *rest])


def test_commands_of_the_paper_s_experiments_are_understood(monkeypatch):
    monkeypatch.chdir(ROOT)
    generate, evaluate = (one for one in COMMANDS if PUBLISHED in one)
    with pytest.raises(SystemExit, match="0"):
        explain.main([*shlex.split(generate)[2:], "--print_config"])
    config = ROOT / shlex.split(evaluate)[-1]
    assert evaluate in config.read_text()  # where it is tried by another test


def test_make_commands_exist_and_ci_runs_them():
    targets = [shlex.split(command)[1] for command in COMMANDS if command.startswith("make ")]
    assert targets == ["demo", "test"]
    for target in targets:
        subprocess.run(["make", "--dry-run", target], cwd=ROOT, check=True, capture_output=True)
        assert f"make {target}" in (ROOT / ".ci" / "run").read_text()


def test_flags_of_the_prose_are_understood(workplace, monkeypatch):
    monkeypatch.chdir(ROOT)
    configs = re.findall(r"`--config (configs/\S+)`", README)
    assert configs
    for config in configs:
        args = ["fit", "--config", "configs/avatars/ddpm.yaml", "--config", config]
        with pytest.raises(SystemExit, match="0"):
            train.main([*args, "--trainer.devices", "4", "--trainer.strategy", "ddp", "--print_config"])


def test_python_example(monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    data = AvatarsDataModule(cache_dir=str(tmp_path)).dataset("test")
    names = {"images": torch.stack([data[0]["image"], data[1]["image"]])}
    exec(example.replace("ProximalGradient()", "ProximalGradient(1)"), names)
    assert [e.counterfactual.shape for e in names["explanations"]] == [(3, 64, 64)] * 2

    evaluation = (ROOT / "docs" / "evaluation.md").read_text()
    of_a_run, of_one_metric = re.findall(r"```python\n(.*?)```", evaluation, re.DOTALL)
    folder = tmp_path / "notebook"
    exec(of_a_run.replace("outputs/notebook", str(folder)), names)
    assert {"flip_rate", "l1", "cout"} <= names["metrics"].keys()
    assert (folder / "metrics.json").is_file()
    assert all(e.id in (folder / "report.html").read_text() for e in names["explanations"])
    exec(of_one_metric, names)
    assert names["closeness"].compute()["L1"].item() == pytest.approx(names["metrics"]["l1"]["value"])


def test_pictures_and_linked_files_exist():
    for folder, text in ((ROOT, README), *((ROOT / "docs", text) for text in DOCS)):
        for path in re.findall(r"\[[^]]*\]\(([^)#:]+)\)", text):
            assert (folder / path).exists(), path
