"""Weights & Biases without questions: online for those who are logged in, offline for everybody else."""

from __future__ import annotations

import os

import wandb


def never_prompt() -> None:
    """Set ``WANDB_MODE`` unless the user has: W&B would otherwise stop and ask for a key."""
    if "WANDB_MODE" not in os.environ and not wandb.login(prompt=False):
        os.environ["WANDB_MODE"] = "offline"
        wandb.teardown()  # what `login` has set up would not see the variable any more
