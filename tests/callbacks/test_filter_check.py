import copy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from diffusers import DDPMScheduler
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader

from ace.diffusion_filter import DiffusionFilter
from ace.models.classifiers import ImageClassifier
from ace.models.foreign import ModuleClassifier
from ace.noise import draw, generator
from callbacks import FilterCheck
from datamodules.base import ImageDataModule
from lit_modules import LitClassifier, LitDDPM

ROOT = Path(__file__).parents[2]
SIZE = 16
NAMES = ["round", "red", "big"]


class Toys(list):
    """Random pictures."""

    def __init__(self, split, count):
        stream = torch.Generator().manual_seed(len(split))
        self.ids = [f"{split}-{index}" for index in range(count)]
        images = torch.rand(count, 3, SIZE, SIZE, generator=stream)
        super().__init__({"image": image, "label": 0, "id": id} for image, id in zip(images, self.ids, strict=True))


class ToyData(ImageDataModule):
    image_size, channels, class_names = SIZE, 3, NAMES

    def __init__(self, val_size=10):
        super().__init__(batch_size=4, num_workers=0)
        self.sets = {"train": Toys("train", 8), "val": Toys("val", val_size)}

    def dataset(self, split):
        return self.sets[split]


@pytest.fixture
def make_classifier(tmp_path):
    """Makes a tiny random network that decides each way for half of the validation images."""

    def make(task="multilabel", channels=3, names=NAMES):
        torch.manual_seed(1)
        options = {"growth_rate": 4, "block_config": [1, 1], "num_init_features": 8}
        normal = (0.5,) * channels
        classifier = ImageClassifier("torchvision.models.DenseNet", names, task, options, normal, normal).eval()
        head = classifier.network.classifier
        with torch.no_grad():
            head.bias.zero_()
            if channels == 3:
                images = torch.stack([sample["image"] for sample in Toys("val", 10)])
                head.bias -= classifier(images).median(0).values
        classifier.save_pretrained(tmp_path / task)
        return str(tmp_path / task)

    return make


@pytest.fixture
def module(make_unet):
    def make(prediction_type="epsilon", **settings):
        return LitDDPM(make_unet(SIZE), DDPMScheduler(prediction_type=prediction_type), lr=1e-2, **settings)

    return make


@pytest.fixture
def make_trainer(tmp_path):
    def make(*callbacks, **settings):
        quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False)
        quiet |= {"enable_checkpointing": any(isinstance(callback, ModelCheckpoint) for callback in callbacks)}
        return Trainer(
            accelerator="cpu", devices=1, default_root_dir=tmp_path, callbacks=list(callbacks), **quiet | settings
        )

    return make


@torch.no_grad()
def survivals(unet, scheduler, classifier, samples, steps, respacing):
    """For each image and logit whether its sign survives, one image at a time."""
    diffusion_filter = DiffusionFilter(copy.deepcopy(unet), scheduler, steps, respacing)
    rows = []
    for sample in samples:
        image = sample["image"][None]
        noise = draw([generator(0, sample["id"], "filter check")], steps, image.shape[1:], "cpu")
        rows.append((classifier(image) > 0) == (classifier(diffusion_filter(image, noise)) > 0))
    return torch.cat(rows).float()


SPREAD = [0, 1, 2, 4, 5, 7, 8]  # seven of ten, evenly


@pytest.mark.parametrize(("batch_size", "count", "used"), [(32, 7, SPREAD), (3, 7, SPREAD), (4, 64, range(10))])
def test_the_agreement_equals_a_computation_image_by_image(
    batch_size, count, used, make_classifier, module, make_trainer
):
    folder, model, data = make_classifier(), module(), ToyData()
    check = FilterCheck(folder, steps=(1, 5), respacing=25, count=count, batch_size=batch_size)
    [metrics] = make_trainer(check).validate(model, datamodule=data, verbose=False)
    for steps in (1, 5):
        samples = [data.dataset("val")[index] for index in used]
        same = survivals(model.unet, model.scheduler, ImageClassifier.from_pretrained(folder), samples, steps, 25)
        assert metrics[f"val/filter_agreement_tau{steps}"] == pytest.approx(same.mean().item(), abs=1e-6)
        assert 0 < same.mean() < 1, "the test tells nothing"


