"""When a callback of the validation is due."""

from __future__ import annotations

from lightning import Trainer


def first_batch_of_due_epoch(trainer: Trainer, every_n_epochs: int, batch_idx: int, dataloader_idx: int) -> bool:
    """Whether the validation of every n-th epoch is about to begin; never in a sanity check.

    What is done before its first batch finds the averaged weights in, whatever the order of the callbacks.
    """
    due = (trainer.current_epoch + 1) % every_n_epochs == 0
    return batch_idx == dataloader_idx == 0 and due and not trainer.sanity_checking
