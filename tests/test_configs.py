"""Every YAML file under configs/ says how it is used, and is taken by the real command lines."""

import json
import re
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
import yaml
from lightning import LightningDataModule, LightningModule
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

import explain
from ace.evaluation import evaluate
from ace.models.classifiers import ImageClassifier
from ace.models.oracles import CELEBA_ATTRIBUTES
from ace.record import Record
from ace.run_store import RunStore
from datamodules import ImageDataModule
from datamodules.bdd_oia import ACTIONS
from datamodules.imagenet import NAMES
from lit_modules import LitCounterfactual
from lit_modules.cli import TrainCLI
from lit_modules.set_up import ExplainCLI
from tests import layouts

ROOT = Path(__file__).parents[1]
EVALUATION = "configs/avatars/evaluate.yaml"  # of a command that needs a run
EVERY_CONFIG = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "configs").rglob("*.yaml"))
SWEEP = "configs/sweeps/lambda_tau.yaml"  # of a command of W&B
PRESETS = [config for config in EVERY_CONFIG if config.startswith("configs/presets/")]  # on top of another one
EVALUATIONS = [config for config in EVERY_CONFIG if config.endswith("/evaluate.yaml")]
CONFIGS = [config for config in EVERY_CONFIG if config not in (SWEEP, *EVALUATIONS, *PRESETS)]
COMMAND = re.compile(
    r"^#   python (train\.py fit|explain\.py generate|explain\.py evaluate \S+) (--config .+)$", re.MULTILINE
)


TINY = {"growth_rate": 4, "block_config": [1, 1], "num_init_features": 8}  # options of a DenseNet
# What the classifier of a domain tells apart; the names of its classes, or of its attributes.
CLASSES = {"image_folder": ["cat", "dog"], "imagenet": NAMES}
ATTRIBUTES = {
    "celeba": list(CELEBA_ATTRIBUTES),
    "celeba_hq": ["Male", "Smiling", "Young"],
    "bdd100k": list(ACTIONS),
    "bdd_oia": list(ACTIONS),
}


@pytest.fixture(scope="session")
def roots(tmp_path_factory):
    """A tiny data set of each domain that has files, in its layout."""
    own = tmp_path_factory.mktemp("own")
    for split in ("train", "val", "test"):
        for name in ("cat", "dog"):
            layouts.image(own / split / name / "0.png", 70, 70)
    published = ("celeba", "celeba_hq", "bdd100k", "bdd_oia", "imagenet")
    return {"image_folder": own} | {name: getattr(layouts, name)(tmp_path_factory.mktemp(name)) for name in published}


@pytest.fixture(scope="session")
def classifiers(tmp_path_factory, classifier_folder):
    """Folder of a tiny classifier for each domain."""
    folders = {"avatars": classifier_folder}
    for task, domains in (("multiclass", CLASSES), ("multilabel", ATTRIBUTES)):
        for name, names in domains.items():
            folders[name] = tmp_path_factory.mktemp(f"{name} classifier")
            ImageClassifier("torchvision.models.DenseNet", names, task, TINY).save_pretrained(folders[name])
    return folders


@pytest.fixture
def set_up(roots, classifiers, ddpm_folder, tmp_path_factory, tmp_path, monkeypatch):
    """Instantiates what a command line describes, with tiny networks or on the meta device, and runs nothing."""

    def make(script, arguments):
        monkeypatch.setattr("sys.argv", ["test"])
        config = next((argument for argument in arguments if argument.startswith("configs/")), "")
        domain = Path(config).parent.name
        # BDD100k has no labels: its classifier learns from another data set.
        root = roots.get("bdd_oia" if config == "configs/bdd100k/classifier.yaml" else domain)
        arguments = [argument.replace("ROOT", str(root)) for argument in arguments]
        arguments = [str(ROOT / argument) if argument.startswith("configs/") else argument for argument in arguments]
        monkeypatch.chdir(tmp_path)
        if script.startswith("train.py"):
            if config == "configs/avatars/robust.yaml":
                arguments.append(f"--model.pretrained={ROOT / 'weights/avatars/classifier/model.safetensors'}")
            with torch.device("meta") if domain in roots else nullcontext():
                return TrainCLI(
                    LightningModule,
                    LightningDataModule,
                    subclass_mode_model=True,
                    subclass_mode_data=True,
                    auto_configure_optimizers=False,
                    run=False,
                    args=arguments,
                )
        tiny = {"classifier": str(classifiers[domain or "avatars"]), "diffusion": str(ddpm_folder)}
        if config:  # published weights are not here, and their classes read files
            content = yaml.safe_load((ROOT / config).read_text())
            content["model"] |= tiny
            copy = tmp_path_factory.mktemp("config") / "explain.yaml"
            copy.write_text(yaml.safe_dump(content))
            arguments = [argument.replace(str(ROOT / config), str(copy)) for argument in arguments]
        else:
            arguments = [*arguments, *(f"--model.{name}={folder}" for name, folder in tiny.items())]
        return ExplainCLI(LitCounterfactual, ImageDataModule, subclass_mode_data=True, run=False, args=arguments)

    return make


