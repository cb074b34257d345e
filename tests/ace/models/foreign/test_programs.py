"""TorchScript and exported programs: gradients, batch sizes, and what is refused."""

import zipfile

import pytest
import torch
from torch.export import Dim

from ace.models.foreign import ScriptClassifier

NAMES = ["calm", "smiling"]
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*deprecated")


@pytest.fixture
def script(net, tmp_path):
    torch.jit.save(torch.jit.script(net.train()), tmp_path / "net.pt")
    net.eval()
    return tmp_path / "net.pt"


@pytest.fixture
def export(net, images, tmp_path):
    def make(**options):
        torch.export.save(torch.export.export(net, (images,), **options), tmp_path / "net.pt2")
        return tmp_path / "net.pt2"

    return make


def check(classifier, net, images):
    """Same logits and gradient as the network, for any number of images; frozen, in evaluation mode."""
    for count in (1, 2):
        inputs = images[:count].clone().requires_grad_()
        logits = classifier(inputs)
        torch.testing.assert_close(logits, net(inputs * 2 - 1))
        (gradient,) = torch.autograd.grad(logits.sum(), inputs)
        torch.testing.assert_close(gradient, torch.autograd.grad(net(inputs * 2 - 1).sum(), inputs)[0])
    assert not any(module.training for module in classifier.train().eval().modules())
    assert not any(weight.requires_grad for weight in classifier.parameters())


HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}


def test_a_script_saved_in_training_mode(script, net, images):
    check(ScriptClassifier(str(script), NAMES, **HALF), net, images)


def test_a_program_with_a_free_batch_dimension(export, net, images):
    path = export(dynamic_shapes=({0: Dim.DYNAMIC},))
    classifier = ScriptClassifier(str(path), NAMES, **HALF)
    check(classifier, net, images)
    with pytest.raises(ValueError, match=r"does not take the shape \(2, 3, 8, 8\) .*dynamic_shapes"):
        classifier(images[..., :8, :8])
    resized = ScriptClassifier(str(path), NAMES, **HALF, size=(16, 16))
    assert resized(images[..., :8, :8]).shape == (2, 2)
    assert resized.identity["weights"] == classifier.identity["weights"]


def test_a_program_with_a_fixed_batch_says_so(export, images):
    classifier = ScriptClassifier(str(export()), NAMES)
    assert classifier(images).shape == (2, 2)
    with pytest.raises(ValueError, match=r"shape \(1, 3, 16, 16\) \(Guard failed.*Dim.DYNAMIC"):
        classifier(images[:1])


def test_other_files_are_refused(script, net, tmp_path, trap):
    torch.save(net.state_dict(), tmp_path / "state.pt")
    script.rename(tmp_path / "renamed.pt2")
    for path in (tmp_path / "state.pt", tmp_path / "renamed.pt2", trap("trap.pt"), trap("trap.pt2")):
        with pytest.raises(ValueError, match=r"neither TorchScript.*ModuleClassifier"):
            ScriptClassifier(str(path), NAMES)
    with pytest.raises(FileNotFoundError, match=r"no weights at .*absent.pt"):
        ScriptClassifier(str(tmp_path / "absent.pt"), NAMES)


def test_a_pickle_inside_a_program_is_not_run(export, tmp_path, trap):
    """The inputs that a program was exported with are stored by `torch.save`."""
    path, bad = export(), tmp_path / "bad.pt2"
    with open(trap("trap.pt"), "rb") as file:
        pickle = file.read()
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(bad, "w") as target:
        for item in source.infolist():
            target.writestr(item, pickle if item.filename.endswith("model.pt") else source.read(item))
    with pytest.raises(ValueError, match="neither TorchScript"):
        ScriptClassifier(str(bad), NAMES)
