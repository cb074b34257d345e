"""Data modules: one for each domain, on a common base."""

from datamodules.avatars import AvatarsDataModule
from datamodules.base import ImageDataModule
from datamodules.image_folder import ImageFolderDataModule

__all__ = ["AvatarsDataModule", "ImageDataModule", "ImageFolderDataModule"]
