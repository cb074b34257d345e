"""Plain values: what YAML and JSON files hold."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ace.files import write_whole, writing


def plain(value: Any, key: str) -> Any:
    """A copy in plain values, as YAML gives them back: tuples become lists and paths text.

    Args:
        value: nested.
        key: its name, for the error.

    Raises:
        TypeError: there is something else in it.
    """
    if isinstance(value, Mapping):
        return {str(name): plain(item, f"{key}.{name}") for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, f"{key}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, Path):
        return str(value)
    if type(value) in (str, int, float, bool, type(None)):
        return value
    raise TypeError(f"{key} must be a plain value to go into config.yaml, got {type(value).__name__}: {value!r}")


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Turn nested mappings into one with dotted keys; lists and empty mappings are leaves."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def digest(value: Any) -> str:
    """SHA-256 of plain values, whatever the order of their keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def write_json(path: Path, value: Any) -> Path:
    """Write a JSON file whole; numbers that are not finite become null.

    Raises:
        WriteError: the disk is full, or the folder cannot be written.
    """
    with writing(path):
        write_whole((json.dumps(_finite(value), indent=2, allow_nan=False) + "\n").encode(), path)
    return path


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
