"""What a run of explanations looks like in Weights & Biases, as tables."""

from __future__ import annotations

from typing import Any

import wandb
from wandb.plot import CustomChart

from ace.examples import choose_examples, example_pictures
from ace.record import Record, outcome_and_reason
from ace.run_store import RunStore

PICTURES = ("original", "pre_explanation", "counterfactual", "mask", "change")
NUMBERS = ("p_before", "p_attack", "p_after", "l1", "l2", "linf", "changed_area", "iterations")
CAPTIONS = {
    "original": "{prediction}; {target} {p_before:.2f}",
    "pre_explanation": "{target} {p_attack:.2f}",
    "counterfactual": "{status}; {target} {p_before:.2f} -> {p_after:.2f}",
    "mask": "{changed_area:.1%} repainted",
    "change": "mean change {l1:.4f}",
}


def examples_table(store: RunStore, count: int) -> wandb.Table:
    """Chosen images with their pictures and numbers, a row each.

    The mask is the original with the repainted region tinted: seen at a glance, in every export of the table.
    """
    columns = ["id", "status", "label", "prediction", "target", *PICTURES, *NUMBERS]
    return wandb.Table(columns=columns, data=[_row(store, record) for record in choose_examples(store, count)])


def outcome_table(metrics: dict[str, Any]) -> wandb.Table:
    """How many images ended in which way; skipped and failed ones with the reason."""
    rows = [[*outcome_and_reason(status), count] for status, count in metrics["status"].items()]
    return wandb.Table(columns=["status", "reason", "images"], data=rows)


def flip_rate_chart(metrics: dict[str, Any]) -> CustomChart:
    """The flip rate of each pair of prediction and target, as bars."""
    rows = [[pair, found["flip_rate"], found["n"]] for pair, found in metrics["directions"].items()]
    table = wandb.Table(columns=["pair", "flip rate", "images"], data=rows)
    return wandb.plot.bar(table, "pair", "flip rate", title="Flip rate")


def evaluation_table(metrics: dict[str, Any]) -> wandb.Table:
    """The metrics with their intervals, subsets and conventions."""
    columns = ["metric", "value", "low", "high", "n", "subset", "convention"]
    rows = []
    for name, measured in metrics["metrics"].items():
        interval = measured["interval"] or (None, None)
        rows.append([name, measured["value"], *interval, measured["n"], measured["subset"], measured["convention"]])
    return wandb.Table(columns=columns, data=rows)


def _row(store: RunStore, record: Record) -> list[Any]:
    names = {
        "status": record.status,
        "label": store.class_name(record.label),
        "prediction": store.class_name(record.prediction),
        "target": store.target_name(record.target),
    }
    numbers = {name: getattr(record, name) for name in NUMBERS}
    # uint8 arrays: W&B truncates floats in [0, 1] to black pictures.
    pictures = [
        wandb.Image(picture.squeeze(), caption=CAPTIONS[kind].format(**names, **numbers))
        for kind, picture in example_pictures(store, record).items()
    ]
    return [record.id, *names.values(), *pictures, *numbers.values()]
