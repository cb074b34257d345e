"""Pictures and distributions for every logger that can show them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import wandb
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger


def log_image(loggers: Sequence[Logger], name: str, image: np.ndarray, step: int) -> None:
    """Give a picture to Weights & Biases and to TensorBoard; for rank zero. Other loggers are left out.

    Args:
        loggers: the trainer's.
        name: of the picture, always the same for the pictures of a series.
        image: uint8, shape (H, W, C).
        step: of the training, or images done of a run of explanations.

    Raises:
        TypeError: the picture is not of uint8: every logger makes something else of floats.
    """
    if image.dtype != np.uint8:
        raise TypeError(f"the picture {name!r} must be of uint8, got {image.dtype}; ace.images.to_uint8 makes one")
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.log_image(name, [image], step=step)
        elif isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(name, image, step, dataformats="HWC")


def log_histogram(loggers: Sequence[Logger], name: str, values: Sequence[float], step: int) -> None:
    """Give the distribution of some values to Weights & Biases and to TensorBoard; for rank zero.

    Args:
        loggers: the trainer's; other ones are left out.
        name: of the distribution.
        values: at least one.
        step: as for `log_image`.
    """
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.log_metrics({name: wandb.Histogram(list(values))}, step)
        elif isinstance(logger, TensorBoardLogger):
            logger.experiment.add_histogram(name, np.asarray(values, np.float64), step)
