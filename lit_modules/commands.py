"""The commands of ``explain.py``: wiring between the command line, the trainer and the run folder."""

from __future__ import annotations

import hashlib
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.loggers import Logger

from ace.evaluation import evaluate as evaluate_store
from ace.files import WriteError
from ace.models.identity import folder_hash
from ace.models.unet import local_folder
from ace.preflight import UnfitNetworkError
from ace.record import check_id
from ace.report import write_comparison, write_figure, write_gallery, write_report
from ace.run_lock import RunLock
from ace.run_progress import RunProgress
from ace.run_store import RunStore
from callbacks.counterfactual_progress import CounterfactualProgress
from callbacks.counterfactual_writer import CounterfactualWriter
from callbacks.log_run import log_config, log_run
from callbacks.progress_logger import ProgressLogger
from callbacks.run_estimate import RunEstimate
from callbacks.stop_run import StopRun
from callbacks.wandb_run import remember_run
from datamodules.base import LOADING_ARGUMENTS
from lit_modules.cli import one_sentence
from lit_modules.closing_summary import print_paths, print_summary
from lit_modules.counterfactual import MEMORY_ARGUMENTS, LitCounterfactual
from lit_modules.set_up import ExplainCLI, check_fit, make_cli

# What stands in the settings by its content instead, or not at all.
ELSEWHERE = ("classifier", "diffusion", "avoid", "repel", *MEMORY_ARGUMENTS)


def generate(args: list[str]) -> RunStore | None:
    """Explain the images of a data module: writes a run folder, or continues the one that is there."""
    cli, todo = one_sentence(lambda: _set_up(args))
    trainer, dry_run = cli.trainer, cli.config.dry_run
    if shows_bar := trainer.progress_bar_callback is not None:
        trainer.callbacks.remove(trainer.progress_bar_callback)
    trainer.callbacks.append(RunEstimate(dry_run))
    if dry_run:
        trainer.loggers = []
        _predict(cli)
        return None
    with locked(cli.config.output_dir) if trainer.is_global_zero else nullcontext():
        store, left = one_sentence(lambda: _open_store(cli, todo))
        cli.model.kept_slots = store.config["model"].get("slots")
        progress = RunProgress(store, left)
        # In this order: what is shown at the end is shown when all is written, and the other processes have ended too.
        writer = CounterfactualWriter(store, cli.model.explainer.seed)
        trainer.callbacks += [writer, StopRun(writer, len(todo))]
        trainer.callbacks += [ProgressLogger(progress)] + [CounterfactualProgress(progress)] * shows_bar
        log_config(trainer.loggers, store)
        remember_run(trainer.loggers, store.folder)
        _predict(cli)
        if trainer.is_global_zero:
            if store.finished_ids():
                finish(store, trainer.loggers, cli.config.examples)
            _check_outcome(store, todo, cli.config.max_failures)
    return store


def report(run: str, compare: list[str] | None = None) -> None:
    """Draw the gallery picture and the page of a run, and a page of several runs side by side.

    Args:
        run: folder of the run.
        compare: folders of further runs; ``compare.html`` in the first run's folder shows their common images.
    """
    stores = [one_sentence(partial(RunStore.open, folder)) for folder in (run, *(compare or []))]
    paths = one_sentence(partial(_draw, stores[0]))
    if compare:
        paths.append(one_sentence(lambda: write_comparison(stores)))
    print_paths(stores[0], paths)


def figure(
    run: str,
    compare: list[str] | None = None,
    ids: list[str] | None = None,
    out: str | None = None,
    max_images: int = 6,
    width: float = 6.9,
    dpi: int = 300,
) -> None:
    """Arrange examples of a run, or of several side by side, as a figure for a paper.

    Args:
        run: folder of the run.
        compare: folders of further runs, whose counterfactuals of the same images stand beside it.
        ids: the images, a row each; by default spread evenly over the directions.
        out: file to write, ``.pdf`` or ``.png``; by default ``figure.pdf`` in the run folder.
        max_images: most images to choose where no ids are given.
        width: width of the figure in inches; 6.9 are both columns of a page.
        dpi: pixels in an inch of the pictures.
    """
    stores = [one_sentence(partial(RunStore.open, folder)) for folder in (run, *(compare or []))]
    path = out or stores[0].folder / "figure.pdf"
    print_paths(stores[0], [one_sentence(lambda: write_figure(stores, path, ids, max_images, width, dpi))])


def _predict(cli: ExplainCLI) -> None:
    """Go through the images; networks that the first of them show to be unfit, or too large, end the program."""
    try:
        cli.trainer.predict(cli.model, datamodule=cli.datamodule, return_predictions=False)
    except UnfitNetworkError as error:
        sys.exit(f"error: {error}")
    except torch.OutOfMemoryError:
        sys.exit(f"error: the memory is not enough: {_memory_remedies(cli.model)}")


