"""Show a run of explanations in the loggers: its settings first, what came of it at the end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from lightning.pytorch.loggers import Logger, WandbLogger

from ace.images import load_png
from ace.run_store import RunStore
from callbacks.log_media import log_histogram, log_image
from callbacks.wandb_artifacts import log_artifact, staging
from callbacks.wandb_tables import evaluation_table, examples_table, flip_rate_chart, outcome_table

HISTOGRAMS = ("iterations", "l1", "p_after")
FILES = ("config.yaml", "records.csv", "metrics.json", "gallery.png")


def log_config(loggers: Sequence[Logger], store: RunStore) -> None:
    """Log the resolved configuration, the settings with the hashes of the weights, and the versions of the code."""
    for logger in loggers:
        logger.log_hyperparams(store.config | {"settings": store.settings, "versions": store.versions})


def log_run(loggers: Sequence[Logger], store: RunStore, metrics: dict[str, Any], examples: int = 64) -> None:
    """Log a merged run, from its files; for rank zero.

    Args:
        loggers: every logger gets the metrics; Weights & Biases and TensorBoard get the gallery and the distributions
            of `HISTOGRAMS`; Weights & Biases gets the tables of `callbacks.wandb_tables` and the run's `FILES`.
        store: the run.
        metrics: what `ace.evaluation.evaluate` returned.
        examples: most rows of the table of examples, see `ace.examples.choose_examples`.
    """
    explained = [record for record in store.records() if record.explained] if loggers else []
    if explained:
        log_image(loggers, "gallery", load_png(store.folder / "gallery.png"), _step(metrics))
        for name in HISTOGRAMS:
            values = [getattr(record, name) for record in explained]
            log_histogram(loggers, f"histogram/{name}", values, _step(metrics))
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            shown = {"outcomes": outcome_table(metrics)}
            if explained:
                shown["counterfactuals"] = examples_table(store, examples)
                shown["flip_rate"] = flip_rate_chart(metrics)
            with staging(logger):
                logger.log_metrics(shown, _step(metrics))
    log_metrics(loggers, store, metrics)


def log_metrics(loggers: Sequence[Logger], store: RunStore, metrics: dict[str, Any]) -> None:
    """Log the metrics of a run and how many images ended in which way, and close the loggers.

    A `WandbLogger` gets a table with all that is needed to read the metrics too, and an artifact of the run's `FILES`.

    Args:
        loggers: of rank zero.
        store: the run.
        metrics: what `ace.evaluation.evaluate` returned.
    """
    scalars = {f"metrics/{name}": measured["value"] for name, measured in metrics["metrics"].items()}
    scalars |= {"metrics/n": metrics["n"], **_outcomes(metrics)}
    for logger in loggers:
        logger.log_metrics(scalars, _step(metrics))
        logger.save()  # Lightning has closed them already: a CSVLogger would keep the row in memory
        if isinstance(logger, WandbLogger):
            with staging(logger):
                logger.log_metrics({"evaluation": evaluation_table(metrics)}, _step(metrics))
            files = [path for name in FILES if (path := store.folder / name).exists()]
            log_artifact(logger, "counterfactuals", "counterfactuals", files, {"settings_hash": store.settings_hash})
            logger.experiment.finish()  # W&B's closing lines come before ours


def _outcomes(metrics: dict[str, Any]) -> dict[str, int]:
    """Numbers of images by status, without the reasons."""
    counts = Counter()
    for status, count in metrics["status"].items():
        counts[f"status/{status.partition(':')[0]}"] += count
    return dict(counts)


def _step(metrics: dict[str, Any]) -> int:
    """Images done, as while they were made."""
    return sum(metrics["status"].values())