def test_it_measures_as_far_as_the_presets_noise():
    furthest = max(yaml.safe_load(path.read_text())["model"]["steps"] for path in ROOT.glob("configs/presets/*.yaml"))
    callbacks = yaml.safe_load((ROOT / "configs/avatars/ddpm.yaml").read_text())["trainer"]["callbacks"]
    [avatars] = [one["init_args"] for one in callbacks if one["class_path"] == "callbacks.FilterCheck"]
    for check in (FilterCheck("classifier"), FilterCheck(**avatars)):
        assert max(check.steps) / check.respacing == furthest


def test_one_step_of_an_untrained_model_equals_a_computation_by_hand(make_classifier, module, make_trainer):
    folder, model, data = make_classifier(), module("sample"), ToyData()
    [metrics] = make_trainer(FilterCheck(folder, steps=(1,))).validate(model, datamodule=data, verbose=False)
    classifier, kept = ImageClassifier.from_pretrained(folder), []
    with torch.no_grad():
        for sample in data.dataset("val"):
            noise = torch.randn(3, SIZE, SIZE, generator=generator(0, sample["id"], "filter check"))
            noisy = (1 - 1e-4) ** 0.5 * (2 * sample["image"] - 1) + 1e-4**0.5 * noise
            filtered = model.unet(noisy[None], 0).sample.clamp(-1, 1) / 2 + 0.5
            kept.append((classifier(filtered) > 0) == (classifier(sample["image"][None]) > 0))
    share = torch.cat(kept).float().mean().item()
    assert metrics["val/filter_agreement_tau1"] == pytest.approx(share, abs=1e-6)
    assert 0 < share < 1


def test_a_query_asks_for_its_attribute_alone(make_classifier, module, make_trainer):
    folder, model, data = make_classifier(), module(), ToyData()
    classifier = ImageClassifier.from_pretrained(folder)
    wanted = survivals(model.unet, model.scheduler, classifier, data.dataset("val"), 5, 50).mean(0)
    found = []
    for name in NAMES:
        check = FilterCheck(folder, query=name, steps=(5,))
        [metrics] = make_trainer(check).validate(model, datamodule=data, verbose=False)
        found.append(metrics["val/filter_agreement_tau5"])
    assert found == pytest.approx(wanted.tolist(), abs=1e-6)
    assert len(set(found)) > 1


def test_attributes_that_have_numbers_for_names_are_all_asked_for(make_classifier, module):
    check = FilterCheck(make_classifier(names=["1", "2", "3"]))
    check.setup(SimpleNamespace(datamodule=ToyData()), module(), "fit")
    assert [decision.query for decision in check.decisions] == [0, 1, 2]


def test_classes_are_compared_by_the_highest_logit(make_classifier, module, make_trainer):
    folder, model, data = make_classifier("multiclass"), module(), ToyData()
    [metrics] = make_trainer(FilterCheck(folder, steps=(5,))).validate(model, datamodule=data, verbose=False)
    classifier = ImageClassifier.from_pretrained(folder)
    diffusion_filter = DiffusionFilter(copy.deepcopy(model.unet), model.scheduler, 5, 50)
    images = torch.stack([sample["image"] for sample in data.dataset("val")])
    noise = draw([generator(0, id, "filter check") for id in data.dataset("val").ids], 5, images.shape[1:], "cpu")
    with torch.no_grad():
        same = classifier(images).argmax(1) == classifier(diffusion_filter(images, noise)).argmax(1)
    assert metrics["val/filter_agreement_tau5"] == pytest.approx(same.float().mean().item())
    assert 0 < same.float().mean() < 1


def test_the_shares_of_several_processes_sum_to_the_whole(make_classifier, module):
    logged = {}
    for world_size in (1, 2, 4):
        for rank in range(world_size):
            check, model = FilterCheck(make_classifier(), steps=(3,), count=7, batch_size=2), module()
            trainer = SimpleNamespace(
                datamodule=ToyData(), current_epoch=0, sanity_checking=False, global_rank=rank, world_size=world_size
            )
            model.eval().log = lambda name, value, size=world_size, **_: logged.setdefault(size, []).append(value)
            check.setup(trainer, model, "fit")
            check.on_validation_batch_start(trainer, model, None, 0)
    assert [len(shares) for shares in logged.values()] == [1, 2, 4]
    assert len(set(logged[4])) > 1
    assert [sum(shares).item() for shares in logged.values()] == pytest.approx([logged[1][0].item()] * 3)


