import pytest
import torch
from lightning import Trainer
from torch.utils.data import DataLoader

from ace.attacks import PGD
from ace.decision import AttributeDecision, BinaryDecision, ClassDecision
from datamodules.avatars import AvatarsDataset
from lit_modules.counterfactual import LitCounterfactual, decision_for

NAMES = ["smiling", "glasses", "hat"]


@pytest.mark.parametrize("query", ["glasses", 1])
def test_a_query_is_an_attribute_by_name_or_index(query):
    decision = decision_for(NAMES, query)
    assert isinstance(decision, AttributeDecision)
    assert decision.query == 1
    assert decision.class_names == ["not glasses", "glasses"]


@pytest.mark.parametrize("query", ["beard", "Smiling", "1", "", 3, -1])
def test_an_unknown_query_is_refused_with_the_names(query):
    with pytest.raises(ValueError, match="0: smiling, 1: glasses, 2: hat") as error:
        decision_for(NAMES, query)
    assert repr(query) in str(error.value)


def test_without_a_query_the_decision_is_between_the_classes():
    decision = decision_for(NAMES, None)
    assert isinstance(decision, ClassDecision)
    assert decision.class_names == NAMES


def test_without_a_query_one_logit_is_a_binary_decision():
    decision = decision_for(["smiling"], None)
    assert isinstance(decision, BinaryDecision)
    assert not isinstance(decision, AttributeDecision)
    assert decision.class_names == ["not smiling", "smiling"]


@pytest.fixture
def module(classifier_folder, ddpm_folder):
    return LitCounterfactual(str(classifier_folder), str(ddpm_folder), "smiling", attack=PGD(1, 2.0), steps=2, slots=2)


@pytest.fixture
def loader(avatar_cache):
    return DataLoader(AvatarsDataset("test", 3, cache_dir=str(avatar_cache)), batch_size=2)


def trainer(folder, **settings):
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    return Trainer(accelerator="cpu", devices=1, default_root_dir=folder, **quiet, **settings)


def test_the_prediction_loop_explains_every_image_once(module, loader, tmp_path):
    batches = trainer(tmp_path, inference_mode=False).predict(module, loader)
    explanations = [explanation for batch in batches for explanation in batch]
    assert sorted(explanation.id for explanation in explanations) == loader.dataset.ids
    assert {explanation.status for explanation in explanations} <= {"flipped", "not_flipped"}
    for explanation in explanations:
        image = loader.dataset[loader.dataset.ids.index(explanation.id)]
        assert torch.equal(explanation.original, image["image"])
        assert explanation.label == image["label"][0]
        assert not torch.equal(explanation.counterfactual, explanation.original)


def test_inference_mode_is_refused_with_the_remedy(module, loader, tmp_path):
    with pytest.raises(RuntimeError, match="set the trainer's inference_mode to false"):
        trainer(tmp_path, inference_mode=True).predict(module, loader)


def test_the_networks_are_frozen_and_in_evaluation_mode(module):
    assert not any(weight.requires_grad for weight in module.parameters())
    assert not any(part.training for part in (*module.classifier.modules(), *module.diffusion_filter.unet.modules()))


@pytest.mark.parametrize(("kind", "words"), [((1, 64), "1 channels.*takes 3"), ((3, 63), "63x63.*multiples of 2")])
def test_check_refuses_images_that_the_networks_do_not_take(kind, words, module):
    module.check(3, 64)
    module.check(3, (64, 32))
    with pytest.raises(ValueError, match=words):
        module.check(*kind)
