"""Train a classifier or a diffusion model.

python train.py fit --config configs/avatars/classifier.yaml
python train.py fit --config configs/avatars/ddpm.yaml
"""

from __future__ import annotations

from lightning import LightningDataModule, LightningModule

from callbacks import DataSummary, FiniteLoss
from lit_modules.cli import LogConfigCallback, TrainCLI


def main(args: list[str] | None = None) -> TrainCLI:
    """Run one of LightningCLI's subcommands: fit, validate or test."""
    return TrainCLI(
        LightningModule,
        LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        auto_configure_optimizers=False,
        trainer_defaults={"callbacks": [DataSummary(), FiniteLoss()]},
        parser_kwargs={"description": "Train a classifier or a diffusion model."},
        save_config_callback=LogConfigCallback,
        # One folder a run: a second run, or one after a crash, rewrites the saved configuration.
        save_config_kwargs={"overwrite": True},
        args=args,
    )


if __name__ == "__main__":
    main()
