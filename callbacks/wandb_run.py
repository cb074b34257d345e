"""The W&B run of an output folder: what is done to the folder later goes on with it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from ace.plain_values import write_json
from ace.run_store import RunStore
from callbacks.wandb_mode import never_prompt

FILE = "wandb.json"


@rank_zero_only
def remember_run(loggers: Sequence[Logger], folder: str | Path) -> None:
    """Note in an output folder which W&B run is its own."""
    for logger in loggers:
        if isinstance(logger, WandbLogger) and not (run := logger.experiment).disabled:
            mode = "offline" if run.offline else None
            place = {"id": run.id, "project": run.project, "entity": run.entity or None, "mode": mode}
            write_json(Path(folder) / FILE, place)


def remembered_run(folder: str | Path) -> dict[str, Any]:
    """The ``id``, ``project``, ``entity`` and ``mode`` of an output folder's W&B run; empty if it has none."""
    path = Path(folder) / FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def run_loggers(store: RunStore) -> list[Logger]:
    """A logger that goes on with the folder's W&B run; none if it has none. A run that was offline stays so."""
    run = remembered_run(store.folder)
    if not run:
        return []
    never_prompt()
    return [WandbLogger(save_dir=store.folder, **run)]
