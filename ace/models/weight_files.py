"""Published weight files: never unpickled beyond tensors, and checked against the network that they are for."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

HOLDERS = ("state_dict", "model_state_dict")  # where training checkpoints keep the network's tensors


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors in a weight file, by name.

    Args:
        path: a state dict (.safetensors, or written by ``torch.save``), or a training checkpoint that holds one. Of
            state dicts inside a state dict the names are joined by dots. The prefix of ``DataParallel`` is taken off.

    Raises:
        ValueError: the file is damaged, would have to be unpickled, or holds no tensors.
    """
    try:
        content = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except Exception as error:  # pickle, zipfile, safetensors and torch each raise their own kinds
        raise ValueError(
            f"cannot read the weights {str(path)!r}: the file is damaged, or holds more than tensors and plain "
            "values, which is never unpickled; copy it again, or save the network's `state_dict()` alone"
        ) from error
    if isinstance(content, Mapping):
        content = next((content[holder] for holder in HOLDERS if isinstance(content.get(holder), Mapping)), content)
    tensors = {name.removeprefix("module."): tensor for name, tensor in _leaves(content)}
    if not tensors:
        raise ValueError(f"{str(path)!r} holds no tensors: save the network's `state_dict()`")
    return tensors


def _leaves(content: Any, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    if not isinstance(content, Mapping):
        return
    for key, value in content.items():
        if isinstance(value, Tensor):
            yield f"{prefix}{key}", value
        else:
            yield from _leaves(value, f"{prefix}{key}.")


def fit(network: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Give a network its weights, in float32.

    Args:
        network: its own tensors may be on the ``meta`` device.
        tensors: all of its state dict and nothing else; batch counters may be missing, as in old files.
        path: the file that they are from, for the error.

    Raises:
        ValueError: tensors are missing, unknown or of another shape.
    """
    own = network.state_dict()
    misfits = {
        "missing": {name for name in own.keys() - tensors.keys() if not name.endswith("num_batches_tracked")},
        "unknown": tensors.keys() - own.keys(),
        "of another shape": {name for name in own.keys() & tensors.keys() if own[name].shape != tensors[name].shape},
    }
    if any(misfits.values()):
        problems = "; ".join(f"{kind}: {first_few(names)}" for kind, names in misfits.items() if names)
        raise ValueError(
            f"the weights {str(path)!r} are not those of this network ({problems}): give the published file"
        )
    state = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    network.load_state_dict(state, assign=True)


def first_few(names: Collection[str]) -> str:
    """The first names, and how many there are."""
    first = ", ".join(sorted(names)[:3])
    return first if len(names) <= 3 else f"{first} and {len(names) - 3} more"