def commands(config):
    """The script and the arguments of each command in the opening comment."""
    comment = re.match(r"(#.*\n)*", (ROOT / config).read_text()).group()
    return [(script, arguments.split()) for script, arguments in COMMAND.findall(comment)]


def test_there_are_configs():
    assert {f"configs/avatars/{name}.yaml" for name in ("classifier", "ddpm", "explain")} <= set(CONFIGS)


@pytest.mark.parametrize("config", EVERY_CONFIG)
def test_a_config_begins_with_what_it_does_and_its_command(config):
    first = (ROOT / config).read_text().splitlines()[0]
    assert re.fullmatch(r"# [A-Z].{20,}", first)
    if config == SWEEP:
        assert f"#   wandb sweep {config}\n" in (ROOT / config).read_text()
        return
    assert commands(config)
    assert all(config in arguments for _, arguments in commands(config))


@pytest.mark.parametrize("config", CONFIGS)
def test_the_command_of_a_config_instantiates_all_its_classes(config, set_up, tmp_path):
    for script, arguments in commands(config):
        cli = set_up(script, arguments)
        written = yaml.safe_load((ROOT / config).read_text())
        for owner, part in ((cli.model, written.get("model", {})), (cli.datamodule, written.get("data", {}))):
            assert type(owner).__name__ == part.get("class_path", type(owner).__name__).rpartition(".")[2]
        wanted = [item["class_path"].rpartition(".")[2] for item in written["trainer"].get("callbacks", [])]
        assert set(wanted) <= {type(callback).__name__ for callback in cli.trainer.callbacks}
        logger = written["trainer"]["logger"]["class_path"].rpartition(".")[2]
        assert [type(logger).__name__ for logger in cli.trainer.loggers] == [logger]
        output_dir = cli.config.output_dir
        assert cli.trainer.default_root_dir == cli.trainer.logger.save_dir == output_dir
    assert not list(tmp_path.iterdir()), "setting up writes nothing"


def test_the_command_of_an_evaluation_judges_a_run_by_the_networks_of_the_repository(
    arguments, tmp_path, monkeypatch, capsys
):
    [(script, options)] = commands(EVALUATION)
    _, command, run = script.split()
    monkeypatch.chdir(tmp_path)
    for name in ("configs", "weights"):
        (tmp_path / name).symlink_to(ROOT / name)
    explain.main(arguments(run, "--data.train_size=50", num_images=2))
    with pytest.warns(UserWarning, match=r"^s?fd_classifier is left out: .* at least 1025 originals") as complaints:
        explain.main([command, run, *options, "--subsets=all"])
    assert len(complaints) == 2, "every network is there"
    metrics, printed = json.loads((tmp_path / run / "metrics.json").read_text())["metrics"], capsys.readouterr().out
    for name in ("cout", "cout_paper", "non_adversarial_flip_rate", "mnac", "change_in_region"):
        assert metrics[name]["interval"][0] <= metrics[name]["value"] <= metrics[name]["interval"][1]
        assert name in printed
    assert "cd" in metrics


@pytest.mark.parametrize("config", [config for config in EVALUATIONS if config != EVALUATION])
def test_an_evaluation_of_another_domain_names_the_networks_that_are_missing(
    config, arguments, tmp_path, monkeypatch, capsys
):
    content = yaml.safe_load((ROOT / config).read_text())
    [(script, options)] = commands(config)
    explained = sorted((ROOT / config).parent.glob("explain*.yaml"))[0]
    run = yaml.safe_load(explained.read_text())["output_dir"]
    assert script.split() == ["explain.py", "evaluate", run]
    explain.main(arguments(tmp_path / run, num_images=2))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    with pytest.warns(UserWarning, match="is left out") as complaints:
        explain.main(["evaluate", run, *options])
    missing = [str(one.message) for one in complaints if "is left out" in str(one.message)]
    for name, path in content["networks"].items():
        assert any(text.startswith(f"{name} is left out") and path in text for text in missing), (name, missing)
    assert "flip_rate" in capsys.readouterr().out


