"""Export the trained network as the folder that ``explain.py`` reads."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_info

from ace.models.identity import folder_hash
from callbacks.averaging import averaged_weights
from callbacks.wandb_artifacts import log_artifact


class ExportModel(Callback):
    """Call ``module.export`` on rank zero: once when training has ended, or at each best value of a metric so far.

    When training has ended, Weights & Biases gets the folder as an artifact, with the hash that explanations name its
    weights by. The averaged weights are exported if `WeightAveraging` is used. A training that fails or is stopped
    leaves the folder as it is, and a kill leaves no half of one.

    Args:
        folder: where to write; files in it that the export has no others for stay. With ``monitor`` a relative one lies
            in the trainer's ``default_root_dir``, the ``output_dir`` of ``train.py``: each run has its own.
        dtype: precision of the stored weights; they are read back as float32.
        monitor: name of a logged metric: export after each validation that has the best value so far, not at the end.
        mode: whether the lowest (``min``) or the highest (``max``) value is the best.

    Raises:
        ValueError: another mode, or a metric that is not logged by the end of the first validation.
    """

    def __init__(
        self,
        folder: str,
        dtype: Literal["float32", "float16", "bfloat16"] = "float32",
        monitor: str | None = None,
        mode: Literal["min", "max"] = "min",
    ) -> None:
        if mode not in ("min", "max"):
            raise ValueError(f"mode must be min or max, got {mode!r}")
        self.folder = Path(folder)
        self.dtype = getattr(torch, dtype)
        self.monitor, self.mode = monitor, mode
        self.best = math.inf if mode == "min" else -math.inf

    @property
    def state_key(self) -> str:
        return self._generate_state_key(folder=str(self.folder), monitor=self.monitor)

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = state_dict["best"]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        folder, goes_on = self._place(trainer), math.isfinite(self.best)
        if folder.exists() and not goes_on and _writes(trainer):
            by = "" if self.monitor is None else " by the best of this training"
            rank_zero_info(f"The network in {folder} is going to be replaced{by}")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Export if this is the best validation; checkpoints, which hold its value, are saved after it."""
        training = trainer.state.fn == "fit" and not trainer.sanity_checking
        if self.monitor is None or not training or not _writes(trainer):
            return
        value = _metric(trainer, self.monitor)
        if value < self.best if self.mode == "min" else value > self.best:
            self._export(trainer, pl_module)
            self.best = value

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Export the end; the module of a training that had been finished before does not hold the averaged weights."""
        if not _writes(trainer) or trainer.global_step == 0:  # nothing was trained
            return
        if self.monitor is None:
            self._export(trainer, pl_module)
            rank_zero_info(f"The trained network is in {self.folder}")
        if self.monitor is None or math.isfinite(self.best):
            _log(self._place(trainer), trainer.loggers)

    def _place(self, trainer: Trainer) -> Path:
        return self.folder if self.monitor is None else Path(trainer.default_root_dir) / self.folder

    def _export(self, trainer: Trainer, pl_module: LightningModule) -> None:
        folder = self._place(trainer).resolve()  # a link stays, and leads to the new export
        fresh = folder.with_name(f".{folder.name}.tmp")
        shutil.rmtree(fresh, ignore_errors=True)
        with averaged_weights(trainer, pl_module):
            pl_module.export(fresh, self.dtype)
        replace_folder(folder, fresh)


def _log(folder: Path, loggers: Sequence[Logger]) -> None:
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            log_artifact(logger, "model", folder.name, [folder], {"hash": folder_hash(folder)})


def replace_folder(folder: Path, fresh: Path) -> None:
    """Put ``fresh`` in the place of ``folder``, whole, by renaming; entries of the old folder that it lacks move over.

    A kill in between leaves the old folder beside the place, as ``.<name>.old``, and the next call puts it in order.
    """
    old = folder.with_name(f".{folder.name}.old")
    if old.exists() and not folder.exists():
        old.rename(folder)
    _dissolve(old, folder)
    if folder.exists():
        folder.rename(old)
    fresh.rename(folder)
    _dissolve(old, folder)


def _dissolve(old: Path, folder: Path) -> None:
    """Delete a folder that has been replaced, but for what may be the user's own."""
    if old.exists():
        for entry in list(old.iterdir()):
            if not (folder / entry.name).exists():
                entry.rename(folder / entry.name)
        shutil.rmtree(old)


def _writes(trainer: Trainer) -> bool:
    """Whether this process may write: one does, and none in a trial run."""
    return trainer.is_global_zero and not trainer.fast_dev_run


def _metric(trainer: Trainer, name: str) -> float:
    if name not in trainer.callback_metrics:
        known = ", ".join(sorted(trainer.callback_metrics)) or "none"
        raise ValueError(f"ExportModel: no metric {name!r} is logged; monitor one of these: {known}")
    return trainer.callback_metrics[name].item()
