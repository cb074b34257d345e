"""Training on adversarial images, and the accuracy on them."""

import pytest
import torch
from torch.utils.data import DataLoader

from ace.adversarial_training import PGDTraining
from lit_modules import LitClassifier

OPTIONS = {"growth_rate": 4, "block_config": [1, 1], "num_init_features": 8}
NAMES = {"multilabel": ["red", "green"], "multiclass": ["dark", "middle", "light"], "binary": ["dark", "light"]}
ATTACK = PGDTraining(epsilon=16, step_size=4, iterations=5)


def module(task="binary", adversarial=ATTACK, **settings):
    torch.manual_seed(0)
    model = LitClassifier(
        NAMES[task], "torchvision.models.DenseNet", OPTIONS, task, adversarial=adversarial, **settings
    )
    torch.nn.init.normal_(model.classifier.network.classifier.weight)
    return model


def fragile(task="binary", batch_size=16, count=64):
    """Two classes that differ by 100 grey levels in the red channel, with noise, and by 8 levels, without, in the blue.

    Plain training reads the blue one, which 16 levels turn around.
    """
    generator = torch.Generator().manual_seed(0)
    data = []
    for index in range(count):
        image, label = torch.full((3, 16, 16), 0.5), index % 2
        image[0] += (label - 0.5) * 0.4 + 0.15 * torch.randn((), generator=generator)
        image[2] += (label - 0.5) * 8 / 255
        label = torch.tensor([float(label), 1.0 - label]) if task == "multilabel" else label
        data.append({"image": image, "label": label, "id": f"toy-{index}"})
    return DataLoader(data, batch_size=batch_size)


def test_adversarial_training_raises_the_robust_accuracy(make_trainer):
    found = []
    for adversarial in (None, ATTACK):
        model = module(adversarial=adversarial, lr=0.02, warmup_steps=2)
        make_trainer(max_epochs=10).fit(model, fragile())
        model.adversarial = ATTACK
        found += make_trainer().validate(model, fragile(), verbose=False)
    plain, robust = found
    assert plain["val/accuracy"] > robust["val/accuracy"] > 0.8
    assert plain["val/robust_accuracy"] < 0.6
    assert robust["val/robust_accuracy"] > 0.8


def test_only_adversarial_images_are_trained_on(make_trainer):
    """They lie in the ball, have a higher loss, and the steps towards them leave batch statistics alone."""
    model, seen = module(), []
    model.classifier.register_forward_pre_hook(lambda network, inputs: seen.append((network.training, inputs[0])))
    make_trainer(max_steps=1).fit(model, fragile())
    assert [training for training, _ in seen] == [False] * 5 + [True]
    assert model.classifier.network.features.norm0.num_batches_tracked == 1
    first, last = seen[0][1].detach(), seen[-1][1]
    batch = next(iter(fragile()))
    assert (last - batch["image"]).abs().max() <= 16 / 255 + 1e-6
    assert not torch.equal(first, batch["image"]), "it starts somewhere in the ball"
    with torch.no_grad():
        model.eval()
        losses = [model.loss(model(images), batch["label"]) for images in (batch["image"], last)]
    assert losses[1] > losses[0]


def test_mixed_images_are_attacked_with_their_mixed_labels(make_trainer):
    model = module("multiclass", mixup=0.5, label_smoothing=0.1, class_weights=[1.0, 2.0, 3.0])
    trainer = make_trainer(max_steps=2)
    trainer.fit(model, fragile())
    assert trainer.callback_metrics["train/loss"].isfinite()


@pytest.mark.parametrize("task", NAMES)
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_the_robust_accuracy_is_logged_beside_the_others(task, precision, make_trainer):
    """In inference mode and with autocast, neither of which has gradients of its own accord."""
    model, trainer = module(task), make_trainer(max_steps=2, precision=precision)
    trainer.fit(model, fragile(task), fragile(task))
    [tested] = trainer.test(model, fragile(task), verbose=False)
    fitted = trainer.validate(model, fragile(task), verbose=False)[0]
    assert fitted["val/robust_accuracy"] == tested["test/robust_accuracy"] <= tested["test/accuracy"]


def test_the_robust_accuracy_belongs_to_the_images_and_not_to_run_or_batches(make_trainer):
    model, found = module(adversarial=PGDTraining(epsilon=8, step_size=2, iterations=1)), []
    for seed, batch_size in ((1, 16), (2, 16), (3, 5), (4, 64)):
        torch.manual_seed(seed)
        found += make_trainer().validate(model, fragile(batch_size=batch_size), verbose=False)
    assert len({metrics["val/robust_accuracy"] for metrics in found}) == 1
    assert 0 < found[0]["val/robust_accuracy"] < found[0]["val/accuracy"]


def test_without_adversarial_training_no_image_is_attacked(make_trainer):
    [found] = make_trainer().validate(module(adversarial=None), fragile(), verbose=False)
    assert "val/robust_accuracy" not in found
