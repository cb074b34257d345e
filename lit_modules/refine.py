"""The command ``refine`` of ``explain.py``: the second stage once more."""

from __future__ import annotations

import copy
import sys

import torch
from jsonargparse import ArgumentParser
from tqdm import tqdm

from ace.explanation import Explanation
from ace.images import from_uint8, load_png
from ace.memory_fallback import within_memory
from ace.precision import autocast
from ace.record import Record
from ace.run_store import RunStore
from ace.saving import save_explanation
from ace.slots import Query
from lit_modules.cli import one_sentence
from lit_modules.commands import finish, locked, settings_of
from lit_modules.counterfactual import LitCounterfactual


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
    with locked(target.folder):
        try:
            _refine(source, target, model)
        except torch.OutOfMemoryError:
            sys.exit("error: the memory is not enough for one image: free some, and the same command goes on")
    return target


def _set_up_refinement(
    run: str, threshold: float | None, dilation: int | None, output_dir: str | None
) -> tuple[RunStore, RunStore, LitCounterfactual]:
    source = RunStore.open(run)
    if not source.names_networks:
        raise ValueError(f"{run} was made from Python, and its config.yaml names no networks: explain once more there")
    config = copy.deepcopy(source.config)
    refinement = config["model"]["refinement"]
    refinement.update({k: v for k, v in {"threshold": threshold, "dilation": dilation}.items() if v is not None})
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(LitCounterfactual, "model")
    model = parser.instantiate_classes(parser.parse_object({"model": config["model"]})).model
    settings = settings_of(config, model, source.settings["precision"])
    if settings["weights"] != source.settings["weights"]:
        raise ValueError(f"the weights have changed since {run} was made: {source.config['model']['classifier']!r} or "
                         f"{source.config['model']['diffusion']!r} is not what the run used; restore it")  # fmt: skip
    name = f"{source.folder.name}-threshold{refinement['threshold']}-dilation{refinement['dilation']}"
    settings["refined_from"] = source.settings_hash  # `generate` would repair, from other pre-explanations
    target = RunStore.create(output_dir or source.folder.parent / name, config, settings)
    return source, target, model


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

    def refined() -> list[Explanation]:
        """Those of the next records; fewer where the memory is not enough."""
        with autocast(device, source.settings["precision"]):
            return explainer.refine([_stored_query(source, record, model) for record in explained[: explainer.slots]])

    with tqdm(total=len(explained), desc="Refining", disable=None) as bar:
        while explained:
            explanations = within_memory(explainer, refined)
            for explanation in explanations:
                save_explanation(target, explanation, explainer.seed)
            explained = explained[len(explanations) :]
            bar.update(len(explanations))
    finish(target)


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
