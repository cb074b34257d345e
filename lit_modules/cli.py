"""The command lines: LightningCLI with one output folder for everything that a run writes."""

from __future__ import annotations

import logging
import os
import re
import string
import sys
import warnings
from argparse import ArgumentError, ArgumentTypeError
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from ace.precision import PRECISIONS
from ace.run_lock import RunLockedError
from ace.versions import versions
from callbacks.filter_check import FilterCheck
from callbacks.last_checkpoint import LastCheckpoint, last_checkpoint
from callbacks.wandb_mode import never_prompt
from callbacks.wandb_run import remember_run, remembered_run
from datamodules.base import ImageDataModule, Split
from lit_modules.training import TrainingModule

# What is wrong with the user's input; the third is how jsonargparse tells of a class that cannot be made, the last
# how Lightning's trainer tells of devices that are not there.
INPUT_ERRORS = (ValueError, TypeError, ArgumentError, OSError, MisconfigurationException)


class OutputCLI(LightningCLI):
    """``--output_dir`` drives the trainer's folder and the logger's; W&B never asks questions."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--output_dir",
            type=output_folder,
            default="outputs/run",
            help="Folder of all that the run writes; $NAME in it stands for an environment variable.",
        )
        parser.link_arguments("output_dir", "trainer.default_root_dir")
        parser.link_arguments("output_dir", "trainer.logger.init_args.save_dir")

    def before_instantiate_classes(self) -> None:
        for logger in self._loggers():
            if isinstance(self.active_config.trainer.logger, list) and "save_dir" in logger.get("init_args", {}):
                logger.init_args.save_dir = self.active_config.output_dir  # links reach a single logger only
        if self._loggers("WandbLogger"):
            never_prompt()
        _quieten_lightning()

    @property
    def active_config(self) -> Namespace:
        """The configuration of the subcommand, or all of it where there are none."""
        return self.config[self.subcommand] if self.subcommand else self.config

    def instantiate_classes(self) -> None:
        one_sentence(super().instantiate_classes)

    def go_on_with_wandb_run(self) -> None:
        """Have W&B's logger go on with the run of the output folder, unless another id is given."""
        for logger in self._loggers("WandbLogger"):
            if not logger.init_args.get("id"):
                logger.init_args.id = remembered_run(self.active_config.output_dir).get("id")

    def _loggers(self, ending: str = "") -> list[Namespace]:
        """The configured loggers whose class has a name of this ending."""
        loggers = self.active_config.trainer.logger
        configured = loggers if isinstance(loggers, list) else [loggers]  # or true, or false
        return [logger for logger in configured if isinstance(logger, Namespace) and logger.class_path.endswith(ending)]


class TrainCLI(OutputCLI):
    """Trains a classifier or a diffusion model; a classifier takes the names of its classes from the data."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_arguments_to_parser(parser)
        parser.add_lightning_class_args(LastCheckpoint, "checkpoint")
        parser.link_arguments("output_dir", "checkpoint.folder", compute_fn=checkpoint_folder)
        parser.link_arguments("data.class_names", "model.init_args.class_names", apply_on="instantiate")

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Lightning's without predict, which is what `explain.py` does."""
        return {name: skipped for name, skipped in LightningCLI.subcommands().items() if name != "predict"}

    def before_instantiate_classes(self) -> None:
        super().before_instantiate_classes()
        one_sentence(self._refuse_overfitting)
        one_sentence(self._find_last_checkpoint)
        one_sentence(self._check_weights)

    def instantiate_classes(self) -> None:
        super().instantiate_classes()
        reason = "weights, their average and images are float32 here"
        one_sentence(lambda: check_precision(self.trainer, reason))
        if self.trainer.loggers:  # Lightning's callback refuses to work without
            self.trainer.callbacks.append(LearningRateMonitor())

    def before_fit(self) -> None:
        self._check("train", *(["val"] if self.trainer.limit_val_batches else []))

    def before_validate(self) -> None:
        self._check("val")

    def before_test(self) -> None:
        self._check("test")

    def _check(self, *splits: Split) -> None:
        """End with a sentence where there are not enough images, or the network does not take them."""
        model, data = self.model, self.datamodule
        if isinstance(data, ImageDataModule):
            for split in splits:
                one_sentence(partial(data.check, split, self.trainer.world_size))
            if isinstance(model, TrainingModule):
                one_sentence(partial(model.check, data))
            for check in self.trainer.callbacks:
                if isinstance(check, FilterCheck) and self.subcommand != "test":
                    one_sentence(partial(check.prepare, model, data))

    def _refuse_overfitting(self) -> None:
        """For this Lightning makes loaders of its own, and cannot make one that knows where to go on."""
        if count := self.active_config.trainer.overfit_batches:
            raise ValueError(
                f"trainer.overfit_batches is {count}, and trainings here cannot do without their own order of images: "
                f"shorten the epochs by --trainer.limit_train_batches {count}"
            )

    def _find_last_checkpoint(self) -> None:
        """Put a path in the place of ``--ckpt_path last``: Lightning would begin anew where there is none."""
        config = self.active_config
        if config.get("ckpt_path") == "last":
            path = last_checkpoint(checkpoint_folder(config.output_dir))
            if not path.is_file():
                raise FileNotFoundError(f"nothing to go on from: there is no {path}; leave --ckpt_path out to begin")
            config.ckpt_path = str(path)
            if self.subcommand == "fit":
                self.go_on_with_wandb_run()

    def _check_weights(self) -> None:
        """Refuse to measure a new network; one's own module without ``pretrained`` may find weights in another way."""
        config = self.active_config
        new = config.get("ckpt_path") is None and config.get("model.init_args.pretrained", "unknown") is None
        if self.subcommand in ("validate", "test") and new:
            raise ValueError(
                f"{self.subcommand} would measure random weights: give --ckpt_path last for the end of the training in "
                f"{config.output_dir}, or --model.pretrained FOLDER for an exported network"
            )


