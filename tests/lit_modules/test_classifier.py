import math
import warnings

import pytest
import torch
from diffusers import DDPMScheduler
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch.utils.data import DataLoader, default_collate

from ace.attacks import PGD
from ace.decision import decision_for
from ace.diffusion_filter import DiffusionFilter
from ace.explainer import CounterfactualExplainer
from ace.metrics.classification import class_probabilities, classification_metrics
from ace.models.classifiers import ImageClassifier
from ace.models.foreign import load_classifier
from lit_modules import LitClassifier

OPTIONS = {"growth_rate": 4, "block_config": [1, 1], "num_init_features": 8}
NAMES = {"multilabel": ["red", "green"], "multiclass": ["dark", "middle", "light"], "binary": ["dark", "light"]}
METRICS = {"loss", "accuracy", "auroc", "f1", "calibration_error"}


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
            label = index % len(NAMES[task])
            image += 0.4 * label
        found.append({"image": image, "label": label, "id": f"toy-{index}"})
    return found


def module(task, **settings):
    torch.manual_seed(0)
    return LitClassifier(NAMES[task], "torchvision.models.DenseNet", OPTIONS, task, **settings)


def accuracy(trainer, model, loader):
    return float(trainer.validate(model, loader, verbose=False)[0]["val/accuracy"])


@pytest.mark.parametrize("task", NAMES)
def test_a_few_steps_learn_separable_data_and_log_the_documented_metrics(task, make_trainer):
    model = module(task, lr=0.02, warmup_steps=2)
    loader = DataLoader(samples(task), batch_size=16)
    trainer = make_trainer(max_epochs=8)
    assert accuracy(trainer, model, loader) < 0.8
    trainer.fit(model, loader, loader)
    fitted = set(trainer.callback_metrics)
    assert accuracy(trainer, model, loader) > 0.95
    tested = set(trainer.test(model, loader, verbose=False)[0])
    names = METRICS | ({f"accuracy_{name}" for name in NAMES[task]} if task == "multilabel" else set())
    assert fitted == {"train/loss", *(f"val/{name}" for name in names)}
    assert tested == {f"test/{name}" for name in names}


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


@pytest.mark.parametrize("task", NAMES)
def test_the_metrics_are_those_of_all_images(task, make_trainer):
    """Not means over batches of unequal sizes; the values themselves are tested with `classification_metrics`."""
    model, data = module(task), samples(task, 50)
    found = make_trainer().validate(model, DataLoader(data, batch_size=7), verbose=False)[0]
    images, labels = torch.stack([s["image"] for s in data]), default_collate([s["label"] for s in data])
    with torch.no_grad():
        logits = model.eval()(images)
    metrics = classification_metrics(task, len(NAMES[task]))
    metrics.update(class_probabilities(task, logits), labels.long())
    for name, value in metrics.compute().items():
        assert found[f"val/{name}"] == pytest.approx(value.mean().item(), abs=1e-6)
    assert found["val/loss"] == pytest.approx(model.loss(logits, labels).item(), rel=1e-4)


def test_a_validation_set_without_a_class_has_the_area_of_the_others(make_trainer):
    data = [sample for sample in samples("multiclass") if sample["label"] < 2]
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*(samples|score)")
        found = make_trainer().validate(module("multiclass"), DataLoader(data, batch_size=8), verbose=False)[0]
        assert 0 <= found["val/auroc"] <= 1
        one = make_trainer().validate(module("multiclass"), DataLoader(data[:1]), verbose=False)[0]
    assert "val/auroc" not in one
    assert "val/accuracy" in one


@pytest.mark.parametrize("task", NAMES)
def test_a_loss_that_is_no_number_for_one_image_is_none_for_all(task, make_trainer):
    data = samples(task)
    data[3]["image"] *= float("nan")
    found = make_trainer().validate(module(task), DataLoader(data, batch_size=8), verbose=False)[0]
    assert math.isnan(found["val/loss"])


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


