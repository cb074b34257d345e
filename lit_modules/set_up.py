"""What ``generate`` and ``calibrate`` make of a command line."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
from jsonargparse import Namespace
from jsonargparse.typing import NonNegativeInt
from lightning import Trainer
from lightning.pytorch.cli import LightningArgumentParser

from ace.preflight import check_networks
from datamodules.base import ImageDataModule
from lit_modules.cli import OutputCLI, check_precision, plain_config
from lit_modules.counterfactual import UNPLANNED, LitCounterfactual

TIMEOUT = timedelta(days=7)


class ExplainCLI(OutputCLI):
    """Sets up everything for an explanation run, and runs nothing; a batch of data fills the slots."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_arguments_to_parser(parser)
        parser.add_argument("--dry_run", action="store_true", help="Estimate time and memory, and write nothing.")
        parser.add_argument(
            "--max_failures",
            type=NonNegativeInt,
            default=0,
            help="Exit with an error if more images than this have failed.",
        )
        parser.add_argument(
            "--examples",
            type=NonNegativeInt,
            default=64,
            help="Most images in the table of examples in Weights & Biases.",
        )
        parser.link_arguments("model.slots", "data.init_args.batch_size", compute_fn=lambda slots: slots or UNPLANNED)

    def before_instantiate_classes(self) -> None:
        """Go on with the run folder's W&B run, and let processes wait for the slowest at the end.

        Their shares differ by more than half an hour.
        """
        super().before_instantiate_classes()
        self.go_on_with_wandb_run()
        trainer = self.config.trainer
        several = torch.cuda.device_count() > 1 if trainer.devices == "auto" else trainer.devices not in (1, "1")
        several = several or trainer.num_nodes > 1
        if trainer.strategy == "ddp" or (trainer.strategy == "auto" and several):
            patience = {"class_path": "lightning.pytorch.strategies.DDPStrategy", "init_args": {"timeout": TIMEOUT}}
            trainer.strategy = Namespace(patience)

    def parse_arguments(self, parser: LightningArgumentParser, args: list[str] | None) -> None:
        with warnings.catch_warnings():  # `explain.py` has taken its command's name off the arguments on purpose
            warnings.filterwarnings("ignore", message="LightningCLI's args parameter")
            super().parse_arguments(parser, None if args is None else _join_paths(args))

    def plain_config(self) -> dict[str, Any]:
        """The resolved configuration in plain values."""
        return plain_config(self.parser, self.config)


def make_cli(
    args: list[str], command: Callable[..., Any], cli_class: type[ExplainCLI] = ExplainCLI, options: str = ""
) -> ExplainCLI:
    """Networks, data and trainer of a command line; nothing is run.

    Args:
        args: the command line.
        command: which command it is, for the help.
        cli_class: with the command's own options.
        options: the command's own options, for the usage.

    Raises:
        ValueError, TypeError, OSError: something does not fit, or is not there.
    """
    cli = cli_class(
        LitCounterfactual,
        ImageDataModule,
        subclass_mode_data=True,
        run=False,
        save_config_callback=None,
        trainer_defaults={"inference_mode": False},  # in inference mode there are no gradients
        seed_everything_default=False,  # the seed of the method is the model's
        auto_configure_optimizers=False,
        parser_kwargs={
            "prog": f"explain.py {command.__name__}",
            "usage": f"%(prog)s --config FILE {options} [--model.NAME ..] [--data.NAME ..] [--trainer.NAME ..]",
            "description": command.__doc__,
        },
        args=args,
    )
    _check_trainer(cli.trainer, cli.plain_config()["trainer"])
    return cli


def check_fit(cli: ExplainCLI) -> None:
    """Check that the networks take the images, and that earlier runs know them.

    Raises:
        ValueError: they do not, see `check_networks` and `EarlierRuns.check`.
    """
    data = cli.datamodule
    check_networks(cli.model.explainer, *data.shape)
    cli.model.earlier.check(data.predict_ids(), *data.shape[1:])


def _check_trainer(trainer: Trainer, config: dict[str, Any]) -> None:
    """Refuse what would fail, or give other results, in the middle of the run."""
    if config.get("inference_mode"):
        raise ValueError("trainer.inference_mode is true, and gradients do not exist in it: leave it out")
    check_precision(trainer, "without float32 the update and the masks are not exact")
    limit = trainer.limit_predict_batches
    if isinstance(limit, int) or limit < 1:  # a number of batches, or a share of them
        raise ValueError(
            f"trainer.limit_predict_batches is {limit}, as after fast_dev_run, and would leave images out without a "
            "record: leave it out, and explain fewer images by --data.num_images"
        )


def _join_paths(args: list[str]) -> list[str]:
    """Arguments with all that follows ``--data.paths`` as one list: the shell turns ``photos/*.jpg`` into many."""
    if "--data.paths" not in args:
        return args
    first = args.index("--data.paths") + 1
    last = next((place for place in range(first, len(args)) if args[place].startswith("--")), len(args))
    if last - first < 2:
        return args
    return [*args[: first - 1], f"--data.paths={json.dumps(args[first:last])}", *args[last:]]
