from types import SimpleNamespace

import pytest
import torch
from lightning import Trainer
from torch.utils.data import DataLoader

from ace.attacks import PGD
from ace.decision import AttributeDecision, BinaryDecision, ClassDecision, decision_for
from ace.refinement import Refinement
from ace.run_store import RunStore
from ace.saving import save_explanation
from datamodules import ImageDataModule
from datamodules.avatars import AvatarsDataset
from lit_modules.counterfactual import LitCounterfactual

NAMES = ["smiling", "glasses", "hat"]
ATTRIBUTES = SimpleNamespace(class_names=NAMES, task="multilabel")
CLASSES = SimpleNamespace(class_names=NAMES, task="multiclass")
BINARY = SimpleNamespace(class_names=["calm", "smiling"], task="binary")


@pytest.mark.parametrize("query", ["glasses", 1])
def test_a_query_is_an_attribute_by_name_or_index(query):
    decision = decision_for(ATTRIBUTES, query)
    assert isinstance(decision, AttributeDecision)
    assert decision.query == 1
    assert decision.class_names == ["not glasses", "glasses"]


@pytest.mark.parametrize("query", [2, "2"])
def test_an_attribute_whose_name_is_a_number_is_found_by_it(query):
    digits = SimpleNamespace(class_names=["1", "2", "3"], task="multilabel")
    assert decision_for(digits, query).class_names == ["not 2", "2"]


@pytest.mark.parametrize("query", [None, "beard", "Smiling", "1", "", 3, -1])
def test_an_unknown_query_is_refused_with_the_names(query):
    with pytest.raises(ValueError, match="0: smiling, 1: glasses, 2: hat") as error:
        decision_for(ATTRIBUTES, query)
    assert f"unknown query {query!r}" in str(error.value)


def test_the_only_attribute_has_to_be_named_too():
    one = SimpleNamespace(class_names=["smiling"], task="multilabel")
    with pytest.raises(ValueError, match=r"unknown query None: choose one of .*0: smiling"):
        decision_for(one, None)
    assert decision_for(one, "smiling").class_names == ["not smiling", "smiling"]


def test_a_classifier_of_classes_decides_between_them():
    decision = decision_for(CLASSES, None)
    assert isinstance(decision, ClassDecision)
    assert decision.class_names == NAMES


def test_a_binary_classifier_decides_between_its_two_classes():
    decision = decision_for(BINARY, None)
    assert type(decision) is BinaryDecision
    assert decision.class_names == ["calm", "smiling"]
    with pytest.raises(ValueError, match=r"query 'smiling' .*\(0: calm, 1: smiling\): leave query out"):
        decision_for(BINARY, "smiling")


@pytest.mark.parametrize("query", ["glasses", 0, "beard"])
def test_a_query_to_a_classifier_of_classes_is_refused(query):
    with pytest.raises(
        ValueError, match=r"between classes \(0: smiling, 1: glasses, 2: hat\): leave query out"
    ) as error:
        decision_for(CLASSES, query)
    assert f"query {query!r}" in str(error.value)


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


def test_images_that_the_networks_do_not_take_are_refused_by_the_first_batch(module, tmp_path):
    sample = {"image": torch.full((3, 63, 63), 0.5), "label": torch.zeros(14), "id": "a"}
    with pytest.raises(ValueError, match=r"63x63.*multiples of 2"):
        trainer(tmp_path, inference_mode=False).predict(module, DataLoader([sample]))


class Three(ImageDataModule):
    """Three attributes, in another order than the classifier's."""

    image_size, channels, class_names = 64, 3, ["glasses", "smiling", "hat"]

    def dataset(self, split):
        raise NotImplementedError


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (["hat", "glasses"], [[3, 1], [6, 4]]),
        (["smiling", "glasses", "hat"], [[2, 1, 3], [5, 4, 6]]),
        (["a", "b", "c"], [[1, 2, 3], [4, 5, 6]]),
        (["hat", "beard"], [[3, -1], [6, -1]]),
        (["beard"], None),
    ],
)
def test_labels_are_those_of_the_classifiers_attributes(module, wanted, expected):
    module.classifier.class_names = wanted
    labels = module.labels({"label": torch.tensor([[1, 2, 3], [4, 5, 6]])}, Three())
    assert (labels if labels is None else labels.tolist()) == expected


def test_images_without_labels_are_explained(module, avatar_cache, tmp_path):
    sample = AvatarsDataset("test", 1, cache_dir=str(avatar_cache))[0]
    loader = DataLoader([{"image": sample["image"], "id": sample["id"]}])
    ((explanation,),) = trainer(tmp_path, inference_mode=False).predict(module, loader)
    assert explanation.label is None
    assert explanation.status in ("flipped", "not_flipped")


def test_what_an_earlier_run_repainted_stays_as_it_is(classifier_folder, ddpm_folder, loader, tmp_path):
    def explain(**options):
        networks = (str(classifier_folder), str(ddpm_folder), "smiling")
        refinement = Refinement(threshold=0.9, dilation=3)
        module = LitCounterfactual(*networks, attack=PGD(1, 2.0), refinement=refinement, steps=2, slots=2, **options)
        batches = trainer(tmp_path, inference_mode=False).predict(module, loader)
        return {explanation.id: explanation for batch in batches for explanation in batch}

    first = explain()
    id = loader.dataset.ids[0]  # the other images were not explained in the run
    assert first[id].mask.any()
    store = RunStore.create(tmp_path / "first", {}, {})
    save_explanation(store, first[id], seed=0)
    for other in explain(avoid=[str(store.folder)]).values():
        used = first[other.id].mask if other.id == id else torch.zeros_like(other.mask)
        assert other.mask.any()
        assert not (other.mask & used).any()
        assert torch.equal(other.counterfactual.where(used, 0), other.original.where(used, 0))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        explain(avoid=[str(tmp_path / "nowhere")])


def test_earlier_runs_do_not_repel_sign_steps(classifier_folder, ddpm_folder, tmp_path):
    RunStore.create(tmp_path / "first", {}, {})
    with pytest.raises(ValueError, match=r"sign steps take no weights: use ace\.ProximalGradient"):
        LitCounterfactual(str(classifier_folder), str(ddpm_folder), "smiling", repel=[str(tmp_path / "first")])
