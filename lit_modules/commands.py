"""The commands of ``explain.py``: wiring between the command line, the trainer and the run folder."""

from __future__ import annotations

import copy
import hashlib
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser
from lightning.pytorch.loggers import Logger
from tqdm import tqdm

from ace.evaluation import evaluate as evaluate_store
from ace.files import WriteError
from ace.images import from_uint8, load_png
from ace.models.identity import folder_hash
from ace.models.unet import local_folder
from ace.preflight import UnfitNetworkError
from ace.record import Record, check_id
from ace.report import write_comparison, write_figure, write_gallery, write_report
from ace.run_lock import RunLock
from ace.run_progress import RunProgress
from ace.run_store import RunStore
from ace.slots import Query
from callbacks.counterfactual_progress import CounterfactualProgress
from callbacks.counterfactual_writer import CounterfactualWriter, write_explanation
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

HALF = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
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
    with _locked(cli.config.output_dir) if trainer.is_global_zero else nullcontext():
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
                _finish(store, trainer.loggers, cli.config.examples)
            _check_outcome(store, todo, cli.config.max_failures)
    return store


def refine(
    run: str, threshold: float | None = None, dilation: int | None = None, output_dir: str | None = None
) -> RunStore:
    """Redo the second stage of a run from its stored pre-explanations, into a new run folder.

    Args:
        run: folder of the run.
        threshold: relative change from which a pixel is repainted; by default as in the run.
        dilation: size in pixels over which the change is spread; by default as in the run.
        output_dir: the new folder; by default the run's name with the two settings.
    """
    source, target, model = one_sentence(lambda: _set_up_refinement(run, threshold, dilation, output_dir))
    with _locked(target.folder):
        _refine(source, target, model)
    return target


def report(run: str, compare: list[str] | None = None) -> None:
    """Draw the gallery picture and the page of a run, and a page of several runs side by side.

    Args:
        run: folder of the run.
        compare: folders of further runs; ``compare.html`` in the first run's folder shows their common images.
    """
    stores = [one_sentence(partial(RunStore.open, folder)) for folder in (run, *(compare or []))]
    paths = [one_sentence(partial(draw, stores[0])) for draw in (write_gallery, write_report)]
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


def _refine(source: RunStore, target: RunStore, model: LitCounterfactual) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    explainer = model.place(device).explainer
    finished = target.finished_ids()
    todo = [record for record in source.records() if record.id not in finished]
    for record in todo:
        if not record.explained:
            original = source.image_path("original", record.id)
            target.add(record, {"original": load_png(original)} if original.exists() else {})
    explained = [record for record in todo if record.explained]
    for start in tqdm(range(0, len(explained), explainer.slots), desc="Refining", disable=None):
        chunk = explained[start : start + explainer.slots]
        with torch.autocast(device.type, HALF.get(source.settings["precision"]), source.settings["precision"] in HALF):
            explanations = explainer.refine([_stored_query(source, record, model) for record in chunk])
        for explanation in explanations:
            write_explanation(target, explanation, explainer.seed)
    _finish(target)


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
def _locked(folder: str | Path) -> Iterator[None]:
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
    settings = _settings(config, cli.model, cli.trainer.precision)
    store = RunStore.create(config["output_dir"], config, settings, cli.trainer.global_rank)
    cli.datamodule.finished_ids = store.finished_ids
    left = len(set(ids) - store.finished_ids())
    if cli.trainer.is_global_zero:
        print(f"{len(ids)} images to explain, {len(ids) - left} of them done before, in {store.folder}")
    return store, left


def _settings(config: dict[str, Any], model: LitCounterfactual, precision: str) -> dict[str, Any]:
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


def _set_up_refinement(
    run: str, threshold: float | None, dilation: int | None, output_dir: str | None
) -> tuple[RunStore, RunStore, LitCounterfactual]:
    source = RunStore.open(run)
    config = copy.deepcopy(source.config)
    refinement = config["model"]["refinement"]
    refinement.update({k: v for k, v in {"threshold": threshold, "dilation": dilation}.items() if v is not None})
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(LitCounterfactual, "model")
    model = parser.instantiate_classes(parser.parse_object({"model": config["model"]})).model
    settings = _settings(config, model, source.settings["precision"])
    if settings["weights"] != source.settings["weights"]:
        raise ValueError(f"the weights have changed since {run} was made: {source.config['model']['classifier']!r} or "
                         f"{source.config['model']['diffusion']!r} is not what the run used; restore it")  # fmt: skip
    name = f"{source.folder.name}-threshold{refinement['threshold']}-dilation{refinement['dilation']}"
    settings["refined_from"] = source.settings_hash  # `generate` would repair, from other pre-explanations
    target = RunStore.create(output_dir or source.folder.parent / name, config, settings)
    return source, target, model


def _stored_query(store: RunStore, record: Record, model: LitCounterfactual) -> Query:
    """An image of a run as it was after the first stage."""
    image, pre_explanation = (
        from_uint8(load_png(store.image_path(kind, record.id))).to(model.device)
        for kind in ("original", "pre_explanation")
    )
    allowed = model.earlier.allowed(image[None], [record.id])
    return Query(
        record.id,
        image,
        target=record.target,
        prediction=record.prediction,
        label=record.label,
        p_before=record.p_before,
        allowed=None if allowed is None else allowed[0],
        iterations=record.iterations,
        repairs=record.repairs or 0,
        unet_forwards=record.unet_forwards,
        unet_backwards=record.unet_backwards,
        seconds=record.seconds,
        peak_memory=record.peak_memory or 0,
        pre_explanation=pre_explanation,
    )


def _finish(store: RunStore, loggers: Sequence[Logger] = (), examples: int = 0) -> None:
    """Merge, measure and show what is done of a run."""
    metrics = evaluate_store(store)
    paths = [write_gallery(store)] if any(record.explained for record in store.records()) else []
    paths.append(write_report(store))
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
