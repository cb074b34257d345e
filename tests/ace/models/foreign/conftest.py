"""A network as somebody else may have trained it."""

import pytest
import torch
from torch import nn


class Net(nn.Module):
    """A small convolutional network with batch statistics."""

    def __init__(self, classes: int = 2, width: int = 4) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.head = nn.Linear(width, classes)

    def forward(self, images):
        return self.head(self.norm(self.conv(images)).relu().mean((2, 3)))


@pytest.fixture
def net():
    torch.manual_seed(0)
    made = Net()
    made.norm.running_mean.normal_()
    return made.eval()


@pytest.fixture
def net_path():
    """Its import path."""
    return f"{Net.__module__}.Net"


@pytest.fixture
def images():
    return torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def trap(tmp_path):
    """Writes a file that runs code when it is unpickled, and tells whether it has."""

    class Trap:
        def __reduce__(self):
            return (tmp_path.joinpath("sprung").touch, ())

    def set_trap(name):
        torch.save({"state_dict": {"conv.weight": Trap()}}, tmp_path / name)
        return str(tmp_path / name)

    yield set_trap
    assert not (tmp_path / "sprung").exists()
