"""The commands with classifiers that were trained elsewhere."""

import json
import warnings

import pytest
import torch
import yaml
from torch import nn

import explain
from ace.models.classifiers import ImageClassifier
from ace.models.foreign import ModuleClassifier
from ace.run_store import RunStore
from datamodules.avatar_faces import ATTRIBUTES
from tests.conftest import pictures, records

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore:.*torch.jit.*deprecated")]


class Net(nn.Module):
    """Takes images in [-1, 1]; the network of the other tests."""

    def __init__(self, classifier: ImageClassifier | None = None) -> None:
        super().__init__()
        options = {"growth_rate": 4, "block_config": [1, 1], "num_init_features": 8}
        blank = ImageClassifier("torchvision.models.DenseNet", list(ATTRIBUTES), "multilabel", options)
        self.network = (classifier or blank).network

    def forward(self, images):
        return self.network(images)


@pytest.fixture(scope="module")
def made(classifier_folder, tmp_path_factory):
    """The classifier of the other tests as two kinds of foreign ones: configuration by kind."""
    folder = tmp_path_factory.mktemp("foreign")
    net = Net(ImageClassifier.from_pretrained(classifier_folder)).eval()
    torch.save(net.state_dict(), folder / "net.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.trace(net, torch.rand(2, 3, 64, 64)), folder / "script.pt")
    common = {"class_names": list(ATTRIBUTES), "task": "multilabel", "mean": [0.5] * 3, "std": [0.5] * 3}
    module = {"module": f"{Net.__module__}.Net", "weights": str(folder / "net.pt")}
    return {
        "ModuleClassifier": {"class_path": "ModuleClassifier", "init_args": module | common},
        "ScriptClassifier": {
            "class_path": "ace.models.foreign.ScriptClassifier",
            "init_args": {"path": str(folder / "script.pt")} | common,
        },
    }


@pytest.fixture
def with_classifier(arguments, tmp_path):
    """Makes arguments of `generate` with a classifier in a YAML file."""

    def make(folder, classifier, *overrides):
        (tmp_path / "classifier.yaml").write_text(yaml.safe_dump({"model": {"classifier": classifier}}))
        name, config, *others = [a for a in arguments(folder, *overrides) if not a.startswith("--model.classifier=")]
        return [name, config, f"--config={tmp_path / 'classifier.yaml'}", *others]

    return make


@pytest.fixture(scope="module")
def own(arguments, tmp_path_factory):
    """A run with the same network as one of our own folders."""
    folder = tmp_path_factory.mktemp("own") / "run"
    explain.main(arguments(folder, "--data.num_images=2"))
    return folder


@pytest.mark.parametrize("kind", ["ModuleClassifier", "ScriptClassifier"])
def test_explained_as_the_same_network_of_our_own(kind, own, made, with_classifier, tmp_path):
    explain.main(with_classifier(tmp_path / "run", made[kind], "--data.num_images=2"))
    assert pictures(tmp_path / "run") == pictures(own)
    store = RunStore.open(tmp_path / "run")
    assert store.settings["weights"]["classifier"]["class"] == kind
    assert len(store.settings["weights"]["classifier"]["weights"]) == 64
    assert store.config["model"]["classifier"]["class_path"].endswith(kind)


def test_the_other_commands_load_it_too(made, with_classifier, tmp_path, capsys):
    command = with_classifier(tmp_path / "run", made["ModuleClassifier"], "--data.num_images=2")
    explain.main(command)
    explain.main(command)  # goes on: nothing is left to do
    assert "2 of them done before" in capsys.readouterr().out
    explain.main(["refine", str(tmp_path / "run"), "--threshold=0.5", f"--output_dir={tmp_path / 'refined'}"])
    assert records(tmp_path / "refined").keys() == records(tmp_path / "run").keys()
    explain.main(["evaluate", str(tmp_path / "run")])
    assert "cout" in json.loads((tmp_path / "run" / "metrics.json").read_text())["metrics"]
    explain.main(["report", str(tmp_path / "run")])


def test_another_classifier_is_refused(made, with_classifier, tmp_path):
    spec = made["ModuleClassifier"]
    explain.main(with_classifier(tmp_path / "run", spec, "--data.num_images=1"))
    other = {"class_path": "ModuleClassifier", "init_args": spec["init_args"] | {"mean": [0.4] * 3}}
    with pytest.raises(SystemExit, match=r"weights.classifier.mean"):
        explain.main(with_classifier(tmp_path / "run", other, "--data.num_images=1"))

    weights = tmp_path / "net.pt"  # same place, other content
    torch.save(Net().state_dict(), weights)
    changed = RunStore.open(tmp_path / "run").config["model"]["classifier"]["init_args"] | {"weights": str(weights)}
    with pytest.raises(SystemExit, match=r"weights.classifier.weights"):
        explain.main(with_classifier(tmp_path / "run", spec | {"init_args": changed}, "--data.num_images=1"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": "absent.pt"}, "no weights at 'absent.pt'"),
        ({"module": "os.system"}, "'os.system' is not an nn.Module class"),
        ({"class_names": ["smiling", "glasses"]}, r"gives 14 logits, but \['smiling', 'glasses'\] are named"),
        ({"mean": [0.5], "std": [0.5]}, "its network takes 3 channels: give `mean` and `std` 3 entries each"),
    ],
)
def test_mistakes_end_in_a_sentence_before_the_run(change, message, made, with_classifier, tmp_path):
    spec = {"class_path": "ModuleClassifier", "init_args": made["ModuleClassifier"]["init_args"] | change}
    with pytest.raises(SystemExit, match=f"^error: .*{message}"):
        explain.main(with_classifier(tmp_path / "run", spec))
    assert not (tmp_path / "run").exists()


def test_a_file_as_a_classifier_is_answered_with_the_classes(made, arguments, tmp_path):
    path = made["ModuleClassifier"]["init_args"]["weights"]
    with pytest.raises(SystemExit, match=r"^error: .*net.pt' is a file.*ModuleClassifier"):
        explain.main(arguments(tmp_path / "run", f"--model.classifier={path}"))


def test_a_classifier_on_the_command_line(made, arguments, tmp_path):
    init = made["ModuleClassifier"]["init_args"]
    flags = [
        f"--model.classifier.{name}={value if isinstance(value, str) else json.dumps(value)}"
        for name, value in init.items()
    ]
    given = [a for a in arguments(tmp_path / "run") if not a.startswith("--model.classifier=")]
    explain.main([*given, "--model.classifier=ModuleClassifier", *flags, "--data.num_images=1"])
    assert RunStore.open(tmp_path / "run").settings["weights"]["classifier"]["class"] == ModuleClassifier.__name__


def test_labels_belong_to_the_logits_that_are_kept(made, with_classifier, tmp_path):
    """A classifier that keeps the sixth attribute alone is compared with the sixth label of the data."""
    query, index = ATTRIBUTES[5], 5
    chosen = {"class_names": [query], "outputs": [index]}
    spec = {"class_path": "ModuleClassifier", "init_args": made["ModuleClassifier"]["init_args"] | chosen}
    options = (f"--model.query={query}", "--data.num_images=2")
    explain.main(with_classifier(tmp_path / "chosen", spec, *options))
    explain.main(with_classifier(tmp_path / "all", made["ModuleClassifier"], *options))
    assert pictures(tmp_path / "chosen") == pictures(tmp_path / "all")
    assert [r["label"] for r in records(tmp_path / "chosen").values()] == [
        r["label"] for r in records(tmp_path / "all").values()
    ]


@pytest.mark.parametrize("kind", ["ModuleClassifier", "ScriptClassifier"])
def test_a_foreign_classifier_may_be_the_second_opinion(kind, made, with_classifier, tmp_path, capsys):
    run = tmp_path / "run"
    explain.main(with_classifier(run, made["ModuleClassifier"]))
    (tmp_path / "judges.yaml").write_text(yaml.safe_dump({"networks": {"second_classifier": made[kind]}}))
    explain.main(["evaluate", str(run), f"--config={tmp_path / 'judges.yaml'}"])
    metrics = json.loads((run / "metrics.json").read_text())["metrics"]
    assert metrics["non_adversarial_flip_rate"]["value"] == metrics["flip_rate"]["value"], "it is the same network"
    assert f"{kind}, weights" in metrics["non_adversarial_flip_rate"]["convention"]
    (tmp_path / "judges.yaml").write_text(yaml.safe_dump({"networks": {"classifier": made[kind]}}))
    with pytest.raises(SystemExit, match=r"classifier takes a path: .* second_classifier alone may be a class"):
        explain.main(["evaluate", str(run), f"--config={tmp_path / 'judges.yaml'}"])
