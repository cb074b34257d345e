"""The identity of weights: which files made a result."""

from __future__ import annotations

import hashlib
from pathlib import Path


def folder_hash(folder: str | Path) -> str:
    """SHA-256 over the names and contents of a model's files (json, safetensors) below a folder, in hexadecimal.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {str(folder)!r} to take the hash of")
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.suffix in (".json", ".safetensors")):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0")
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
