"""``explain.py calibrate``: settings for the user's own networks, found on images that are not explained later."""

from __future__ import annotations

import copy
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import ArgumentParser
from lightning.pytorch.cli import LightningArgumentParser
from torch.utils.data import DataLoader

from ace.attacks import Attack
from ace.calibration import Budget, Calibration, Survival, largest_tau, questions, usual_taus
from ace.diffusion_filter import filter_steps
from ace.explainer import CounterfactualExplainer
from ace.files import write_whole, writing
from ace.noise import generator
from ace.objective import Distance
from ace.refinement import Refinement
from ace.report import write_calibration
from ace.settings_search import MASK_NAMES, Settings, Trial, attack_names, choose
from ace.slots import Query
from datamodules.base import Split
from datamodules.loading import ReadableDataset, collate_readable
from lit_modules.calibration_table import NOT_REACHED, ORDER, OUTCOME_NAMES, Table
from lit_modules.cli import one_sentence
from lit_modules.counterfactual import LitCounterfactual
from lit_modules.metric_table import print_line
from lit_modules.set_up import ExplainCLI, check_fit, make_cli


@dataclass(frozen=True)
class Options:
    """Options of the calibration.

    Args:
        budget: minutes; the first settings of each stage are tried in any case.
        out: YAML file to write, with a plot beside it; by default named after output_dir.
        split: the images; not those that are going to be explained.
        share: the largest tau is taken whose filter keeps so many of the decisions.
        taus: values of tau to try, in respaced steps; by default up to half of the chain.
        images: so many, of those that have a target, are filtered for the curve over tau.
        search_images: so many of these are explained with each setting.

    Raises:
        ValueError: a number out of range.
    """

    budget: float = 30.0
    out: str | None = None
    split: Split = "val"
    share: float = 0.98
    taus: list[int] | None = None
    images: int = 64
    search_images: int = 24

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"share must be in (0, 1], got {self.share}")
        if self.taus is not None and not self.taus:
            raise ValueError("taus is empty: name at least one, or leave it out")
        for name in ("images", "search_images"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


OPTIONS = [field.name for field in fields(Options)]
UNFINISHED = "The search was stopped before its end: the best settings until then."


class CalibrateCLI(ExplainCLI):
    """The command line of ``generate``, whose configurations it takes, with the calibration's own options."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_arguments_to_parser(parser)
        parser.add_class_arguments(Options, instantiate=False)


def calibrate(args: list[str]) -> Path:
    """Find tau, step, threshold and mask for your networks: prints a table, draws it and writes the YAML to use."""
    cli, options, out = one_sentence(lambda: _set_up(args))
    # Not into the folder of a run by the old settings, which would be refused.
    ending = ["--config", str(out), "--output_dir", f"{cli.config.output_dir}-calibrated"]
    command = f"python explain.py generate {shlex.join([*_without_options(args), *ending])}"
    method, table = cli.plain_config()["model"], Table()

    def keep(settings: Settings, *notes: str) -> None:
        comment = [f"  {command}", "", *notes, *table.lines]
        one_sentence(lambda: _write(out, overlay(method, settings), comment))

    budget, device = one_sentence(lambda: Budget(options.budget)), cli.trainer.strategy.root_device
    cli.model.place(device)
    with cli.trainer.precision_plugin.forward_context():
        queries, make = one_sentence(lambda: _queries(cli, options, device)), _factory(cli.model, method)
        table.add(f"{len(queries)} images of {options.split} that have a target")
        calibration = one_sentence(lambda: Calibration(make, queries, options.search_images, budget))
        start = start_settings(cli.model, method)
        taus = sorted(options.taus or usual_taus(method["respacing"]))
        curve = _curve(calibration, start, taus, options.share, table)
        tau = one_sentence(lambda: largest_tau(curve, options.share))
        table.add(f"tau {tau}: the largest of these that keeps at least {options.share:.1%}")
        attacks = _search("attack", attack_names(start), calibration.attacks(replace(start, steps=tau)), table, keep)
        if not choose(attacks).outcome.flipped:
            sys.exit(
                "error: none of these attacks flips an image: begin with other settings (--config "
                "configs/presets/best.yaml), and see whether the classifier decides as it should"
            )
        masks = _search("mask", MASK_NAMES, calibration.masks(choose(attacks).settings), table, keep)
    keep(choose(masks).settings)
    picture = out.with_suffix(".png")
    plot = one_sentence(lambda: write_calibration(picture, curve, options.share, tau, attacks, masks))
    for name, text in (("settings", out), ("plot", plot), ("next", command)):
        print_line(name, str(text))
    return out


def overlay(method: dict[str, Any], settings: Settings) -> dict[str, Any]:
    """The part of a configuration's ``model`` that is calibrated.

    Every argument is written out: where a class changes, jsonargparse keeps arguments of the same name.
    """
    attack, passes, segments = (copy.deepcopy(method[name]) for name in ("attack", "gradient_passes", "segments"))
    attack["init_args"] |= {"step_size": settings.step_size, "iterations": settings.iterations}
    if settings.threshold is not None:
        attack["init_args"]["threshold"] = settings.threshold
    return {
        "attack": attack,
        "distance": method["distance"] | {_norm(method["distance"]): settings.weight},
        "gradient_passes": None if passes is None else min(passes, settings.steps),
        "steps": settings.steps,
        "respacing": method["respacing"],
        "segments": None if segments is None else min(segments, settings.steps),
        "refinement": {"threshold": settings.mask_threshold, "dilation": settings.dilation},
    }


def start_settings(model: LitCounterfactual, method: dict[str, Any]) -> Settings:
    """The settings of a configuration.

    Raises:
        ValueError: the attack has no such arguments.
    """
    attack, refinement = method["attack"], method["refinement"]
    proximal = model.explainer.pool.attack.proximal
    names = ["step_size", "iterations"] + ["threshold"] * proximal
    if missing := [name for name in names if name not in attack["init_args"]]:
        raise ValueError(
            f"{attack['class_path']} has no {' and no '.join(missing)} to calibrate: choose an attack of ace.attacks, "
            "or give yours these arguments"
        )
    return Settings(
        steps=model.diffusion_filter.steps,
        step_size=attack["init_args"]["step_size"],
        iterations=attack["init_args"]["iterations"],
        threshold=attack["init_args"]["threshold"] if proximal else None,
        weight=method["distance"][_norm(method["distance"])],
        mask_threshold=refinement["threshold"],
        dilation=refinement["dilation"],
    )


def _norm(distance: dict[str, Any]) -> str:
    """Which weight of the distance is searched."""
    return "l2" if distance["l2"] and not distance["l1"] else "l1"


def _set_up(args: list[str]) -> tuple[CalibrateCLI, Options, Path]:
    """Everything that can fail on the user's input, before any long work; the file to write."""
    cli = make_cli(args, calibrate, CalibrateCLI, "[--budget MINUTES] [--out FILE] [--share SHARE]")
    options = Options(**{name: cli.config[name] for name in OPTIONS})
    if cli.config.dry_run:
        raise ValueError("dry_run is an option of generate: for a quick look at calibrate give it a small --budget")
    for tau in options.taus or []:
        filter_steps(tau, len(cli.model.diffusion_filter.timesteps))
    start_settings(cli.model, cli.plain_config()["model"])
    cli.datamodule.predict_split, cli.datamodule.num_images = options.split, None
    check_fit(cli)
    folder = Path(cli.config.output_dir)
    out = folder.with_name(f"{folder.name}-calibrated.yaml") if options.out is None else Path(options.out)
    if out.suffix not in (".yaml", ".yml"):
        raise ValueError(f"out is {out}: give it the ending .yaml")
    for path in (out, out.with_suffix(".png")):
        if path.exists():
            raise FileExistsError(f"{path} exists: name another file by --out, or remove it")
    out.parent.mkdir(parents=True, exist_ok=True)
    return cli, options, out


def _queries(cli: CalibrateCLI, options: Options, device: torch.device) -> list[Query]:
    """Images that have a target, in an order by chance: files are often sorted by class.

    Raises:
        ValueError: the networks cannot be explained.
    """
    model, data, queries = cli.model, cli.datamodule, []
    dataset = data.dataset(options.split)
    stream = generator(model.explainer.seed, options.split, "calibration")
    order = torch.randperm(len(dataset), generator=stream).tolist()
    readable = ReadableDataset(dataset, order)
    for batch in DataLoader(readable, batch_size=model.explainer.slots, collate_fn=collate_readable):
        if batch["id"]:
            images, labels = batch["image"].to(device), model.labels(batch, data)
            allowed = model.earlier.allowed(images, batch["id"])
            queries += questions(model.explainer, images, labels, batch["id"], allowed)
        if len(queries) >= options.images:
            break
    return queries[: options.images]


def _factory(model: LitCounterfactual, method: dict[str, Any]) -> Callable[[Settings], CounterfactualExplainer]:
    """Makes explainers of exactly what the YAML would say."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Attack, "attack")
    parser.add_class_arguments(Distance, "distance")
    parser.add_class_arguments(Refinement, "refinement")

    def make(settings: Settings) -> CounterfactualExplainer:
        found = overlay(method, settings)
        given = {name: found[name] for name in ("attack", "distance", "refinement")}
        parts = parser.instantiate_classes(parser.parse_object(given))
        diffusion_filter = model.diffusion_filter.with_steps(settings.steps)
        return model.make_explainer(
            diffusion_filter, parts.attack, parts.distance, parts.refinement, gradient_passes=found["gradient_passes"]
        )

    return make


def _curve(calibration: Calibration, start: Settings, taus: list[int], share: float, table: Table) -> list[Survival]:
    curve = []
    table.head("decisions that survive the filter", "tau", "survive", "95 % interval")
    for point in calibration.curve(start, taus, share):
        curve.append(point)
        table.survival(point)
    if left := [str(tau) for tau in taus if tau > curve[-1].tau]:
        fallen = curve[-1].interval[1] < share
        table.add(f"tau {', '.join(left)}: {'left out, too few survive already' if fallen else NOT_REACHED}")
    return curve


def _search(
    title: str, names: Sequence[str], trials: Iterable[Trial], table: Table, keep: Callable[..., None]
) -> list[Trial]:
    """Go through the trials; the best so far are kept, so that a calibration may be stopped."""
    table.head(title, *names, *OUTCOME_NAMES)
    found = []
    for trial in trials:
        found.append(trial)
        table.trial(trial, names)
        if choose(found).outcome.flipped:
            keep(choose(found).settings, UNFINISHED, "")
    table.add(f"{choose(found).settings.describe(names)}: {ORDER}")
    return found


def _without_options(args: list[str]) -> list[str]:
    """The arguments that are those of ``generate`` too."""
    kept, own = [], False
    for arg in args:
        if arg.startswith("--"):
            own = arg.removeprefix("--").partition("=")[0].rstrip("+") in OPTIONS
        if not own:
            kept.append(arg)
    return kept


def _write(path: Path, model: dict[str, Any], comment: list[str]) -> None:
    title = "Settings that `explain.py calibrate` found."
    lines = [f"# {line}".rstrip() for line in (title, "", *comment)]
    settings = yaml.safe_dump({"model": model}, sort_keys=False, width=120, default_flow_style=None)
    with writing(path):
        write_whole("\n".join([*lines, settings]).encode(), path)