def _memory_remedies(model: LitCounterfactual) -> str:
    """What helps where images cannot be explained one at a time: first what lets the run go on as it is."""
    diffusion_filter = model.diffusion_filter
    least = model.explainer.slots == 1 and diffusion_filter.segments == diffusion_filter.steps
    smaller = "" if least else f", or give --model.slots 1 --model.segments {diffusion_filter.steps}"
    return (
        f"free some{smaller}, and the same command goes on with what is left to do; a run in another --output_dir "
        "needs less with --trainer.precision bf16-mixed, on a GPU, or a smaller --data.image_size"
    )


@contextmanager
def locked(folder: str | Path) -> Iterator[None]:
    """Keep other runs out of a run folder; a disk that is full later on ends the program with its sentence too."""
    lock = RunLock(folder)
    one_sentence(lock.acquire)
    try:
        yield
    except WriteError as error:
        sys.exit(f"error: {error}")
    finally:
        lock.release()


def _set_up(args: list[str]) -> tuple[ExplainCLI, list[str]]:
    """Everything that can fail on the user's input, before any long work; the ids of the images to explain."""
    cli = make_cli(args, generate, options="[--output_dir DIR]")
    data = cli.datamodule
    ids = [check_id(image_id) for image_id in data.predict_ids()]
    if len(set(ids)) < len(ids):
        repeated = len(ids) - len(set(ids))
        raise ValueError(f"{repeated} ids of {type(data).__name__} are not unique: every image needs its own")
    check_fit(cli)
    return cli, ids


def _open_store(cli: ExplainCLI, ids: list[str]) -> tuple[RunStore, int]:
    """Make the run folder, or find out what is done in the one that is there; also how many images are left."""
    config = cli.plain_config()
    settings = settings_of(config, cli.model, cli.trainer.precision)
    store = RunStore.create(config["output_dir"], config, settings, cli.trainer.global_rank)
    cli.datamodule.finished_ids = store.finished_ids
    left = len(set(ids) - store.finished_ids())
    if cli.trainer.is_global_zero:
        print(f"{len(ids)} images to explain, {len(ids) - left} of them done before, in {store.folder}")
    return store, left


def settings_of(config: dict[str, Any], model: LitCounterfactual, precision: str) -> dict[str, Any]:
    """What the results depend on: weights by content, not by place; nothing that only concerns memory or speed."""
    method, data, decision = config["model"], config["data"], model.explainer.decision
    return {
        "decision": {"class_names": decision.class_names, "target_names": decision.target_names},
        "precision": precision,
        "weights": {
            "classifier": model.classifier.identity,
            "diffusion": folder_hash(local_folder(method["diffusion"])),  # it can be a name on the hub
        },
        "model": {name: value for name, value in method.items() if name not in ELSEWHERE}
        | {"steps": model.diffusion_filter.steps},  # a count, also where a fraction was given
        "earlier": {name: [_content(run) for run in getattr(model.earlier, name)] for name in ("avoid", "repel")},
        "data": {
            "class_path": data["class_path"],
            **{name: value for name, value in data["init_args"].items() if name not in LOADING_ARGUMENTS},
        },
    }


def _content(store: RunStore) -> str:
    """What an earlier run holds: its results follow from its settings."""
    ids = "\n".join(sorted(store.finished_ids()))
    return f"{store.settings_hash}, images {hashlib.sha256(ids.encode()).hexdigest()}"


def _draw(store: RunStore) -> list[Path]:
    """The gallery, where there is an explained image, and the page."""
    galleries = [write_gallery(store)] if any(record.explained for record in store.records()) else []
    return [*galleries, write_report(store)]


def finish(store: RunStore, loggers: Sequence[Logger] = (), examples: int = 0) -> None:
    """Merge, measure and show what is done of a run."""
    metrics = evaluate_store(store)
    paths = _draw(store)
    log_run(loggers, store, metrics, examples)
    print_summary(store, metrics, paths)


def _check_outcome(store: RunStore, ids: list[str], max_failures: int) -> None:
    """End with an error if images are missing, or too many have failed; everything is written nevertheless."""
    errors = []
    if missing := len(set(ids) - store.finished_ids()):
        errors.append(f"{missing} of {len(ids)} images have no record: the same command again explains them")
    failed = Counter(record.status for record in store.records() if record.status.startswith("failed"))
    if failed.total() > max_failures:
        causes = "; ".join(f"{count} {status}" for status, count in failed.most_common(3))
        errors.append(f"{failed.total()} images failed, more than max_failures={max_failures} ({causes})")
    if errors:
        sys.exit(f"error: {', and '.join(errors)}")
