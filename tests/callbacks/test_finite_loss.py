import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

from callbacks.finite_loss import FiniteLoss


class Explodes(LightningModule):
    """Its loss is infinite at the fourth step."""

    def __init__(self, value):
        super().__init__()
        self.weight, self.value = torch.nn.Parameter(torch.ones(())), value

    def training_step(self, batch, batch_idx):
        return self.weight * (self.value if batch_idx == 3 else 1.0)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(module, folder):
    checkpoint = ModelCheckpoint(folder, every_n_train_steps=1, save_last=True)
    trainer = Trainer(
        accelerator="cpu", max_steps=6, logger=False, callbacks=[checkpoint, FiniteLoss()],
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(module, DataLoader(torch.zeros(8, 1), batch_size=1))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_the_training_stops_at_the_step_and_keeps_the_last_good_checkpoint(value, tmp_path):
    with pytest.raises(RuntimeError, match=r"the loss is (nan|inf) at step 4.*--ckpt_path last"):
        fit(Explodes(value), tmp_path)
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert state["global_step"] == 3
    assert state["state_dict"]["weight"].isfinite()


def test_a_finite_training_goes_on(tmp_path):
    fit(Explodes(2.0), tmp_path)
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 6
