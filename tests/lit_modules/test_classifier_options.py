"""What changes a training: weights to start from, class weights, label smoothing, mixed images."""

import re

import pytest
import torch
from lightning import LightningDataModule, Trainer
from torch.nn import functional as F
from torch.utils.data import DataLoader

from ace.models.classifiers import ImageClassifier
from lit_modules import LitClassifier

OPTIONS = {"growth_rate": 4, "block_config": [1, 1], "num_init_features": 8}
DENSENET = "torchvision.models.DenseNet"
NAMES = {"multilabel": ["red", "green"], "multiclass": ["dark", "middle", "light"], "binary": ["dark", "light"]}


def module(task="multiclass", **settings):
    torch.manual_seed(0)
    return LitClassifier(NAMES[task], DENSENET, OPTIONS, task, **settings)


class Toy(LightningDataModule):
    """Images of one colour, whose data set says its labels."""

    def __init__(self, labels):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        images = torch.rand(len(labels), 3, 16, 16, generator=generator)
        labelled = zip(images, labels, strict=True)
        self.data = [{"image": x, "label": y, "id": f"toy-{i}"} for i, (x, y) in enumerate(labelled)]
        self.labels, self.ids = labels, [sample["id"] for sample in self.data]

    def dataset(self, split):
        assert split == "train"
        return self

    def train_dataloader(self):
        return DataLoader(self.data, batch_size=8)


@pytest.fixture
def make_trainer(tmp_path):
    def make(**settings):
        quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
        settings = {"max_epochs": 1, **quiet, **settings}
        return Trainer(accelerator="cpu", devices=1, default_root_dir=tmp_path, **settings)

    return make


def test_the_weights_and_the_smoothing_are_those_of_the_loss_in_training_alone(make_trainer):
    model = module(class_weights=[1.0, 2.0, 4.0], label_smoothing=0.2, lr=1e-9)
    data = Toy([0, 1, 2, 2])
    images, labels = torch.stack([s["image"] for s in data.data]), torch.tensor(data.labels)
    trainer = make_trainer()
    trainer.fit(model, data.train_dataloader(), data.train_dataloader())
    with torch.no_grad():
        trained = F.cross_entropy(model.train()(images), labels, torch.tensor([1.0, 2.0, 4.0]), label_smoothing=0.2)
    assert trainer.callback_metrics["train/loss"].item() == pytest.approx(trained.item(), rel=1e-4)
    [found] = trainer.validate(model, data.train_dataloader(), verbose=False)
    with torch.no_grad():
        plain = F.cross_entropy(model.eval()(images), labels)
    assert found["val/loss"] == pytest.approx(plain.item(), rel=1e-4)


@pytest.mark.parametrize(
    ("task", "labels", "weights"),
    [
        ("multiclass", [0] * 4 + [1] * 2 + [2] * 2, [2 / 3, 4 / 3, 4 / 3]),
        ("binary", [0] * 6 + [1] * 2, [3.0]),
        ("multilabel", [torch.tensor(pair) for pair in [(0, 1)] * 6 + [(1, 0)] * 2], [3.0, 1 / 3]),
    ],
)
def test_balanced_weights_are_counted_from_the_training_labels(task, labels, weights, make_trainer):
    data = Toy(labels)
    data.labels = [tuple(label.tolist()) if task == "multilabel" else label for label in labels]
    model = module(task, class_weights="balanced")
    make_trainer().fit(model, data)
    assert model.loss.weights.tolist() == pytest.approx(weights)


def test_balanced_weights_need_labels(make_trainer):
    data = Toy([0, 1, 2, 0])
    model = module(class_weights="balanced")
    with pytest.raises(ValueError, match="'balanced', but the training data have no `labels`"):
        make_trainer().fit(model, data.train_dataloader())
    del data.labels
    with pytest.raises(ValueError, match="'balanced', but the training data have no `labels`"):
        make_trainer().fit(model, data)
    make_trainer().validate(model, data.train_dataloader(), verbose=False)  # counts nothing


