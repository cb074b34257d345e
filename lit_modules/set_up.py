"""What ``generate`` and ``calibrate`` make of a command line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lightning import Trainer

from ace.preflight import check_networks
from datamodules.base import ImageDataModule
from lit_modules.cli import ExplainCLI
from lit_modules.counterfactual import LitCounterfactual

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")


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
    data, size = cli.datamodule, cli.datamodule.image_size
    height, width = (size, size) if isinstance(size, int) else size
    check_networks(cli.model.explainer, data.channels, height, width)
    cli.model.earlier.check(data.predict_ids(), height, width)


def _check_trainer(trainer: Trainer, config: dict[str, Any]) -> None:
    """Refuse what would fail, or give other results, in the middle of the run."""
    if config.get("inference_mode"):
        raise ValueError("trainer.inference_mode is true, and gradients do not exist in it: leave it out")
    if trainer.precision not in PRECISIONS:
        raise ValueError(
            f"trainer.precision is {trainer.precision}: use one of {', '.join(PRECISIONS)} "
            "(without float32 the update and the masks are not exact)"
        )