@pytest.mark.parametrize("base", ["configs/avatars/explain.yaml", "configs/celeba/explain_l1.yaml"])
@pytest.mark.parametrize("config", PRESETS)
def test_a_preset_takes_the_place_of_every_setting_that_is_its_matter(config, base, set_up):
    [(script, _)] = commands(config)
    root = ["--data.root", "ROOT"] if "celeba" in base else []
    cli = set_up(script, ["--config", base, "--config", config, *root])
    written, found = yaml.safe_load((ROOT / config).read_text())["model"], cli.plain_config()["model"]
    pixels = yaml.safe_load((ROOT / base).read_text())["model"]["refinement"]["dilation"]  # that is the images' matter
    written["refinement"] |= {"dilation": pixels}
    assert {name: found[name] for name in written} == written
    assert {"attack", "distance", "steps", "respacing", "refinement", "gradient_passes", "repairs"} == written.keys()


def test_the_demo_is_the_preset_that_a_user_begins_with():
    demo, fast = (
        yaml.safe_load((ROOT / config).read_text())["model"]
        for config in ("configs/avatars/explain.yaml", "configs/presets/fast.yaml")
    )
    assert demo["steps"] == fast.pop("steps") * demo["respacing"]
    assert demo["refinement"].pop("dilation")
    assert demo["refinement"] == fast["refinement"]
    assert {name: demo[name] for name in fast} == fast


@pytest.mark.parametrize("config", [config for config in CONFIGS if "/explain" in config])
def test_an_explanation_has_one_seed_and_no_ball(config):
    content = yaml.safe_load((ROOT / config).read_text())
    assert "seed_everything" not in content, "the seed of the method is the model's"
    assert isinstance(content["model"]["seed"], int)
    assert content["model"]["attack"]["init_args"].get("epsilon") is None


def test_every_run_of_the_sweep_is_a_command_with_a_folder_of_its_own(set_up, monkeypatch):
    sweep = yaml.safe_load((ROOT / SWEEP).read_text())
    program, *command = create_sweep_command(sweep["command"])[2:]
    assert (sweep["program"], program, command.pop(0)) == ("explain.py", "${program}", "generate")
    for position, run in ((0, "first"), (-1, "last")):
        monkeypatch.setenv("WANDB_RUN_ID", run)  # as the agent does after it has expanded the command
        chosen = {name: {"value": given["values"][position]} for name, given in sweep["parameters"].items()}
        flags = create_sweep_command_args({"args": chosen})["args"]
        written = [argument.replace("=configs/", f"={ROOT}/configs/") for argument in command]
        cli = set_up("explain.py generate", [*written[: written.index("${args}")], *flags])
        assert cli.config.output_dir == cli.trainer.default_root_dir == f"outputs/sweep/{run}"
        assert {name: cli.config[name] for name in chosen} == {name: given["value"] for name, given in chosen.items()}


def test_the_sweep_maximises_what_a_run_has_in_its_summary(tmp_path):
    metric = yaml.safe_load((ROOT / SWEEP).read_text())["metric"]
    store = RunStore.create(tmp_path / "run", {}, {})
    store.add(Record(id="a", seed=0, status="failed: why"), {})
    assert metric["goal"] == "maximize"
    assert metric["name"] in {f"metrics/{name}" for name in evaluate(store)["metrics"]}


def test_an_output_folder_of_an_unknown_variable_is_refused(set_up, capsys):
    with pytest.raises(SystemExit):
        set_up("explain.py generate", ["--config", "configs/avatars/explain.yaml", "--output_dir", "runs/$NOT_SET"])
    assert "the environment has no NOT_SET: set it" in capsys.readouterr().err