def test_balanced_weights_need_labels_in_range(make_trainer):
    with pytest.raises(ValueError, match=r"3 \(image 'toy-1'\); the 3 classes are 0 to 2"):
        make_trainer().fit(module(class_weights="balanced"), Toy([0, 3, 1, 2]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"class_weights": [1.0, 2.0]}, "give 3 positive numbers"),
        ({"label_smoothing": 1.0}, "label_smoothing must be at least 0 and below 1, got 1.0"),
        ({"mixup": -0.1}, "mixup must not be negative"),
        ({"lr": 0.0}, "lr must be positive"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        module(**settings)


class Recorder(torch.nn.Module):
    """Stands in for the loss, to see what it gets."""

    def __init__(self, loss):
        super().__init__()
        self.loss, self.calls = loss, []

    def targets(self, labels):
        return self.loss.targets(labels)

    def forward(self, logits, labels):
        self.calls.append(labels)
        return self.loss(logits, labels)


@pytest.mark.parametrize(
    ("task", "labels"),
    [("multiclass", [0, 1, 2, 1]), ("binary", [0, 1, 1, 0]), ("multilabel", [(0, 1), (1, 1), (0, 0), (1, 0)])],
)
def test_mixup_mixes_images_and_labels_alike(task, labels, make_trainer):
    model = module(task, mixup=1.0)
    model.loss = Recorder(model.loss)
    seen = []
    model.classifier.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    data = Toy([torch.tensor(label) for label in labels])
    make_trainer().fit(model, data)
    [mixed], [targets] = seen, model.loss.calls
    images, hard = torch.stack([s["image"] for s in data.data]), model.loss.targets(torch.tensor(labels))
    share = ((mixed - images.roll(1, 0)) / (images - images.roll(1, 0))).median()
    assert 0.01 < share < 0.99
    torch.testing.assert_close(mixed, share * images + (1 - share) * images.roll(1, 0))
    torch.testing.assert_close(targets, share * hard + (1 - share) * hard.roll(1, 0))


def test_mixup_draws_from_torchs_stream(make_trainer):
    """The one that `TrainingModule` starts anew for each step."""
    drawn = []
    for _ in range(2):
        model = module(mixup=0.4)
        model.loss = Recorder(model.loss)
        torch.rand(len(drawn))
        make_trainer().fit(model, Toy([0, 1, 2, 1]))
        drawn += model.loss.calls
    assert torch.equal(*drawn)


def test_a_training_starts_from_weights_in_a_file(tmp_path):
    torch.manual_seed(1)
    other = ImageClassifier(DENSENET, ["a", "b"], "binary", OPTIONS)
    other.save_pretrained(tmp_path)
    network = module(pretrained=str(tmp_path / "model.safetensors")).classifier.network
    assert torch.equal(network.features.conv0.weight, other.network.features.conv0.weight)
    assert network.classifier.out_features == 3


def test_the_normalisation_goes_with_the_weights(monkeypatch):
    monkeypatch.setattr(ImageClassifier, "load_weights", lambda self, pretrained: None)

    def normalisation(**settings):
        classifier = LitClassifier(["a", "b"], "shufflenet_v2_x0_5", **settings).classifier
        return [pytest.approx(values.flatten().tolist()) for values in (classifier.mean, classifier.std)]

    imagenet = [[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]
    assert normalisation(pretrained="DEFAULT") == imagenet
    assert normalisation(pretrained="own.pt") == [[0.5] * 3, [0.5] * 3]
    own = {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}
    assert normalisation(pretrained="DEFAULT", **own) == [[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]]


@pytest.fixture
def exported(tmp_path):
    """The folder of a classifier of three classes, with a normalisation that no default has."""
    torch.manual_seed(1)
    classifier = ImageClassifier(
        DENSENET, NAMES["multiclass"], "multiclass", OPTIONS, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    )
    classifier.save_pretrained(tmp_path / "exported")
    return tmp_path / "exported"


@pytest.mark.parametrize("place", ["", "model.safetensors"])
def test_an_exported_classifier_goes_on_with_its_own_normalisation(place, exported, recwarn):
    model, before = module(pretrained=str(exported / place)), ImageClassifier.from_pretrained(exported)
    assert torch.equal(model.classifier.mean, torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1))
    assert torch.equal(model.classifier.std, torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1))
    images = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(model.eval()(images), before(images))
    assert not [warning for warning in recwarn if "classes" in str(warning.message)]


def test_a_normalisation_that_is_given_counts_more_than_the_exported_one(exported):
    model = module(pretrained=str(exported), mean=(0.1, 0.2, 0.3))
    assert torch.equal(model.classifier.mean.flatten(), torch.tensor([0.1, 0.2, 0.3]))
    assert torch.equal(model.classifier.std.flatten(), torch.tensor([0.229, 0.224, 0.225]))


@pytest.mark.parametrize("names", [["light", "middle", "dark"], ["dark", "light"]])
def test_other_classes_than_the_exported_ones_are_named(names, exported):
    told = re.escape(f"{str(exported)!r} was trained on the classes ['dark', 'middle', 'light'], not on {names}")
    with pytest.warns(UserWarning, match=told):
        LitClassifier(names, DENSENET, OPTIONS, pretrained=str(exported))


@pytest.mark.parametrize("architecture", ["inception_v3", "googlenet"])
def test_auxiliary_logits_are_refused_with_the_option_that_takes_them_away(architecture):
    told = rf"{architecture}.* --model\.options '\{{aux_logits: false\}}'"
    with torch.device("meta"):
        with pytest.raises(ValueError, match=told):
            LitClassifier(["a", "b"], architecture, {"init_weights": False})
        LitClassifier(["a", "b"], architecture, {"init_weights": False, "aux_logits": False})
