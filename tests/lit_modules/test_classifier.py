import pytest
import torch
from lightning import Trainer
from torch.utils.data import DataLoader

from ace.models.classifiers import ImageClassifier
from lit_modules import LitClassifier

OPTIONS = {"growth_rate": 4, "block_config": [1, 1], "num_init_features": 8}
NAMES = {"multilabel": ["red", "green"], "multiclass": ["dark", "middle", "light"]}


def samples(task, count=64):
    """16x16 images whose labels any network can learn: which channels are bright, or how bright all are."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for index in range(count):
        image = 0.1 * torch.rand(3, 16, 16, generator=generator)
        if task == "multilabel":
            label = torch.tensor([float(index % 2), float(index // 2 % 2)])
            image[:2] += 0.8 * label[:, None, None]
        else:
            label = index % 3
            image += 0.4 * label
        found.append({"image": image, "label": label, "id": f"toy-{index}"})
    return found


def module(task, **settings):
    torch.manual_seed(0)
    return LitClassifier(NAMES[task], "torchvision.models.DenseNet", OPTIONS, task, **settings)


@pytest.fixture
def make_trainer(tmp_path):
    def make(**settings):
        quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
        return Trainer(accelerator="cpu", devices=1, default_root_dir=tmp_path, **quiet, **settings)

    return make


def accuracy(trainer, model, loader):
    return float(trainer.validate(model, loader, verbose=False)[0]["val/accuracy"])


@pytest.mark.parametrize("task", ["multilabel", "multiclass"])
def test_a_few_steps_learn_separable_data_and_log_the_documented_metrics(task, make_trainer):
    model = module(task, lr=0.02, warmup_steps=2)
    loader = DataLoader(samples(task), batch_size=16)
    trainer = make_trainer(max_epochs=8)
    assert accuracy(trainer, model, loader) < 0.8
    trainer.fit(model, loader, loader)
    fitted = set(trainer.callback_metrics)
    assert accuracy(trainer, model, loader) > 0.95
    tested = set(trainer.test(model, loader, verbose=False)[0])
    names = [f"_{name}" for name in NAMES[task]] if task == "multilabel" else []
    assert fitted == {"train/loss", "val/loss", "val/accuracy", *(f"val/accuracy{name}" for name in names)}
    assert tested == {"test/accuracy", *(f"test/accuracy{name}" for name in names)}


@pytest.mark.parametrize("batch_size", [7, 64])
def test_the_accuracy_of_each_attribute_is_over_all_images_whatever_the_batches(batch_size, make_trainer):
    model = module("multilabel")
    data = samples("multilabel")
    metrics = make_trainer().test(model, DataLoader(data, batch_size=batch_size), verbose=False)[0]
    with torch.no_grad():
        right = (model.eval()(torch.stack([s["image"] for s in data])) > 0).float() == torch.stack(
            [s["label"] for s in data]
        )
    assert metrics["test/accuracy_red"] == pytest.approx(right[:, 0].float().mean().item())
    assert metrics["test/accuracy_green"] == pytest.approx(right[:, 1].float().mean().item())
    assert metrics["test/accuracy"] == pytest.approx(right.float().mean().item())


def test_small_logits_are_not_taken_for_probabilities(make_trainer):
    model = module("multilabel")
    with torch.no_grad():
        model.classifier.network.classifier.weight.zero_()
        model.classifier.network.classifier.bias.fill_(0.3)  # below one half, yet it means "yes"
    metrics = make_trainer().test(model, DataLoader(samples("multilabel")[3:4]), verbose=False)[0]
    assert metrics["test/accuracy"] == 1


def test_a_second_validation_forgets_the_first(make_trainer):
    model, trainer = module("multiclass"), make_trainer()
    mixed, one = samples("multiclass"), samples("multiclass")[:1]
    accuracy(trainer, model, DataLoader(mixed, batch_size=16))
    assert accuracy(trainer, model, DataLoader(one)) in (0.0, 1.0)


def test_losses_are_cross_entropies_in_the_mean():
    logits = torch.tensor([[2.0, -1.0], [0.5, 3.0]])
    probability = logits.sigmoid()
    by_hand = -torch.stack([probability[0, 0].log(), (1 - probability[0, 1]).log(), *probability[1].log()]).mean()
    assert module("multilabel").loss(logits, torch.tensor([[1, 0], [1, 1]])).item() == pytest.approx(by_hand.item())
    logits = torch.tensor([[2.0, -1.0, 0.0]])
    by_hand = -logits.softmax(1)[0, 2].log()
    assert module("multiclass").loss(logits, torch.tensor([2])).item() == pytest.approx(by_hand.item())


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 0.0), (torch.float16, 0.01)])
def test_the_exported_folder_gives_the_same_logits(dtype, tolerance, tmp_path):
    model = module("multilabel", mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4)).eval()
    model.export(tmp_path / "new" / "classifier", dtype)
    loaded = ImageClassifier.from_pretrained(tmp_path / "new" / "classifier")
    images = torch.stack([sample["image"] for sample in samples("multilabel", 4)])
    with torch.no_grad():
        torch.testing.assert_close(loaded(images), model(images), rtol=tolerance, atol=tolerance)
    assert (loaded.class_names, loaded.task) == (NAMES["multilabel"], "multilabel")
    assert {path.name for path in (tmp_path / "new" / "classifier").iterdir()} == {"config.json", "model.safetensors"}
