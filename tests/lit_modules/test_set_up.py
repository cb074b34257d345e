"""How the command lines set up a trainer."""

from pathlib import Path

import pytest

from lit_modules.commands import generate
from lit_modules.set_up import TIMEOUT, make_cli

CONFIG = Path(__file__).parents[2] / "configs/avatars/explain.yaml"


@pytest.mark.parametrize("place", [("devices=1", "num_nodes=2"), ("devices=2",), ("devices=2", "strategy=ddp")])
def test_processes_wait_for_the_slowest_at_the_end(place, classifier_folder, ddpm_folder, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["explain.py"])
    networks = (f"--model.classifier={classifier_folder}", f"--model.diffusion={ddpm_folder}")
    quiet = ("--trainer.accelerator=cpu", "--trainer.logger=false")
    where = (f"--trainer.{setting}" for setting in place)
    cli = make_cli(["--config", str(CONFIG), *networks, *quiet, *where], generate)
    assert cli.trainer.world_size == 2
    assert cli.trainer.strategy._timeout == TIMEOUT