class States(Callback):
    """Keeps the random state at each step and validation, and how the network is set up in between."""

    def __init__(self):
        self.kept = []

    def setup(self, *_, stage):
        self.kept.append(torch.get_rng_state())

    def on_train_batch_start(self, trainer, pl_module, *_):
        weights = list(pl_module.unet.parameters())
        flags = [module.training for module in pl_module.modules()] + [weight.requires_grad for weight in weights]
        layouts = [weight.is_contiguous() for weight in weights]
        self.kept += [torch.get_rng_state(), torch.tensor(flags), torch.tensor(layouts)]

    def on_validation_end(self, *_):
        self.kept.append(torch.get_rng_state())


@pytest.mark.parametrize("channels_last", [True, False])
def test_the_training_is_the_same_with_and_without_the_check(channels_last, make_classifier, module, make_trainer):
    check, runs = FilterCheck(make_classifier(), steps=(1, 3), count=4), []
    for callbacks in ([], [check]):
        torch.manual_seed(0)
        model, states = module(channels_last=channels_last, freeze=["time_embedding"]), States()
        make_trainer(*callbacks, states, EMAWeightAveraging(decay=0.5), max_epochs=3).fit(model, datamodule=ToyData())
        runs.append([*states.kept, *model.state_dict().values(), torch.get_rng_state()])
    assert "val/filter_agreement_tau3" in model.trainer.callback_metrics
    assert all(torch.equal(one, other) for one, other in zip(*runs, strict=True))


class Spy(FilterCheck):
    """Keeps when it looks, at what weights, and whether with gradients or in training mode."""

    def __init__(self, *args, **settings):
        super().__init__(*args, **settings)
        self.epochs, self.weights, self.modes = [], [], set()

    def on_validation_batch_start(self, trainer, pl_module, *place):
        self.trainer, self.pl_module = trainer, pl_module
        super().on_validation_batch_start(trainer, pl_module, *place)

    def kept(self, samples, device):
        self.epochs.append(self.trainer.current_epoch)
        self.weights.append(self.pl_module.unet.conv_in.weight.detach().clone())
        self.modes.add(self.pl_module.unet.training)
        return super().kept(samples, device)


@pytest.mark.parametrize("averaging_first", [True, False])
def test_the_averaged_weights_are_checked(averaging_first, make_classifier, module, make_trainer):
    spy = Spy(make_classifier(), steps=(1,), count=2)
    pair = [EMAWeightAveraging(decay=0.5), spy]
    trainer = make_trainer(*(pair if averaging_first else reversed(pair)), max_epochs=2)
    trainer.fit(module(), datamodule=ToyData())
    # behind the training the module holds the average, as it was at the last validation
    assert torch.equal(spy.weights[-1], trainer.lightning_module.unet.conv_in.weight)
    assert not torch.equal(spy.weights[0], spy.weights[1])
    assert spy.modes == {False}


def test_the_check_is_made_once_in_every_nth_epoch_and_logged_then_alone(
    make_classifier, module, make_trainer, tmp_path
):
    spy = Spy(make_classifier(), steps=(1, 2), count=2, every_n_epochs=2)
    logger = CSVLogger(tmp_path / "csv")
    make_trainer(spy, max_epochs=5, logger=logger, log_every_n_steps=1).fit(module(), datamodule=ToyData())
    assert spy.epochs == [1, 3]
    header, *rows = next((tmp_path / "csv").rglob("metrics.csv")).read_text().splitlines()
    columns = header.split(",")
    epochs = {
        name: [row.split(",")[columns.index("epoch")] for row in rows if row.split(",")[columns.index(name)]]
        for name in ("val/filter_agreement_tau1", "val/filter_agreement_tau2", "val/loss")
    }
    assert list(epochs.values()) == [["1", "3"], ["1", "3"], ["0", "1", "2", "3", "4"]]