def test_the_home_folder_is_found_where_the_shell_has_left_its_name(set_up, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    cli = set_up("train.py fit", ["--config", "configs/avatars/ddpm.yaml", "--output_dir=~/runs/a"])
    assert cli.config.output_dir == cli.trainer.default_root_dir == f"{tmp_path}/runs/a"


@pytest.mark.parametrize("script", ["train.py fit", "explain.py generate"])
@pytest.mark.parametrize("logger", ["csv", "tensorboard", "wandb"])
def test_a_logger_takes_the_place_of_another_with_all_its_settings(script, logger, set_up):
    """The loggers have other arguments: those of the first would be refused."""
    first = "configs/avatars/explain.yaml" if script.startswith("explain") else "configs/avatars/classifier.yaml"
    cli = set_up(script, ["--config", first, "--config", f"configs/logger/{logger}.yaml"])
    [made] = cli.trainer.loggers
    assert type(made).__name__.lower() == f"{logger}logger"
    assert made.save_dir == cli.config.output_dir
    assert made.name == {"wandb": "ace"}.get(logger, logger)


LOGGERS = "lightning.pytorch.loggers"


@pytest.mark.parametrize(
    ("loggers", "asked"),
    [
        ([f"{LOGGERS}.WandbLogger", f"{LOGGERS}.CSVLogger"], 1),
        ([f"{LOGGERS}.CSVLogger", f"{LOGGERS}.TensorBoardLogger"], 0),
    ],
)
def test_every_logger_of_a_list_writes_into_the_output_folder(loggers, asked, set_up, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr("lit_modules.cli.never_prompt", lambda: calls.append("asked"))
    more = {"trainer": {"logger": [{"class_path": logger, "init_args": {"save_dir": "."}} for logger in loggers]}}
    (tmp_path / "loggers.yaml").write_text(yaml.safe_dump(more))
    arguments = ["--config", "configs/avatars/explain.yaml", "--config", str(tmp_path / "loggers.yaml")]
    cli = set_up("explain.py generate", [*arguments, "--output_dir", "here"])
    assert [type(logger).__name__ for logger in cli.trainer.loggers] == [name.rpartition(".")[2] for name in loggers]
    assert [logger.save_dir for logger in cli.trainer.loggers] == ["here", "here"]
    assert len(calls) == asked


@pytest.mark.parametrize(
    ("logger", "asked"), [(f"{LOGGERS}.WandbLogger", 1), (f"{LOGGERS}.CSVLogger", 0), ("false", 0)]
)
def test_only_a_wandb_logger_asks_for_credentials(logger, asked, set_up, monkeypatch):
    calls = []
    monkeypatch.setattr("lit_modules.cli.never_prompt", lambda: calls.append("asked"))
    set_up("train.py fit", ["--config", "configs/avatars/classifier.yaml", "--trainer.logger", logger])
    assert len(calls) == asked


@pytest.mark.parametrize("config", ["configs/avatars/classifier.yaml", "configs/avatars/explain.yaml"])
@pytest.mark.parametrize("key", ["nonsense", "trainer.nonsense", "data.init_args.nonsense", "model.nonsense"])
def test_an_unknown_key_is_refused(config, key, set_up, tmp_path, capsys):
    content = yaml.safe_load((ROOT / config).read_text())
    target = content
    for name in key.split(".")[:-1]:
        target = target[name]
    target["nonsense"] = 1
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(content))
    [(script, _)] = commands(config)
    with pytest.raises(SystemExit) as exit:
        set_up(script, ["--config", str(tmp_path / "wrong.yaml")])
    assert exit.value.code == 2
    assert "nonsense" in capsys.readouterr().err


def test_the_classes_of_a_classifier_are_those_of_the_data(set_up):
    cli = set_up("train.py fit", ["--config", "configs/avatars/classifier.yaml"])
    assert cli.model.classifier.class_names == cli.datamodule.class_names


def test_the_slots_are_filled_by_one_batch(set_up):
    cli = set_up("explain.py generate", ["--config", "configs/avatars/explain.yaml", "--model.slots", "5"])
    assert cli.datamodule.batch_size == cli.model.explainer.slots == 5


@pytest.mark.parametrize("config", ["configs/avatars/explain.yaml", "configs/bdd100k/explain_l1.yaml"])
def test_single_images_take_the_place_of_the_data_set_and_keep_its_size(config, roots, set_up):
    paths = [str(roots["image_folder"] / "test" / name / "0.png") for name in ("cat", "dog")]
    folder = str(roots["image_folder"] / "val" / "cat")
    arguments = ["--config", config, "--data", "datamodules.ImagePathsDataModule", "--data.paths"]
    data = set_up("explain.py generate", [*arguments, paths[0]]).datamodule
    assert data.dataset("test").paths == [paths[0]]
    data = set_up("explain.py generate", [*arguments, f"{folder}/*.png", folder, "--model.slots", "2"]).datamodule
    assert len(data.predict_ids()) == 1
    expected = yaml.safe_load((ROOT / config).read_text())["data"]["init_args"]
    size = expected.get("image_size", 64)
    assert data.image_size == (tuple(size) if isinstance(size, list) else size)
    assert data.resample == expected.get("resample", "bilinear")