class LogConfigCallback(SaveConfigCallback):
    """Gives the resolved configuration and the versions of the code to the loggers too.

    Which W&B run a training has is noted in its output folder, for a training that goes on.
    """

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        config = plain_config(self.parser, self.config)
        for logger in trainer.loggers:
            logger.log_hyperparams(config | {"versions": versions()})
        if stage == "fit":
            remember_run(trainer.loggers, trainer.default_root_dir)


def output_folder(path: str) -> str:
    """Put the values of environment variables in the place of their names: runs of a sweep differ in nothing else.

    A ``~`` that the shell has left becomes the home folder.

    Raises:
        ArgumentTypeError: one is not set; of other errors the parser would not tell the reason.
    """
    try:
        return os.path.expanduser(string.Template(path).substitute(os.environ))
    except KeyError as error:
        raise ArgumentTypeError(f"{path!r} is not complete, the environment has no {error.args[0]}: set it") from error


def check_precision(trainer: Trainer, reason: str) -> None:
    """Refuse a precision in which the weights or the images are not float32.

    Args:
        trainer: as it is configured.
        reason: why, for the message.

    Raises:
        ValueError: it is none of `PRECISIONS`.
    """
    if trainer.precision not in PRECISIONS:
        raise ValueError(f"trainer.precision is {trainer.precision}: use one of {', '.join(PRECISIONS)} ({reason})")


def plain_config(parser: LightningArgumentParser, config: Namespace) -> dict[str, Any]:
    """A resolved configuration in plain values, with what is null: that can be a choice, as ``stop: null``."""
    return yaml.safe_load(parser.dump(config, skip_none=False, skip_link_targets=False))


def checkpoint_folder(output_dir: str) -> str:
    """Where a run keeps the checkpoint that it can go on from."""
    return str(Path(output_dir) / "checkpoints")


def _quieten_lightning() -> None:
    """Leave out Lightning's advertisements and its warnings about its own code: the user can do nothing about them."""
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    logger.addFilter(lambda record: "litlogger" not in record.getMessage() and "litmodels" not in record.getMessage())
    warnings.filterwarnings("ignore", message=".*LeafSpec.*is deprecated")
    warnings.filterwarnings("ignore", message="Total length of `DataLoader` across ranks is zero")  # all done before
    warnings.filterwarnings("ignore", message=".*overridden `on_before_batch_transfer` in `LightningModule`")
    warnings.filterwarnings(
        "ignore", message=".*recommended to use `self.log.*sync_dist=True"
    )  # metrics sync themselves


def one_sentence(set_up: Callable[[], Any]) -> Any:
    """Run a set-up function; what is wrong with the user's input ends the program with its sentence alone."""
    try:
        return set_up()
    except (*INPUT_ERRORS, RunLockedError) as error:
        sys.exit(f"error: {sentence(error)}")


def sentence(error: Exception) -> str:
    """What an error says; of what jsonargparse lists about the members of a union, our own part."""
    # Ours is the last that is not about the type.
    about_types = "Expected a |Not a valid subclass |Does not validate |a class path |a dict with"
    members = rf"\n +- (?!{about_types})(.*?)(?=\n +- |\n *Given value type:)"
    ours = re.findall(members, str(error).partition("Errors:")[2], re.DOTALL)
    return ours[-1] if ours else str(error)