def test_a_binary_classifier_is_exported_and_explained(make_unet, tmp_path):
    model = module("binary").eval()
    torch.nn.init.normal_(model.classifier.network.classifier.weight)
    model.export(tmp_path, torch.float32)
    loaded = ImageClassifier.from_pretrained(tmp_path)
    images = torch.stack([sample["image"] for sample in samples("binary", 4)])
    with torch.no_grad():
        logits = model(images)
        assert torch.equal(loaded(images), logits)
    assert logits.shape == (4, 1)
    diffusion_filter = DiffusionFilter(make_unet(16), DDPMScheduler(), steps=2, respacing=10)
    explainer = CounterfactualExplainer(loaded, decision_for(loaded, None), diffusion_filter, PGD(2, 2.0))
    found = explainer.explain(images)
    assert [one.prediction for one in found] == (logits[:, 0] > 0).long().tolist()


@pytest.mark.parametrize("task", NAMES)
def test_a_single_class_is_refused(task):
    with pytest.raises(ValueError, match=r"class_names is \['cat'\], fewer than two: .*task to binary"):
        LitClassifier(["cat"], "torchvision.models.DenseNet", OPTIONS, task)


@pytest.mark.parametrize(
    ("task", "label", "message"),
    [
        ("multiclass", 3, r"3 \(image 'odd'\); the 3 classes are 0 to 2"),
        ("binary", 2, r"2 \(image 'odd'\); the 2 classes are 0 to 1"),
        ("multilabel", torch.tensor([0.0, -1.0]), r"green -1 \(image 'odd'\)"),
    ],
)
@pytest.mark.parametrize("loop", ["fit", "validate", "test"])
def test_a_label_out_of_range_ends_the_run_with_the_image(task, label, message, loop, make_trainer):
    data = [*samples(task, 3), {"image": torch.rand(3, 16, 16), "label": label, "id": "odd"}]
    with pytest.raises(ValueError, match=message):
        getattr(make_trainer(max_epochs=1), loop)(module(task), DataLoader(data, batch_size=4))


@pytest.mark.parametrize(
    ("task", "labels_of", "remedy"),
    [
        ("multiclass", "multilabel", "set model.task to multilabel"),
        ("binary", "multilabel", "set model.task to multilabel"),
        ("multilabel", "multiclass", "set model.task to multiclass, or for two classes to binary"),
    ],
)
def test_labels_of_another_task_are_refused(task, labels_of, remedy, make_trainer):
    with pytest.raises(ValueError, match=remedy):
        make_trainer(max_epochs=1).fit(module(task), DataLoader(samples(labels_of), batch_size=8))


@pytest.mark.parametrize("averaged", [False, True])
def test_a_checkpoint_is_a_classifier_that_can_be_explained(averaged, make_trainer, tmp_path):
    model = module("multiclass", mean=(0.4, 0.5, 0.6), lr=0.02)
    loader = DataLoader(samples("multiclass"), batch_size=16)
    trainer = make_trainer(max_epochs=1, callbacks=[EMAWeightAveraging(decay=0.5)] if averaged else [])
    trainer.fit(model, loader)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    loaded = load_classifier(str(tmp_path / "last.ckpt"))
    images = torch.stack([sample["image"] for sample in samples("multiclass", 4)])
    torch.testing.assert_close(loaded(images), model.eval()(images))  # after the training it holds the average
    assert loaded.class_names == NAMES["multiclass"]
    assert not any(weight.requires_grad for weight in loaded.parameters())
    assert len(loaded.identity) == 64

    content = torch.load(tmp_path / "last.ckpt", weights_only=True)
    del content["image_classifier"]
    torch.save(content, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match=r"other.ckpt' is not the checkpoint of a classifier .*exported folder"):
        load_classifier(tmp_path / "other.ckpt")
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*absent.ckpt"):
        load_classifier(tmp_path / "absent.ckpt")
