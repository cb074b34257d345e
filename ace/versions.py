"""Which code made a result."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from pathlib import Path

_PACKAGES = ("lightning-ace", "torch", "torchvision", "diffusers", "lightning")


def versions() -> dict[str, str]:
    """Versions of Python, this project and what it computes with, and in a git checkout the ``commit``."""
    found = {"python": platform.python_version(), **{package: _version(package) for package in _PACKAGES}}
    if commit := git_commit(Path(__file__)):
        found["commit"] = commit
    return found


def git_commit(file: Path) -> str | None:
    """The commit that the checkout of a file stands at, with ``-dirty`` behind it if tracked files have changed since.

    None where git does not know the file: an installed package can lie within somebody else's checkout.
    """
    try:
        _git(file.parent, "ls-files", "--error-unmatch", file.name)
        return _git(file.parent, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL).stdout.strip()


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
