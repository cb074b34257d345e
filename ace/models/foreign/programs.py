"""Classifiers that bring their own code: TorchScript files and exported programs."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export.passes import move_to_device_pass

from ace.models.foreign.base import ONE, ZERO, ForeignClassifier, existing
from ace.models.identity import file_hash
from ace.models.normalised import Task
from ace.models.pretrained import tensors_only


class ScriptClassifier(ForeignClassifier):
    """A TorchScript file (.pt, ``torch.jit.save``) or an exported program (.pt2, ``torch.export.save``).

    What a file may do: TorchScript runs in its own interpreter, which knows tensors but neither imports nor files. Of
    an exported program nothing is unpickled beyond tensors, but torch evaluates symbolic expressions that it contains
    as Python: take one from nobody whose code you would not run.

    Args:
        path: the file. An exported program takes images of the sizes, and batches of the sizes, that it was exported
            for: give `torch.export.export` a ``dynamic_shapes`` whose batch dimension is ``Dim.DYNAMIC``.
        class_names, task, size, outputs: see `ace.models.normalised.NormalisedClassifier`.
        mean, std: normalisation that the file does not do itself; by default it takes images in [0, 1] as they are.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, of another kind, or would have to be unpickled.
    """

    def __init__(
        self,
        path: str,
        class_names: list[str],
        task: Task = "multiclass",
        mean: tuple[float, ...] = ZERO,
        std: tuple[float, ...] = ONE,
        size: tuple[int, int] | None = None,
        outputs: list[int] | None = None,
    ) -> None:
        file = existing(path)
        try:
            network = _Exported(file) if file.suffix == ".pt2" else _load_script(file)
        except Exception as error:  # zipfile, pickle, json and torch each raise their own kinds
            raise ValueError(
                f"{path!r} is neither TorchScript (torch.jit.save) nor, as a .pt2 file, an exported program "
                f"(torch.export.save), or it is damaged; a state dict needs ModuleClassifier ({_first_line(error)})"
            ) from error
        super().__init__(network, {}, class_names, task, mean, std, size, outputs, file_hash(file))


class _Exported(nn.Module):
    """An exported program, which has one mode: that in which it was exported."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        with tensors_only(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given buffer is not writable")
            program = torch.export.load(path)
            if any(tensor.device.type != "cpu" for tensor in program.state_dict.values()):  # it was exported on a GPU
                program = move_to_device_pass(program, "cpu")
            self.program = program.module()
        for module in self.program.modules():
            module.training = False  # it says nothing here, and what comes out says that all is in evaluation mode

    def train(self, mode: bool = True) -> _Exported:
        """Change nothing: a program refuses to change its mode."""
        self.training = False
        return self

    def forward(self, images: Tensor) -> Any:
        try:
            return self.program(images)
        except AssertionError as error:  # how a program says what shapes it was exported for
            raise ValueError(
                f"the exported program does not take the shape {tuple(images.shape)} ({error}): export it with "
                "dynamic_shapes for the batch dimension (torch.export.Dim.DYNAMIC), and for the size of the images"
            ) from error


def _load_script(path: Path) -> nn.Module:
    with warnings.catch_warnings():  # that TorchScript is deprecated is nothing that the owner of a file can change
        warnings.filterwarnings("ignore", message=".*torch.jit.load.* is deprecated")
        return torch.jit.load(path, map_location="cpu").float()


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
