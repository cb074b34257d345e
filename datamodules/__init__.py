"""Data modules: one for each domain, on a common base."""

from datamodules.avatars import AvatarsDataModule
from datamodules.base import ImageDataModule
from datamodules.bdd100k import BDD100kDataModule
from datamodules.bdd_oia import BDDOIADataModule
from datamodules.celeba import CelebADataModule
from datamodules.celeba_hq import CelebAHQDataModule
from datamodules.image_csv import CSVDataModule
from datamodules.image_folder import ImageFolderDataModule
from datamodules.image_paths import ImagePathsDataModule
from datamodules.imagenet import ImageNetDataModule
from datamodules.summary import summarise

__all__ = [
    "AvatarsDataModule",
    "BDD100kDataModule",
    "BDDOIADataModule",
    "CSVDataModule",
    "CelebADataModule",
    "CelebAHQDataModule",
    "ImageDataModule",
    "ImageFolderDataModule",
    "ImageNetDataModule",
    "ImagePathsDataModule",
    "summarise",
]