def test_the_agreement_can_be_monitored_and_the_classifier_is_in_no_checkpoint(
    make_classifier, module, make_trainer, tmp_path
):
    name = "val/filter_agreement_tau1"
    checkpoint = ModelCheckpoint(tmp_path / "best", monitor=name, mode="max")
    model, check = module(), FilterCheck(make_classifier(), steps=(1,), count=2)
    keys = set(model.state_dict())
    trainer = make_trainer(check, checkpoint, max_epochs=1)
    trainer.fit(model, datamodule=ToyData())
    assert checkpoint.best_model_score == trainer.callback_metrics[name]
    state = torch.load(checkpoint.best_model_path, weights_only=False)
    assert set(model.state_dict()) == set(state["state_dict"]) == keys
    assert not any("FilterCheck" in key for key in state["callbacks"])
    assert not any(module is check.classifier for module in model.modules())


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"classifier": "nowhere"}, FileNotFoundError, "no classifier at 'nowhere'"),
        (
            {"query": "smiling"},
            ValueError,
            "unknown query 'smiling': choose one of .*, 0: round",
        ),
        ({"steps": (1, 51)}, ValueError, r"tau \(steps=51\) must be a whole number in \[1, 50\]"),
        ({"respacing": 2000}, ValueError, r"respacing must be in \[1, 1000\]"),
    ],
)
def test_what_does_not_fit_is_found_before_the_training(settings, error, words, make_classifier, module, make_trainer):
    model = module()
    check = FilterCheck(**({"classifier": make_classifier()} | settings))
    with pytest.raises(error, match=words):
        make_trainer(check, max_epochs=1).fit(model, datamodule=ToyData())
    assert model.trainer.global_step == 0


def test_a_classifier_that_was_trained_elsewhere(make_classifier, module, make_trainer, tmp_path):
    own = ImageClassifier.from_pretrained(make_classifier())
    torch.save(own.network.state_dict(), tmp_path / "net.pt")
    options = own.options | {"num_classes": 3}
    half = (0.5,) * 3
    foreign = ModuleClassifier(own.architecture, str(tmp_path / "net.pt"), NAMES, options, "multilabel", half, half)
    logged = []
    for classifier in (make_classifier(), foreign):
        trainer = make_trainer(FilterCheck(classifier), max_epochs=1)
        trainer.fit(module(), datamodule=ToyData())
        logged.append({name: float(v) for name, v in trainer.callback_metrics.items() if "agreement" in name})
    assert logged[0] == logged[1]
    assert len(logged[0]) == len(FilterCheck(foreign).steps)


def test_a_classifier_of_other_images_is_refused(make_classifier, module, make_trainer):
    check = FilterCheck(make_classifier(channels=4))
    with pytest.raises(ValueError, match=r"the classifier cannot take images of 3x16x16 \(.*4 \(as many"):
        make_trainer(check, max_epochs=1).fit(module(), datamodule=ToyData())
    data = ToyData()
    data.image_size = (1, 2)
    with pytest.raises(ValueError, match=r"cannot take images of 3x1x2 \("):
        make_trainer(FilterCheck(make_classifier()), max_epochs=1).fit(module(), datamodule=data)


def test_a_query_to_a_classifier_of_classes_is_refused(make_classifier, module, make_trainer):
    check = FilterCheck(make_classifier("multiclass"), query="red")
    with pytest.raises(ValueError, match=r"query 'red' asks for an attribute, but .*leave query out"):
        make_trainer(check, max_epochs=1).fit(module(), datamodule=ToyData())


def test_the_training_of_a_classifier_and_loose_loaders_are_refused(make_classifier, module, make_trainer):
    check = FilterCheck(make_classifier())
    with pytest.raises(TypeError, match="for the training of a diffusion model, got a LitClassifier"):
        make_trainer(check, max_epochs=1).fit(LitClassifier(NAMES), datamodule=ToyData())
    with pytest.raises(ValueError, match="data module"):
        make_trainer(check, max_epochs=1).fit(module(), *[DataLoader(Toys("train", 4))] * 2)


@pytest.mark.parametrize("name", ["count", "every_n_epochs", "batch_size"])
def test_numbers_below_one_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        FilterCheck("weights", **{name: 0})


def test_no_tau_at_all_is_refused():
    with pytest.raises(ValueError, match="steps is empty"):
        FilterCheck("weights", steps=())
