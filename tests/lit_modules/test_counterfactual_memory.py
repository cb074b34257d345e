"""How many images are explained at a time, in what memory and in which layout of it."""

import re
import sys

import pytest
import torch
from lightning import LightningModule
from torch.utils.data import DataLoader

import explain
from ace.attacks import PGD
from datamodules.avatars import AvatarsDataModule, AvatarsDataset
from lit_modules import counterfactual
from lit_modules.counterfactual import LitCounterfactual


@pytest.fixture
def make(classifier_folder, ddpm_folder):
    """Makes a module that leaves slots and segments open."""

    def make(**options):
        return LitCounterfactual(
            str(classifier_folder), str(ddpm_folder), "smiling", attack=PGD(1, 2.0), steps=2, **options
        )

    return make


@pytest.fixture
def predict(avatar_cache, make_trainer, caplog):
    """Explains some avatars; gives the data module and what was said."""

    def run(module, images):
        caplog.set_level("INFO")
        data = AvatarsDataModule(cache_dir=str(avatar_cache), test_size=8, num_images=images, num_workers=0)
        found = make_trainer(inference_mode=False).predict(module, datamodule=data)
        assert sum(map(len, found)) == images
        return data, [record.getMessage() for record in caplog.records if "Memory plan" in record.getMessage()]

    return run


def memory_for(monkeypatch, slots, segments):
    """Make so much memory free that so many images fit."""
    choose = counterfactual.choose_plan

    def little(work, free, device, *given):
        return choose(work, int(work.bytes(slots, segments, 2.0) / 0.9) + 1, device, *given)

    monkeypatch.setattr(counterfactual, "choose_plan", little)


def test_slots_and_segments_left_open_are_chosen_before_the_images_come(make, predict):
    module = make()
    data, [said] = predict(module, images=3)
    assert module.explainer.slots == len(module.explainer.pool.queries) == data.batch_size == 3
    assert module.diffusion_filter.segments == 1
    assert re.search(
        r"slots 3, segments 1 \(there are no more images\): needs \S+ of \S+ GiB .* --model.slots, --model.segments",
        said,
    )


def test_little_memory_takes_fewer_slots_then_more_segments(make, predict, monkeypatch):
    with monkeypatch.context() as patch:
        memory_for(patch, 1, 1)
        module = make()
        predict(module, images=2)
    assert (module.explainer.slots, module.diffusion_filter.segments) == (1, 1)
    memory_for(monkeypatch, 1, 2)
    module = make()
    predict(module, images=1)
    assert (module.explainer.slots, module.diffusion_filter.segments) == (1, 2)


def test_less_memory_than_for_one_image_warns_and_tries(make, predict, monkeypatch):
    monkeypatch.setattr(counterfactual, "free_memory", lambda device, processes: 1000)
    module = make()
    with pytest.warns(UserWarning, match=r"may not be enough: slots 1, segments 2 .*9.3e-07 GiB"):
        predict(module, images=1)
    assert (module.explainer.slots, module.diffusion_filter.segments) == (1, 2)


def test_what_is_given_is_not_chosen(make, predict, monkeypatch):
    module = make(slots=3)
    data, [said] = predict(module, images=1)
    assert (module.explainer.slots, data.batch_size, module.diffusion_filter.segments) == (3, 3, 1)
    assert "slots are given" in said
    monkeypatch.setattr(counterfactual, "measure", None)  # nothing is left to find out
    module = make(slots=1, segments=2)
    predict(module, images=1)
    assert (module.explainer.slots, module.diffusion_filter.segments) == (1, 2)


def test_a_run_that_goes_on_keeps_its_slots(make, predict):
    module = make()
    module.kept_slots = 3
    _, [said] = predict(module, images=1)
    assert module.explainer.slots == 3
    assert "with the slots that the run began with: slots 3" in said


def test_without_a_data_module_images_are_taken_to_have_the_diffusion_models_size(make, make_trainer, avatar_cache):
    loader = DataLoader(AvatarsDataset("test", 3, cache_dir=str(avatar_cache)), batch_size=2)
    module = make(deterministic=False)
    found = make_trainer(inference_mode=False).predict(module, loader)
    assert sum(map(len, found)) == len(loader.dataset)
    assert module.explainer.slots == 16
    module = make()
    module.diffusion_filter.unet.register_to_config(sample_size=None)
    with pytest.raises(ValueError, match=r"does not tell the size of its images: give slots and segments"):
        make_trainer(inference_mode=False).predict(module, loader)


@pytest.mark.parametrize(("device", "last"), [("cuda", True), ("cpu", False)])
def test_on_gpus_alone_the_diffusion_model_has_channels_last(device, last, make, monkeypatch):
    module = make()
    weight = module.diffusion_filter.unet.conv_in.weight
    monkeypatch.setattr(LightningModule, "to", lambda self, device: self)
    assert module.place(torch.device(device)) is module
    assert weight.is_contiguous(memory_format=torch.channels_last) is last


@pytest.fixture
def placed(monkeypatch):
    """Devices that networks are placed on."""
    devices = []
    place = LitCounterfactual.place
    monkeypatch.setattr(LitCounterfactual, "place", lambda *given: devices.append(given[1]) or place(*given))
    return devices


@pytest.mark.parametrize("options", [{}, {"slots": 1, "segments": 1}], ids=["with a memory plan", "without one"])
def test_a_prediction_places_the_networks_before_anything_is_measured_or_computed(
    options, placed, make, predict, monkeypatch
):
    measure, module = counterfactual.measure, make(**options)

    def measure_what_is_placed(*arguments):
        assert placed
        return measure(*arguments)

    monkeypatch.setattr(counterfactual, "measure", measure_what_is_placed)
    predict(module, images=1)
    assert set(placed) == {torch.device("cpu")}


@pytest.mark.parametrize("command", ["refine", "calibrate"])
def test_the_other_commands_place_them_too(command, placed, finished, arguments, tmp_path, monkeypatch):
    monkeypatch.setattr("lit_modules.refine.finish", lambda store: None)
    monkeypatch.setattr("lit_modules.calibrate.Calibration", lambda *_: sys.exit("placed"))
    if command == "refine":
        explain.main(["refine", str(finished), f"--output_dir={tmp_path / 'refined'}"])
    else:
        _, *options = arguments(tmp_path / "run", "--data.val_size=4")
        with pytest.raises(SystemExit, match="placed"):
            explain.main(["calibrate", *options])
    assert len(placed) == 1
