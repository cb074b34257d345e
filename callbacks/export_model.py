"""Export the trained network as the folder that ``explain.py`` reads."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback


class ExportModel(Callback):
    """Call ``module.export`` once, on rank zero, when training has ended.

    ``on_fit_end`` is the first hook in which the module holds the averaged weights if `EMAWeightAveraging` is used.

    Args:
        folder: where to write.
        dtype: precision of the stored weights; they are read back as float32.
    """

    def __init__(self, folder: str, dtype: Literal["float32", "float16", "bfloat16"] = "float32") -> None:
        self.folder = Path(folder)
        self.dtype = getattr(torch, dtype)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero and not trainer.fast_dev_run:
            pl_module.export(self.folder, self.dtype)
