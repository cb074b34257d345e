"""Data modules: one for each domain, on a common base."""

from datamodules.avatars import AvatarsDataModule
from datamodules.base import ImageDataModule

__all__ = ["AvatarsDataModule", "ImageDataModule"]
