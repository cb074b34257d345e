"""Files in Weights & Biases."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import wandb
from lightning.pytorch.loggers import WandbLogger

DATA_DIR = "WANDB_DATA_DIR"


def log_artifact(
    logger: WandbLogger, kind: str, name: str, paths: Sequence[Path], metadata: dict[str, Any] | None = None
) -> None:
    """Log files, and what is in folders, as an artifact; once more as its next version.

    Args:
        logger: of rank zero; a run that is disabled gets none.
        kind: type of the artifact.
        name: of the artifact, in front of the id of the run.
        paths: of the files and folders; they are copied, and may change afterwards.
        metadata: plain values.
    """
    run = logger.experiment
    if run.disabled:
        return
    with staging(logger):
        artifact = wandb.Artifact(re.sub(r"[^\w.-]", "-", f"{name}-{run.id}"), kind, metadata=metadata)
        for path in paths:
            if path.is_dir():
                artifact.add_dir(str(path))
            else:
                artifact.add_file(str(path))
        run.log_artifact(artifact)


@contextmanager
def staging(logger: WandbLogger) -> Iterator[None]:
    """What artifacts and tables hold lies beside the run's other files until it is uploaded, and not at home.

    A run that was made offline on a machine that is gone is whole then. The user's WANDB_DATA_DIR has the last word.
    """
    if DATA_DIR in os.environ:
        yield
        return
    os.environ[DATA_DIR] = str(Path(logger.save_dir or ".", "wandb").resolve())
    try:
        yield
    finally:
        del os.environ[DATA_DIR]
