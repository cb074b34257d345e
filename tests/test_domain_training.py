"""A published domain's training of a diffusion model, as its configuration says it, with a network of few channels."""

from pathlib import Path

import yaml

import train
from ace.images import load_png
from ace.models.unet import load_diffusion
from tests import layouts

ROOT = Path(__file__).parents[1]


def test_a_step_a_validation_with_samples_and_the_exports(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["train.py"])
    config = ROOT / "configs/celeba/ddpm.yaml"
    written = yaml.safe_load(config.read_text())
    train.main(
        [
            "fit", f"--config={config}", f"--data.root={layouts.celeba(tmp_path / 'data')}",
            "--model.unet.block_out_channels=[8, 8, 8, 8, 8]", "--model.unet.norm_num_groups=4",
            "--model.unet.attn_norm_num_groups=4", "--model.unet.layers_per_block=1", "--trainer.accelerator=cpu",
            "--trainer.devices=1", "--trainer.enable_progress_bar=false", "--trainer.max_steps=1",
            "--trainer.val_check_interval=1", "--trainer.limit_val_batches=1", "--data.batch_size=1",
        ]
    )  # fmt: skip
    [grid] = Path(written["output_dir"], "samples").iterdir()
    assert load_png(grid).std() > 5
    for callback in written["trainer"]["callbacks"]:
        if callback["class_path"] == "callbacks.ExportModel":
            settings = callback["init_args"]
            parent = written["output_dir"] if "monitor" in settings else ""
            unet, _ = load_diffusion(Path(parent, settings["folder"]))
            assert unet.config.out_channels == 6
