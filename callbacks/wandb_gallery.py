"""Show a finished run in the loggers: its metrics everywhere, its pictures in Weights & Biases."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning.pytorch.loggers import Logger, WandbLogger

from ace.images import load_png
from ace.record import Record
from ace.run_store import RunStore

_PICTURES = ("original", "pre_explanation", "counterfactual", "mask")
_NUMBERS = ("p_before", "p_attack", "p_after", "l1", "l2", "linf", "changed_area", "iterations")
_COLUMNS = ["metric", "value", "low", "high", "n", "subset", "convention"]


def log_run(loggers: Sequence[Logger], store: RunStore, metrics: dict[str, Any], examples: int = 64) -> None:
    """Log a merged run, from its files; for rank zero.

    Args:
        loggers: every logger gets the metrics; a `WandbLogger` the gallery and a table of examples too.
        store: the run.
        metrics: what `ace.evaluation.evaluate` returned.
        examples: most rows of the table.
    """
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            _log_pictures(logger, store, examples)
    log_metrics(loggers, metrics)


def log_metrics(loggers: Sequence[Logger], metrics: dict[str, Any]) -> None:
    """Log the values of a run's metrics, to a `WandbLogger` with all that is needed to read them, and end its run.

    Args:
        loggers: of rank zero.
        metrics: what `ace.evaluation.evaluate` returned.
    """
    scalars = {f"metrics/{name}": measured["value"] for name, measured in metrics["metrics"].items()}
    scalars["metrics/n"] = metrics["n"]
    for logger in loggers:
        logger.log_metrics(scalars)
        logger.save()  # Lightning has closed them already: a CSVLogger would keep the row in memory
        if isinstance(logger, WandbLogger):
            rows = [_measured(name, measured) for name, measured in metrics["metrics"].items()]
            logger.log_table("evaluation", columns=_COLUMNS, data=rows)
            logger.experiment.finish()  # W&B's closing lines come before ours


def _measured(name: str, measured: dict[str, Any]) -> list[Any]:
    interval = measured["interval"] or (None, None)
    return [name, measured["value"], *interval, measured["n"], measured["subset"], measured["convention"]]


def _log_pictures(logger: WandbLogger, store: RunStore, examples: int) -> None:
    import wandb

    records = [record for record in store.records() if record.explained]
    if not records:
        return
    logger.log_image("gallery", [load_png(store.folder / "gallery.png")])
    columns = ["id", "status", "prediction", "target", *_PICTURES, *_NUMBERS]
    rows = [_row(store, record, wandb.Image) for record in records[:examples]]
    logger.log_table("counterfactuals", columns=columns, data=rows)


def _row(store: RunStore, record: Record, picture: type) -> list[Any]:
    names = [store.class_name(record.prediction), store.target_name(record.target)]
    # uint8 arrays: W&B truncates floats in [0, 1] to black pictures.
    pictures = [picture(load_png(store.image_path(kind, record.id)).squeeze()) for kind in _PICTURES]
    return [record.id, record.status, *names, *pictures, *(getattr(record, name) for name in _NUMBERS)]
