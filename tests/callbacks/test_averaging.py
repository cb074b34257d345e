from types import SimpleNamespace

import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch.utils.data import DataLoader

from callbacks import EMAWithWarmup
from callbacks.averaging import averaged_weights


class Line(LightningModule):
    """One weight, which each step lowers by one, and a buffer that counts the steps."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(8.0))
        self.register_buffer("count", torch.tensor(0.0))

    def training_step(self, batch, batch_idx):
        self.count += 1
        return self.weight

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)


class Looks(Callback):
    """Keeps weight and buffer inside, and behind."""

    def __init__(self, error=None):
        self.inside, self.behind, self.error = [], [], error

    def on_validation_end(self, trainer, pl_module):
        if not trainer.sanity_checking:
            try:
                with averaged_weights(trainer, pl_module):
                    self.inside.append((pl_module.weight.item(), pl_module.count.item()))
                    if self.error:
                        raise self.error
            except ZeroDivisionError:
                pass
            self.behind.append((pl_module.weight.item(), pl_module.count.item()))


def fit(*callbacks):
    trainer = Trainer(
        accelerator="cpu", devices=1, max_epochs=2, logger=False, callbacks=list(callbacks),
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    loader = DataLoader(torch.zeros(2, 1), batch_size=1)
    trainer.fit(Line(), loader, loader)


@pytest.mark.parametrize("error", [None, ZeroDivisionError()])
@pytest.mark.parametrize("averaging_first", [True, False])
def test_the_averaged_weights_and_buffers_are_inside_and_the_own_ones_behind(averaging_first, error):
    looks = Looks(error)
    pair = [EMAWeightAveraging(decay=0.5), looks]
    fit(*(pair if averaging_first else reversed(pair)))
    # the average starts at the weights after the first step and goes half of the way at each further one
    assert looks.inside == [(6.5, 1.5), (4.875, 3.125)]
    assert looks.behind == [(6.0, 2.0), (4.0, 4.0)]


def test_without_averaging_nothing_changes():
    looks = Looks()
    fit(looks)
    assert looks.inside == looks.behind == [(6.0, 2.0), (4.0, 4.0)]


@pytest.mark.parametrize(
    ("decay", "decays"), [(0.9999, (2 / 11, 3 / 12, 4 / 13, 5 / 14)), (0.28, (2 / 11, 3 / 12, 0.28, 0.28))]
)
def test_the_decay_warms_up_so_that_the_first_weights_are_forgotten(decay, decays):
    model = Line()
    averaging = EMAWithWarmup(decay=decay)
    trainer = Trainer(
        accelerator="cpu", devices=1, max_steps=5, logger=False, callbacks=[averaging], enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(model, DataLoader(torch.zeros(5, 1), batch_size=1))
    average = 7.0  # the weight after the first step
    for weight, share in zip((6.0, 5.0, 4.0, 3.0), decays, strict=True):
        average = share * average + (1 - share) * weight
    assert model.weight.item() == pytest.approx(average, rel=1e-6)


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_a_decay_out_of_range_is_refused(decay):
    with pytest.raises(ValueError, match=f"decay must be at least 0 and below 1, got {decay}"):
        EMAWithWarmup(decay=decay)


def test_the_average_lives_where_the_training_computes_though_the_module_is_not_there_yet():
    averaging, module = EMAWithWarmup(), Line()
    trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("meta")))
    averaging.setup(trainer, module, "fit")
    averaged = averaging._average_model
    assert {tensor.device.type for tensor in (*averaged.module.parameters(), *averaged.buffers())} == {"meta"}
    assert module.weight.device.type == "cpu"


def test_tensors_of_every_type_are_averaged_by_one_rule():
    """The first step is copied, the second has the decay 2/11."""
    model = torch.nn.BatchNorm1d(2)
    model.register_buffer("precise", torch.zeros(3, dtype=torch.float64))
    averaging = EMAWithWarmup()
    averaging.setup(SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("cpu"))), as_module(model), "fit")
    averaged = averaging._average_model
    for value in (0, 11):
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.data.fill_(value)
        averaged.update_parameters(as_module(model))
    found = averaged.module.network.state_dict()
    assert {tensor.dtype for tensor in found.values()} == {torch.float32, torch.float64, torch.int64}
    for tensor in found.values():
        torch.testing.assert_close(tensor, torch.full_like(tensor, 9))


def as_module(network):
    module = LightningModule()
    module.network = network
    return module
