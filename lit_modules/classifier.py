"""Train the classifier that is going to be explained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.classification import MulticlassAccuracy, MultilabelAccuracy

from ace.models.classifiers import ImageClassifier, Task
from lit_modules.optimisation import warmup_cosine_adamw


class LitClassifier(LightningModule):
    """An image classifier with K classes, or with A independent 0/1 attributes.

    Args:
        class_names: one name a logit; ``train.py`` takes them from the data module.
        architecture: torchvision model name, or import path of an ``nn.Module`` class.
        options: further arguments of the network's constructor.
        task: ``multilabel`` for 0/1 attribute vectors, ``multiclass`` for class indices.
        mean, std: per-channel normalisation of [0, 1] images.
        lr, weight_decay, warmup_steps: AdamW with linear warm-up and cosine decay.
    """

    def __init__(
        self,
        class_names: list[str],
        architecture: str = "resnet18",
        options: dict[str, Any] | None = None,
        task: Task = "multiclass",
        mean: tuple[float, ...] = (0.5, 0.5, 0.5),
        std: tuple[float, ...] = (0.5, 0.5, 0.5),
        lr: float = 1e-3,
        weight_decay: float = 1e-4,
        warmup_steps: int = 100,
    ) -> None:
        super().__init__()
        self.classifier = ImageClassifier(architecture, class_names, task, options, mean, std)
        self.task = task
        self.lr, self.weight_decay, self.warmup_steps = lr, weight_decay, warmup_steps
        count = len(class_names)
        if task == "multilabel":
            self.val_accuracy = MultilabelAccuracy(count, average=None)
        else:
            self.val_accuracy = MulticlassAccuracy(count, average="micro")
        self.test_accuracy = self.val_accuracy.clone()

    def forward(self, images: Tensor) -> Tensor:
        """Logits, shape (N, classes), of images in [0, 1]."""
        return self.classifier(images)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy of classes, or the mean binary cross-entropy of attributes."""
        if self.task == "multilabel":
            return F.binary_cross_entropy_with_logits(logits, labels.float())
        return F.cross_entropy(logits, labels)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        loss = self.loss(self(batch["image"]), batch["label"])
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        logits = self(batch["image"])
        self.val_accuracy.update(self._decided(logits), batch["label"].long())
        self.log("val/loss", self.loss(logits, batch["label"]), batch_size=len(logits), sync_dist=True)

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        self.test_accuracy.update(self._decided(self(batch["image"])), batch["label"].long())

    def _decided(self, logits: Tensor) -> Tensor:
        """0/1 attributes, or classes; torchmetrics would take logits that all lie in [0, 1] for probabilities."""
        return (logits > 0).long() if self.task == "multilabel" else logits.argmax(1)

    def on_validation_epoch_end(self) -> None:
        self._log_accuracy("val", self.val_accuracy)

    def on_test_epoch_end(self) -> None:
        self._log_accuracy("test", self.test_accuracy)

    def _log_accuracy(self, stage: str, metric: MultilabelAccuracy | MulticlassAccuracy) -> None:
        accuracy = metric.compute()
        if self.task == "multilabel":
            names = self.classifier.class_names
            self.log_dict({f"{stage}/accuracy_{n}": a for n, a in zip(names, accuracy, strict=True)})
        self.log(f"{stage}/accuracy", accuracy.mean(), prog_bar=True)
        metric.reset()

    def configure_optimizers(self) -> OptimizerLRScheduler:
        steps = int(self.trainer.estimated_stepping_batches)
        return warmup_cosine_adamw(self.parameters(), self.lr, self.weight_decay, self.warmup_steps, steps)

    def export(self, folder: Path, dtype: torch.dtype) -> None:
        """Write the classifier folder that ``explain.py`` reads."""
        self.classifier.save_pretrained(folder, dtype)
