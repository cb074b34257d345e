"""Train the classifier that is going to be explained."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torchmetrics import MeanMetric
from torchvision.transforms.v2 import MixUp

from ace.adversarial_training import PGDTraining
from ace.classification import ClassificationLoss, balanced_weights, check_labels
from ace.metrics.classification import class_probabilities, classification_metrics
from ace.models.classifiers import CHECKPOINT_KEY, ImageClassifier
from ace.models.normalised import Task
from ace.models.pretrained import default_normalisation, exported_config
from ace.noise import generator
from lit_modules.training import TrainingModule


class LitClassifier(TrainingModule):
    """An image classifier: K classes, one of two with a single logit, or A independent 0/1 attributes.

    Logs the loss, accuracy, AUROC, F1 (means over classes or attributes) and calibration error of the validation and
    test images; the loss without weights and smoothing, so that runs compare.

    Args:
        class_names: names of the classes or attributes; ``train.py`` takes them from the data module.
        architecture: torchvision model name, or import path of an ``nn.Module`` class.
        options: further arguments of the network's constructor.
        task: ``multiclass`` for class indices, ``binary`` for class indices 0 and 1 and a single logit, ``multilabel``
            for 0/1 attribute vectors.
        pretrained: what the weights start from: a state dict (.pt, .pth or .safetensors), alone or in a training
            checkpoint, the folder of an exported classifier, or the name of torchvision's weights for the architecture
            (``DEFAULT``, ``IMAGENET1K_V2``), which are downloaded. The last layer stays new if it has another number
            of classes.
        mean: per-channel normalisation of [0, 1] images; by default 0.5, and with torchvision's weights or an exported
            classifier's what they were trained with. A file of ImageNet weights needs [0.485, 0.456, 0.406].
        std: the same; a file of ImageNet weights needs [0.229, 0.224, 0.225].
        class_weights: of the loss, one a logit: of the class, or of the "yes" of an attribute or a binary classifier.
            ``balanced`` counts the training labels.
        label_smoothing: share of each label that is spread evenly.
        mixup: alpha of MixUp (Zhang et al. 2018); 0 for none.
        adversarial: train on adversarial images, and log ``robust_accuracy`` too.
        lr: of AdamW, after a linear warm-up, at the start of a cosine decay to 0.
        weight_decay: of AdamW.
        warmup_steps: steps of the warm-up.

    Raises:
        ValueError: fewer than two classes, a number out of range, auxiliary logits, or weights that do not fit.
        FileNotFoundError: no such weights.
    """

    def __init__(
        self,
        class_names: list[str],
        architecture: str = "resnet18",
        options: dict[str, Any] | None = None,
        task: Task = "multiclass",
        pretrained: str | None = None,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
        class_weights: list[float] | Literal["balanced"] | None = None,
        label_smoothing: float = 0.0,
        mixup: float = 0.0,
        adversarial: PGDTraining | None = None,
        lr: float = 1e-3,
        weight_decay: float = 1e-4,
        warmup_steps: int = 100,
    ) -> None:
        super().__init__(lr, weight_decay, warmup_steps)
        if len(class_names) < 2:
            raise ValueError(
                f"class_names is {class_names}, fewer than two: add images of another class, or make a single "
                "attribute two classes (no and yes) and set task to binary"
            )
        if not mixup >= 0:
            raise ValueError(f"mixup must not be negative (0 for none), got {mixup}")
        usual_mean, usual_std = default_normalisation(architecture, pretrained, options)
        self.classifier = ImageClassifier(
            architecture, class_names, task, options, mean or usual_mean, std or usual_std
        )
        if getattr(self.classifier.network, "aux_logits", False):
            raise ValueError(
                f"{architecture} gives auxiliary logits too while it is trained, and the loss is that of one output: "
                "take them away with --model.options '{aux_logits: false}'"
            )
        if pretrained is not None:
            self.classifier.load_weights(pretrained)
            _compare_classes(architecture, pretrained, self.classifier.class_names)
        self.task, self.adversarial = task, adversarial
        self.mixup = MixUp(alpha=mixup) if mixup else None
        self.balanced = class_weights == "balanced"
        outputs = self.classifier.outputs
        self.loss = ClassificationLoss(task, outputs, None if self.balanced else class_weights, label_smoothing)
        self.plain_loss = ClassificationLoss(task, outputs)
        self.metrics = nn.ModuleDict({s: classification_metrics(task, len(class_names)) for s in ("val", "test")})
        # By default it leaves out what is no number: a broken network would look good. ("disable" forgets the weights.)
        self.losses = nn.ModuleDict({s: MeanMetric(nan_strategy=math.nan) for s in ("val", "test")})
        self.robust_accuracy = nn.ModuleDict({s: metrics["accuracy"].clone() for s, metrics in self.metrics.items()})

    def setup(self, stage: str) -> None:
        """Count the training labels for balanced weights.

        Raises:
            ValueError: the training data do not say their labels, or these are out of range, or not all classes occur.
        """
        if not (self.balanced and stage == "fit"):
            return
        data = self.trainer.datamodule
        dataset = data.dataset("train") if data is not None else None
        if not hasattr(dataset, "labels"):
            raise ValueError(
                "class_weights is 'balanced', but the training data have no `labels` to count: give the weights as a "
                "list, or the data module's train data set the attribute `labels`"
            )
        labels, names = torch.as_tensor(dataset.labels), self.classifier.class_names
        check_labels(self.task, labels, dataset.ids, names)
        self.loss.weights.copy_(balanced_weights(self.task, labels, names))

    def forward(self, images: Tensor) -> Tensor:
        """Logits, shape (N, outputs), of images in [0, 1]."""
        return self.classifier(images)

    def on_before_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """Check the labels while they are on the CPU: looking at them on the device would wait for it."""
        check_labels(self.task, batch["label"], batch["id"], self.classifier.class_names)
        return batch

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        images, labels = batch["image"], batch["label"]
        if self.mixup is not None:
            images, labels = self.mixup(images, self.loss.targets(labels))
        if self.adversarial is not None:
            images = self._attacked(self.loss, images, labels, torch.rand_like(images) * 2 - 1)
        loss = self.loss(self(images), labels)
        self.log("train/loss", loss, prog_bar=True, sync_dist=True)
        return loss

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        self._evaluate("val", batch)

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        self._evaluate("test", batch)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Say which network this is, so that ``explain.py`` can read the checkpoint."""
        checkpoint[CHECKPOINT_KEY] = self.classifier.config

    def on_validation_epoch_end(self) -> None:
        self._log_metrics("val")

    def on_test_epoch_end(self) -> None:
        self._log_metrics("test")

    def _evaluate(self, stage: str, batch: dict[str, Any]) -> None:
        images, labels = batch["image"], batch["label"]
        logits = self(images)
        self.metrics[stage].update(class_probabilities(self.task, logits), labels.long())
        self.losses[stage].update(self.plain_loss(logits, labels), len(images))
        if self.adversarial is not None:
            logits = self(self._attacked_for_evaluation(batch))
            self.robust_accuracy[stage].update(class_probabilities(self.task, logits), labels.long())

    def _attacked(self, loss: ClassificationLoss, images: Tensor, labels: Tensor, start: Tensor) -> Tensor:
        """Adversarial images; in evaluation mode, so that the steps towards them leave batch statistics alone."""
        training = self.classifier.training
        self.classifier.eval()
        images = self.adversarial.perturb(lambda point: loss(self(point), labels), images, start)
        self.classifier.train(training)
        return images

    def _attacked_for_evaluation(self, batch: dict[str, Any]) -> Tensor:
        """Adversarial images whose random start belongs to their ids: curves compare between epochs and runs."""
        images, labels = batch["image"], batch["label"]
        streams = [generator(0, image_id, "validation") for image_id in batch["id"]]
        start = torch.stack([torch.rand(image.shape, generator=s) for image, s in zip(images, streams, strict=True)])
        with torch.inference_mode(False):  # Lightning evaluates in it, and tensors made in it know no gradients: clone
            return self._attacked(self.plain_loss, images.clone(), labels.clone(), start.to(images) * 2 - 1)

    def _log_metrics(self, stage: str) -> None:
        values = {"loss": self.losses[stage].compute(), **self.metrics[stage].compute()}
        self.losses[stage].reset()
        self.metrics[stage].reset()
        if self.adversarial is not None:
            values["robust_accuracy"] = self.robust_accuracy[stage].compute()
            self.robust_accuracy[stage].reset()
        if self.task == "multilabel":
            names = [f"{stage}/accuracy_{name}" for name in self.classifier.class_names]
            self.log_dict(dict(zip(names, values["accuracy"], strict=True)), sync_dist=True)
        for name, value in values.items():
            if name == "loss" or not value.isnan().any():  # others are not defined for every set of images
                self.log(f"{stage}/{name}", value.mean(), prog_bar=name == "accuracy", sync_dist=True)

    def export(self, folder: Path, dtype: torch.dtype) -> None:
        """Write the classifier folder that ``explain.py`` reads."""
        self.classifier.save_pretrained(folder, dtype)


def _compare_classes(architecture: str, pretrained: str, class_names: list[str]) -> None:
    """Warn where an exported classifier's last layer, of as many classes or not, tells others apart."""
    exported = exported_config(architecture, pretrained)
    if exported is not None and exported["class_names"] != class_names:
        rank_zero_warn(
            f"{pretrained!r} was trained on the classes {exported['class_names']}, not on {class_names}: its last "
            "layer has to be trained anew"
        )
