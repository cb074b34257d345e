"""Whether the diffusion model in training is good enough to explain with."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any

import torch
from diffusers import UNet2DModel
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from ace.decision import decision_for
from ace.diffusion_filter import DiffusionFilter
from ace.models.foreign import ForeignClassifier, load_classifier
from ace.survival import survives
from callbacks.due import first_batch_of_due_epoch
from datamodules.base import ImageDataModule


class FilterCheck(Callback):
    """Log how often a classifier's decision survives the filter, at the validation of every n-th epoch.

    ``val/filter_agreement_tau<steps>`` is the share of validation images with C(F_tau(x)) = C(x), for the averaged
    weights if `WeightAveraging` is used. It should be close to 1 for the tau of explanations with all passes in the
    gradient; with `gradient_passes: 1` less is enough. Noise belongs to the image: values compare between epochs and
    runs. Each process takes its share of the images.

    Args:
        classifier: folder, ``.ckpt`` file or foreign classifier, see `lit_modules.counterfactual.LitCounterfactual`.
        query: attribute to decide on, by name; None takes all of them, and the mean of their shares.
        steps: the values of tau, as counts of respaced steps; the presets' are 5, 6 and 12 of 50.
        respacing: number of steps that the diffusion chain is respaced to.
        count: so many images of the validation split are used, evenly spread over it.
        every_n_epochs: pause between two checks.
        batch_size: images filtered at a time.

    Raises:
        ValueError: a number out of range, an unknown attribute, no data module, or images that the classifier cannot
            take.
        TypeError: the module in training is no diffusion model.
        FileNotFoundError: there is no such classifier.
    """

    def __init__(
        self,
        classifier: ForeignClassifier | str,
        query: str | None = None,
        steps: tuple[int, ...] = (1, 3, 5, 8, 12),
        respacing: int = 50,
        count: int = 64,
        every_n_epochs: int = 1,
        batch_size: int = 32,
    ) -> None:
        for name, number in (("count", count), ("every_n_epochs", every_n_epochs), ("batch_size", batch_size)):
            if number < 1:
                raise ValueError(f"{name} must be at least 1, got {number}")
        if not steps:
            raise ValueError("steps is empty: name at least one tau")
        self.source, self.query, self.steps, self.respacing = classifier, query, tuple(steps), respacing
        self.count, self.every_n_epochs, self.batch_size = count, every_n_epochs, batch_size

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage in ("fit", "validate"):
            self.prepare(pl_module, trainer.datamodule)

    def prepare(self, pl_module: LightningModule, data: ImageDataModule | None) -> None:
        """Load the classifier, and find out before the training what does not fit.

        Raises:
            ValueError, TypeError, FileNotFoundError: see the class.
        """
        if data is None:
            raise ValueError("FilterCheck takes its images from a data module: give the trainer one (datamodule=...)")
        unet = getattr(pl_module, "unet", None)
        if not isinstance(unet, UNet2DModel):
            raise TypeError(f"FilterCheck is for the training of a diffusion model, got a {type(pl_module).__name__}")
        with torch.random.fork_rng(devices=[]):  # a network draws weights before it gets those of the file
            self.classifier = load_classifier(self.source)
        every = self.query is None and self.classifier.task == "multilabel"
        queries = self.classifier.class_names if every else [self.query]
        self.decisions = [decision_for(self.classifier, query) for query in queries]
        self.filters = [DiffusionFilter(LiveUNet(unet), pl_module.scheduler, n, self.respacing) for n in self.steps]
        self._check_images(data)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if not first_batch_of_due_epoch(trainer, self.every_n_epochs, batch_idx, dataloader_idx):
            return
        dataset = trainer.datamodule.dataset("val")
        count = min(self.count, len(dataset))
        spread = [index * len(dataset) // count for index in range(count)]  # files are often sorted by class
        share = spread[trainer.global_rank :: trainer.world_size]
        kept = self.kept((dataset[index] for index in share), pl_module.device)
        for steps, agreement in zip(self.steps, kept / count, strict=True):
            # A sum over the processes: Lightning's mean rounds the sizes of unequal shares.
            pl_module.log(
                f"val/filter_agreement_tau{steps}",
                agreement, on_epoch=True, reduce_fx="sum", sync_dist=True, add_dataloader_idx=False,
            )  # fmt: skip

    def kept(self, samples: Iterable[dict[str, Any]], device: torch.device) -> Tensor:
        """Number of images whose decision survives, for each tau; an image counts by the share of its attributes.

        No `DataLoader` reads the images: it would take a number from the training's random stream.
        """
        for module in (self.classifier, *self.filters):
            module.to(device)
        kept, samples = torch.zeros(len(self.steps), device=device), iter(samples)
        while batch := list(islice(samples, self.batch_size)):
            images, ids = torch.stack([sample["image"] for sample in batch]).to(device), [s["id"] for s in batch]
            for row, diffusion_filter in enumerate(self.filters):
                survived = survives(self.classifier, self.decisions, diffusion_filter, images, ids)
                kept[row] += survived.float().mean(0).sum()
        return kept

    def _check_images(self, data: ImageDataModule) -> None:
        try:
            logits = self.classifier(torch.full((1, *data.shape), 0.5))
            self.decisions[-1].check(logits)  # it reads the last of the logits
        except (RuntimeError, ValueError, AssertionError) as error:
            raise ValueError(
                f"the classifier cannot take images of {'x'.join(map(str, data.shape))} ({error}): "
                "give one that was trained on images of this kind"
            ) from error


class LiveUNet(nn.Module):
    """The UNet of a training, for a filter: what that does to its UNet for good (freeze, lay out) finds nothing here.

    Args:
        unet: called as it is, not registered.
    """

    def __init__(self, unet: UNet2DModel) -> None:
        super().__init__()
        self.config, self.class_embedding = unet.config, unet.class_embedding
        self._call = unet.__call__

    def forward(self, *args: Any, **options: Any) -> Any:
        return self._call(*args, **options)
