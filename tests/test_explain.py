"""The explain command from end to end, on tiny networks."""

import csv
import html
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import wandb
import yaml
from PIL import Image

import explain
from ace.diffusion_filter import DiffusionFilter
from ace.images import from_uint8, load_png
from ace.models.classifiers import ImageClassifier
from ace.run_store import RunStore
from tests.conftest import KINDS, pictures, records
from tests.wandb_files import config
from tests.wandb_files import table as table_of_wandb

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def finished(arguments, tmp_path_factory):
    """A finished run, with W&B; tests only read it."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    explain.main(arguments(folder, "--trainer.logger=lightning.pytorch.loggers.WandbLogger"))
    wandb.finish()
    return folder


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of the finished run, to change."""
    shutil.copytree(finished, tmp_path / "run", ignore=shutil.ignore_patterns("wandb"))
    return tmp_path / "run"


def table(folder):
    with (folder / "records.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def in_subprocess(arguments):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, ROOT / "explain.py", *arguments],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200, stdin=subprocess.DEVNULL,
    )  # fmt: skip


def refusal(capsys, arguments):
    """What the command says when it refuses its arguments."""
    with pytest.raises(SystemExit) as exit:
        explain.main([str(argument) for argument in arguments])
    assert exit.value.code not in (0, None)
    return f"{exit.value.code}\n{capsys.readouterr().err}"


# --- the run folder


def test_the_run_folder_is_complete(finished):
    names = {path.name for path in finished.iterdir()}
    assert names == {
        "config.yaml", "gallery.png", "generate.yaml", "images", "metrics.json", "records.csv", "records.rank0.jsonl",
        "report.html", "wandb", "wandb.json",
    }  # fmt: skip
    ids = [f"avatars-test-{index:06d}" for index in range(4)]
    for kind in KINDS:
        assert sorted(path.name for path in (finished / "images" / kind).iterdir()) == [f"{id}.png" for id in ids]
    assert sorted(records(finished)) == ids
    assert [row["id"] for row in table(finished)] == ids

    content = yaml.safe_load((finished / "config.yaml").read_text())
    assert content["config"]["model"]["attack"]["init_args"]["iterations"] == 2
    assert all(re.fullmatch("[0-9a-f]{64}", value) for value in content["settings"]["weights"].values())
    names = ["not smiling", "smiling"]
    assert content["settings"]["decision"] == {"class_names": names, "target_names": names}
    assert content["settings"]["precision"] == "32-true"
    assert set(content["versions"]) >= {"python", "lightning-ace", "torch", "lightning", "diffusers"}

    metrics = json.loads((finished / "metrics.json").read_text())
    rows = table(finished)
    assert metrics["n"] == 4
    assert metrics["metrics"]["flip_rate"]["value"] == sum(row["flipped"] == "True" for row in rows) / 4
    for name in ("l1", "l2", "linf", "changed_area"):
        assert metrics["metrics"][name]["value"] == pytest.approx(np.mean([float(row[name]) for row in rows]))
    assert load_png(finished / "gallery.png").std() > 10
    page = (finished / "report.html").read_text()
    assert all(id in page for id in ids)


def test_a_run_is_tracked_offline(finished):
    [folder] = (finished / "wandb").glob("offline-run-*")
    [picture] = folder.glob("files/media/images/gallery*.png")
    assert np.array_equal(load_png(picture), load_png(finished / "gallery.png"))
    assert {row["id"] for row in table_of_wandb(folder, "counterfactuals")} == records(finished).keys()
    content, shown = yaml.safe_load((finished / "config.yaml").read_text()), config(folder)
    assert shown["settings"] == content["settings"]
    assert shown["versions"] == content["versions"]
    assert shown["model"] == content["config"]["model"]
    assert "versions" not in content["settings"], "other versions may go on with it"


def test_records_speak_of_the_pictures_on_disk(finished, classifier_folder):
    classifier = ImageClassifier.from_pretrained(classifier_folder)
    found = records(finished)
    assert {record["prediction"] for record in found.values()} == {0, 1}, "both directions"
    assert {record["status"] for record in found.values()} == {"flipped", "not_flipped"}, "a test needs both"
    for id, record in found.items():
        stored = {kind: load_png(finished / "images" / kind / f"{id}.png") for kind in KINDS}
        assert record["target"] == 1 - record["prediction"]
        for name, kind in (("p_before", "original"), ("p_attack", "pre_explanation"), ("p_after", "counterfactual")):
            with torch.no_grad():
                logit = classifier(from_uint8(stored[kind])[None])[0, 0]
            probability = torch.sigmoid(logit if record["target"] else -logit).item()
            assert record[name] == pytest.approx(probability, abs=1e-4)
        assert record["flipped"] is (record["p_after"] > 0.5)
        change = np.abs(stored["counterfactual"].astype(float) - stored["original"]) / 255
        assert record["l1"] == pytest.approx(change.mean(), rel=1e-4)
        assert record["linf"] == pytest.approx(change.max(), rel=1e-4)
        mask = stored["mask"][..., 0] > 0
        assert 0 < record["changed_area"] == pytest.approx(mask.mean())
        assert not change[~mask].any(), "the original is kept outside the mask"
        assert change[mask].any()
        assert (record["iterations"], record["unet_forwards"], record["unet_backwards"]) == (2, 6, 4)


# --- the same folder again


def test_a_second_generate_does_nothing_and_keeps_the_files(copied, arguments):
    def state():
        kept = [*copied.glob("images/*/*.png"), *copied.glob("records.rank*"), copied / "config.yaml"]
        return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in kept if path.parent.name != "change"}

    before, metrics = state(), (copied / "metrics.json").read_bytes()
    explain.main(arguments(copied))
    assert state() == before
    assert (copied / "metrics.json").read_bytes() == metrics


def test_more_images_add_only_the_new(copied, arguments, tmp_path):
    log = (copied / "records.rank0.jsonl").read_bytes()
    stamps = {path: path.stat().st_mtime_ns for kind in KINDS for path in copied.glob(f"images/{kind}/*.png")}
    explain.main(arguments(copied, num_images=5))
    assert (copied / "records.rank0.jsonl").read_bytes().startswith(log)
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())
    assert json.loads((copied / "metrics.json").read_text())["n"] == len(table(copied)) == len(records(copied)) == 5
    explain.main(arguments(tmp_path / "at once", num_images=5))
    assert pictures(copied) == pictures(tmp_path / "at once")
    assert records(copied) == records(tmp_path / "at once")


def test_an_interrupted_run_continues_to_the_same_bytes(finished, copied, arguments):
    log = copied / "records.rank0.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(lines[:2]) + lines[2][:40])  # stopped in the middle of a record
    for line in lines[2:]:
        (copied / "images" / "counterfactual" / f"{json.loads(line)['id']}.png").unlink()
    for name in ("metrics.json", "records.csv", "gallery.png", "report.html"):
        (copied / name).unlink()
    explain.main(arguments(copied))
    assert pictures(copied) == pictures(finished)
    assert records(copied) == records(finished)
    assert (copied / "gallery.png").read_bytes() == (finished / "gallery.png").read_bytes()


def test_a_run_stopped_while_it_writes_continues_to_the_same_bytes(finished, arguments, tmp_path, monkeypatch):
    add, written = RunStore.add, []

    def stop_at_the_second(store, record, images):
        if written:
            raise MemoryError("stopped")
        written.append(record.id)
        add(store, record, images)

    with monkeypatch.context() as patch:
        patch.setattr(RunStore, "add", stop_at_the_second)
        with pytest.raises(MemoryError):
            explain.main(arguments(tmp_path / "run"))
    assert list(records(tmp_path / "run")) == written
    explain.main(arguments(tmp_path / "run"))
    assert pictures(tmp_path / "run") == pictures(finished)
    assert records(tmp_path / "run") == records(finished)


def test_a_run_goes_on_with_the_slots_that_it_chose_and_so_to_the_same_bytes(arguments, tmp_path, monkeypatch, caplog):
    def slots(folder):
        return yaml.safe_load((folder / "config.yaml").read_text())["config"]["model"]["slots"]

    whole, folder = tmp_path / "whole", tmp_path / "run"
    explain.main(arguments(whole, "--model.slots=null", num_images=5))
    assert slots(whole) == 5
    shutil.copytree(whole, folder)
    log = folder / "records.rank0.jsonl"
    log.write_text(log.read_text().splitlines(keepends=True)[0])
    monkeypatch.setattr("lit_modules.counterfactual.free_memory", lambda device, processes: 30 * 2**20)
    with caplog.at_level("INFO"), pytest.warns(UserWarning, match="the memory may not be enough: slots 5"):
        explain.main(arguments(folder, "--model.slots=null", num_images=5))
    assert pictures(folder) == pictures(whole)
    expected, found = records(whole), records(folder)
    recomputed = [found[id].pop("unet_forwards") - record.pop("unet_forwards") for id, record in expected.items()]
    assert sorted(recomputed) == [0] + [2] * 4, "in two segments, whose first is computed twice in each iteration"
    assert found == expected
    explain.main(["refine", str(folder), "--output_dir", str(tmp_path / "refined")])
    assert pictures(tmp_path / "refined") == pictures(whole)
    assert slots(folder) == slots(tmp_path / "refined") == 5


def test_what_concerns_memory_and_speed_may_differ(copied, arguments):
    same = ("--data.num_workers=0", "--trainer.precision=32")
    explain.main(arguments(copied, "--model.slots=4", "--model.segments=2", *same))
    assert len(records(copied)) == 4


def test_a_fraction_means_the_steps_that_it_gives(copied, arguments):
    explain.main(arguments(copied, "--model.steps=0.08"))  # 2 of 25
    assert len(records(copied)) == 4


@pytest.mark.parametrize(
    ("override", "key", "values"),
    [
        ("--model.steps=3", "model.steps", "2 there, 3 now"),
        ("--model.seed=1", "model.seed", "0 there, 1 now"),
        ("--model.query=glasses", "model.query", "'smiling' there, 'glasses' now"),
        ("--model.attack.iterations=1", "model.attack.init_args.iterations", "2 there, 1 now"),
        ("--data.seed=5", "data.seed", "0 there, 5 now"),
        ("--trainer.precision=bf16-mixed", "precision", "'32-true' there, 'bf16-mixed' now"),
    ],
)
def test_other_settings_are_refused_by_name(override, key, values, finished, arguments, capsys):
    def state():  # W&B's service ends its own logs when it likes
        return {path: path.stat().st_mtime_ns for path in finished.rglob("*") if "wandb" not in path.parts}

    before = state()
    text = refusal(capsys, arguments(finished, override))
    assert f"{key}: {values}" in text
    assert "Give another output folder" in text
    assert state() == before


def test_other_weights_are_refused(finished, arguments, make_ddpm_folder, capsys):
    text = refusal(capsys, arguments(finished, f"--model.diffusion={make_ddpm_folder(width=8)}"))
    assert "weights.diffusion" in text


def test_earlier_runs_are_known_by_their_content(copied, arguments, tmp_path, capsys):
    moved = copied.with_name("moved")
    shutil.copytree(copied, moved)
    for folder in (copied, moved):
        explain.main(arguments(tmp_path / "second", f"--model.avoid=[{folder}]"))
    explain.main(arguments(moved, num_images=5))
    assert "earlier.avoid" in refusal(capsys, arguments(tmp_path / "second", f"--model.avoid=[{moved}]"))


def test_an_earlier_run_of_other_images_is_refused(copied, arguments, tmp_path, capsys):
    asked = arguments(tmp_path / "second", f"--model.avoid=[{copied}]")
    assert "explains none of these images" in refusal(capsys, [*asked, "--data.seed=5"])
    for path in (copied / "images" / "original").iterdir():
        Image.new("RGB", (32, 32)).save(path)
    assert "have 32 x 32 pixels, these have 64 x 64" in refusal(capsys, asked)


def test_the_same_weights_elsewhere_are_accepted(copied, arguments, classifier_folder, tmp_path):
    shutil.copytree(classifier_folder, tmp_path / "moved")
    explain.main(arguments(copied, f"--model.classifier={tmp_path / 'moved'}", num_images=5))
    assert len(records(copied)) == 5


def test_a_diffusion_model_of_the_hub_is_known_by_its_content(copied, arguments, ddpm_folder, monkeypatch):
    monkeypatch.setattr("ace.models.unet.snapshot_download", lambda name, **_: str(ddpm_folder))
    explain.main(arguments(copied, "--model.diffusion=somebody/ddpm", num_images=5))
    assert len(records(copied)) == 5


def test_only_the_images_asked_for_count_as_done_before(copied, arguments, capsys):
    explain.main(arguments(copied, num_images=3))
    assert "3 images to explain, 3 of them done before" in capsys.readouterr().out


def test_an_untargeted_run_in_mixed_precision(arguments, tmp_path):
    folder = tmp_path / "run"
    explain.main(arguments(folder, "--model.policy=ace.Untargeted", "--trainer.precision=bf16-mixed", num_images=2))
    settings = yaml.safe_load((folder / "config.yaml").read_text())["settings"]
    assert settings["precision"] == "bf16-mixed"
    assert settings["decision"]["class_names"] == ["not smiling", "smiling"]
    assert settings["decision"]["target_names"] == ["smiling", "not smiling"]
    asked = {0: "not smiling -> smiling", 1: "smiling -> not smiling"}
    found = records(folder).values()
    assert all(record["target"] == record["prediction"] for record in found)
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["directions"].keys() == {asked[record["prediction"]] for record in found}


def test_loggers_get_the_metrics_of_the_run(arguments, tmp_path):
    explain.main(arguments(tmp_path / "run", "--trainer.logger=lightning.pytorch.loggers.CSVLogger", num_images=2))
    [file] = (tmp_path / "run").rglob("metrics.csv")
    with file.open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert [row["progress/images"] for row in rows if row["progress/images"]][-1] == "2"
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    for name in ("flip_rate", "l1"):
        assert float(rows[-1][f"metrics/{name}"]) == pytest.approx(metrics["metrics"][name]["value"])


def test_skipped_images_are_recorded_and_not_tried_again(finished, arguments, tmp_path):
    folder = tmp_path / "run"
    policy = ("--model.policy=ace.ToClass", "--model.policy.target=1")
    for _ in range(2):
        explain.main(arguments(folder, *policy))
        found = records(folder)
    skipped = {id for id, record in records(finished).items() if record["prediction"] == 1}
    assert {id for id, record in found.items() if record["status"].startswith("skipped: already")} == skipped
    assert {path.stem for path in (folder / "images" / "counterfactual").iterdir()} == found.keys() - skipped
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["n"] == 4 - len(skipped)


# --- several processes


def test_workers_that_load_data_change_nothing(finished, arguments, tmp_path):
    folder = tmp_path / "run"
    explain.main(arguments(folder, "--data.num_workers=2"))
    assert pictures(folder) == pictures(finished)


def test_two_processes_give_the_bytes_of_one_and_may_outnumber_the_images(finished, arguments, tmp_path):
    folder = tmp_path / "run"
    ranks = ("--trainer.devices=2", "--trainer.strategy=ddp")
    fewer = in_subprocess(arguments(folder, *ranks, num_images=1))
    assert fewer.returncode == 0, fewer.stderr
    assert len(records(folder)) == 1
    rest = in_subprocess(arguments(folder, *ranks))
    assert rest.returncode == 0, rest.stderr
    assert (folder / "records.rank1.jsonl").exists()
    assert pictures(folder) == pictures(finished)
    assert records(folder) == records(finished)
    measured = {"seconds": 0, "peak_memory": 0}
    assert [row | measured for row in table(folder)] == [row | measured for row in table(finished)]
    assert "4 images to explain, 1 of them done before" in rest.stdout
    assert rest.stdout.count("images to explain") == 1, "only rank zero speaks"
    assert re.search(r"^3/3 images, \d+% flipped, \S+ images/s 100% 00:\d\d < 00:00$", rest.stdout, re.MULTILINE)
    assert rest.stdout.rstrip().endswith(f"next  python explain.py evaluate {folder}")
    assert not {"\r", "\x1b"} & set(rest.stdout + rest.stderr), "plain lines, where it is no terminal"


# --- the second stage again


def test_refine_with_the_same_settings_gives_the_same_pictures(finished, tmp_path, capsys):
    explain.main(["refine", str(finished), "--output_dir", str(tmp_path / "again")])
    assert pictures(tmp_path / "again") == pictures(finished)
    assert "flip_rate" in capsys.readouterr().out
    before, after = records(finished), records(tmp_path / "again")
    again = {one.pop("settings") for one in after.values()}
    assert again.isdisjoint(one.pop("settings") for one in before.values())
    # The cost so far, and another filter of two steps.
    assert after == {id: record | {"unet_forwards": record["unet_forwards"] + 2} for id, record in before.items()}
    for old, new in zip(table(finished), table(tmp_path / "again"), strict=True):
        assert float(new["seconds"]) > float(old["seconds"])
        assert int(new["peak_memory"]) >= int(old["peak_memory"]) > 2**27, "torch alone takes more than 128 MiB"


def test_refine_with_another_threshold_makes_a_folder_of_its_own(copied):
    before = {path: path.stat().st_mtime_ns for path in copied.rglob("*")}
    explain.main(["refine", str(copied), "--threshold", "0.9", "--dilation", "1"])
    assert {path: path.stat().st_mtime_ns for path in copied.rglob("*")} == before
    folder = copied.with_name("run-threshold0.9-dilation1")
    unchanged = ("original", "pre_explanation")
    assert pictures(folder, unchanged) == pictures(copied, unchanged)
    for id, record in records(folder).items():
        assert 0 < record["changed_area"] < records(copied)[id]["changed_area"]
    assert {"config.yaml", "records.csv", "metrics.json", "gallery.png", "report.html"} <= {
        path.name for path in folder.iterdir()
    }
    stored = yaml.safe_load((folder / "config.yaml").read_text())["settings"]["model"]["refinement"]
    assert stored == {"threshold": 0.9, "dilation": 1}


def test_a_refined_run_is_not_continued_by_generate(finished, arguments, tmp_path, capsys):
    """Which would repair, and begin from pre-explanations of its own."""
    explain.main(["refine", str(finished), "--output_dir", str(tmp_path / "refined")])
    assert "refined_from" in refusal(capsys, arguments(tmp_path / "refined", num_images=5))


def test_a_run_is_refined_in_its_own_precision(arguments, tmp_path):
    run = tmp_path / "run"
    explain.main(arguments(run, "--trainer.precision=bf16-mixed", num_images=2))
    explain.main(["refine", str(run), "--output_dir", str(tmp_path / "again")])
    assert pictures(tmp_path / "again") == pictures(run)


def test_refine_continues_and_carries_over_what_was_left_out(copied):
    [first, *_] = lines = (copied / "records.rank0.jsonl").read_text().splitlines(keepends=True)
    skipped = json.loads(first) | {"status": "skipped: already so", "flipped": False}
    (copied / "records.rank0.jsonl").write_text("".join([json.dumps(skipped) + "\n", *lines[1:]]))
    folder = copied.with_name("refined")
    for _ in range(2):
        explain.main(["refine", str(copied), f"--output_dir={folder}"])
        assert len(records(folder)) == 4
    assert records(folder)[skipped["id"]]["status"] == "skipped: already so"
    assert json.loads((folder / "metrics.json").read_text())["n"] == 3


def test_a_run_made_from_python_is_not_refined_from_its_folder(tmp_path, capsys):
    RunStore.create(tmp_path / "run", {}, {})
    assert "was made from Python" in refusal(capsys, ["refine", tmp_path / "run"])


def test_refine_goes_on_with_fewer_images_where_the_memory_is_not_enough(finished, tmp_path, monkeypatch):
    inpaint = DiffusionFilter.inpaint

    def greedy(self, images, *rest):
        if len(images) > 4:  # rows of one slot and of two to four
            raise torch.OutOfMemoryError("out of memory")
        return inpaint(self, images, *rest)

    monkeypatch.setattr(DiffusionFilter, "inpaint", greedy)
    run, config = tmp_path / "run", "slots: 8"
    shutil.copytree(finished, run, ignore=shutil.ignore_patterns("wandb"))
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(re.sub(r"slots: \d+", config, text))
    with pytest.warns(UserWarning, match="8 images at a time: going on with 4"):
        explain.main(["refine", str(run), f"--output_dir={tmp_path / 'refined'}"])
    assert records(tmp_path / "refined").keys() == records(run).keys()


@pytest.mark.parametrize(
    ("options", "words"),
    [(["--threshold=2"], r"threshold must be in \[0, 1\].*2"), (["--dilation=4"], "dilation must be an odd number.*4")],
)
def test_refine_refuses_settings_out_of_range(options, words, copied, capsys):
    assert re.search(words, refusal(capsys, ["refine", copied, *options]))
    assert [path.name for path in copied.parent.iterdir()] == ["run"]


def test_refine_refuses_changed_weights(copied, arguments, make_ddpm_folder, capsys):
    stored = yaml.safe_load((copied / "config.yaml").read_text())
    stored["config"]["model"]["diffusion"] = str(make_ddpm_folder(width=8))
    (copied / "config.yaml").write_text(yaml.safe_dump(stored))
    assert "the weights have changed" in refusal(capsys, ["refine", copied])


def test_refine_without_the_class_of_the_classifier_ends_with_a_sentence(copied, capsys):
    content = yaml.safe_load((copied / "config.yaml").read_text())
    content["config"]["model"]["classifier"] = {"class_path": "nobody.Network"}
    (copied / "config.yaml").write_text(yaml.safe_dump(content))
    text = refusal(capsys, ["refine", copied])
    assert text.startswith("error: ")
    assert "nobody" in text
    assert "usage" not in text
    assert [path.name for path in copied.parent.iterdir()] == ["run"]


# --- evaluate and report


def test_evaluate_writes_and_prints_the_metrics(copied, finished, capsys):
    for name in ("metrics.json", "records.csv"):
        (copied / name).unlink()
    explain.main(["evaluate", str(copied)])
    assert (copied / "records.csv").read_bytes() == (finished / "records.csv").read_bytes()
    before, after = (json.loads((folder / "metrics.json").read_text()) for folder in (finished, copied))
    assert before["metrics"].items() <= after["metrics"].items(), "the run's own classifier adds COUT"
    printed = capsys.readouterr().out
    assert re.search(r"flip_rate +[01]", printed)


def test_report_draws_the_gallery_and_the_page(copied, finished, capsys):
    for name in ("gallery.png", "report.html"):
        (copied / name).unlink()
    explain.main(["report", str(copied)])
    assert (copied / "gallery.png").read_bytes() == (finished / "gallery.png").read_bytes()
    assert "avatars-test-000003" in (copied / "report.html").read_text()
    printed = capsys.readouterr().out
    assert str(copied / "gallery.png") in printed
    assert str(copied / "report.html") in printed


def test_a_run_without_an_explained_image_has_a_page_with_the_reasons(copied):
    lines = [json.loads(line) for line in (copied / "records.rank0.jsonl").read_text().splitlines()]
    skipped = [json.dumps(line | {"status": "skipped: already so", "flipped": False}) for line in lines]
    (copied / "records.rank0.jsonl").write_text("".join(f"{line}\n" for line in skipped))
    explain.main(["report", str(copied)])
    assert "already so" in (copied / "report.html").read_text()


def test_report_compares_and_figure_arranges_several_runs(copied, capsys):
    others = [str(shutil.copytree(copied, copied.with_name(name))) for name in ("second", "third")]
    explain.main(["report", str(copied), "--compare", *others])
    assert str(copied / "compare.html") in capsys.readouterr().out
    page = (copied / "compare.html").read_text()
    assert all(f'"name": "{name}"' in page for name in ("run", "second", "third"))
    path = copied / "few.png"
    ids = ["avatars-test-000002", "avatars-test-000000"]
    explain.main(["figure", str(copied), "--compare", *others, "--ids", *ids, "--out", str(path), "--width=4"])
    assert str(path) in capsys.readouterr().out
    assert load_png(path).shape[1] == 4 * 300
    explain.main(["figure", str(copied), "--max_images=1"])
    assert (copied / "figure.pdf").read_bytes().startswith(b"%PDF")


def test_figure_and_report_refuse_what_is_not_there(copied, tmp_path, capsys):
    assert "no explained image 'nobody'" in refusal(capsys, ["figure", copied, "--ids", "nobody"])
    assert "must end in" in refusal(capsys, ["figure", copied, "--out", tmp_path / "figure.bmp"])
    assert "needs different runs" in refusal(capsys, ["report", copied, "--compare", copied])
    assert "nowhere" in refusal(capsys, ["report", copied, "--compare", tmp_path / "nowhere"])
    assert "expected one argument" in refusal(capsys, ["report", copied, "--compare"])


def test_the_command_of_the_page_reproduces_the_run(copied, monkeypatch):
    explain.main(["report", str(copied)])
    [command] = re.findall(r"<code[^>]*>(python explain.py generate .*?)</code>", (copied / "report.html").read_text())
    _, _, *args = shlex.split(html.unescape(command))
    explain.main(args)
    again = copied.with_name(f"{copied.name}-again")
    assert pictures(again) == pictures(copied)
    assert records(again) == records(copied)


def test_an_attack_that_is_to_run_to_its_end_is_reproduced_to_its_end(arguments, tmp_path):
    attack = ["--model.attack=ace.ProximalGradient", "--model.attack.iterations=3", "--model.attack.stop=null"]
    explain.main(arguments(tmp_path / "run", *attack, "--model.distance.l1=0", num_images=1))
    assert RunStore.open(tmp_path / "run").settings["model"]["attack"]["init_args"]["stop"] is None
    generate = ["generate", f"--config={tmp_path / 'run' / 'generate.yaml'}", f"--output_dir={tmp_path / 'again'}"]
    explain.main(generate)
    assert records(tmp_path / "again") == records(tmp_path / "run")
    explain.main([*generate, f"--output_dir={tmp_path / 'run'}"])  # the same settings


@pytest.mark.parametrize("command", ["refine", "evaluate", "report", "figure"])
def test_commands_on_a_folder_that_is_no_run_say_so(command, tmp_path, capsys):
    text = refusal(capsys, [command, tmp_path])
    assert str(tmp_path) in text
    assert "is no run folder (no config.yaml): give the output of `generate`" in text


# --- help


def test_help_in_a_process_of_its_own():
    done = in_subprocess(["--help"])
    assert done.returncode == 0
    assert done.stderr == ""
    for name in explain.COMMANDS:
        assert re.search(rf"^  {name} +\S.*\.$", done.stdout, re.MULTILINE)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("generate", ["--model.query", "attribute to explain, by name or index", "--data", "--output_dir"]),
        ("refine", ["run", "--threshold", "relative change from which a pixel is repainted", "--dilation"]),
        ("evaluate", ["folder of the run"]),
        ("audit", ["folder of the run", "--networks", "--threshold", "share of the counterfactuals"]),
        ("report", ["folder of the run"]),
    ],
)
def test_every_command_explains_itself(command, words, capsys):
    with pytest.raises(SystemExit) as exit:
        explain.main([command, "--help"])
    assert exit.value.code == 0
    text = capsys.readouterr().out
    assert f"explain.py {command}" in text.splitlines()[0]
    one_line = " ".join(text.split())
    assert all(word in one_line for word in words)
    assert explain.COMMANDS[command].__doc__.splitlines()[0] in one_line


def test_an_unknown_command_is_refused_with_the_known_ones(capsys):
    assert "'explode', choose one of generate, refine, evaluate, audit, report" in refusal(capsys, ["explode"])


# --- bad input


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["--model.query=beard"], ["unknown query 'beard'", "0: smiling", "13: big_nose"]),
        (["--model.query=14"], ["unknown query 14", "13: big_nose"]),
        (["--model.classifier=nowhere"], ["no classifier at 'nowhere'", "give another folder"]),
        (["--model.diffusion=nowhere"], ["no diffusion model at 'nowhere'", "train one"]),
        (["--model.steps=0"], ["tau (steps=0) must be a whole number in [1, 25]"]),
        (["--model.steps=51"], ["tau (steps=51) must be a whole number in [1, 25]"]),
        (["--model.steps=0.01"], ["tau (steps=0.01)", "a fraction in (0, 1] that keeps at least one of the 25"]),
        (["--model.respacing=0"], ["respacing must be in [1, 1000]", "got 0"]),
        (["--model.respacing=1001"], ["respacing must be in [1, 1000]", "got 1001"]),
        (["--model.segments=3"], ["segments must be in [1, 2]", "got 3"]),
        (["--data.num_images=9"], ["num_images is 9", "the test split has 8", "lower num_images"]),
        (["--data.num_images=0"], ["num_images is 0: give at least 1"]),
        (["--data.test_size=0"], ["test_size is 0: give at least 1"]),
        (["--model.nonsense=1"], ["model.nonsense"]),
        (["--model.attack.norm=l7"], ["linf", "l2", "l7"]),
        (["--trainer.inference_mode=true"], ["error: trainer.inference_mode is true", "leave it out"]),
        (["--trainer.limit_predict_batches=2"], ["trainer.limit_predict_batches is 2,", "--data.num_images"]),
        (["--trainer.limit_predict_batches=0.5"], ["limit_predict_batches is 0.5,", "--data.num_images"]),
        (["--trainer.fast_dev_run=true"], ["trainer.limit_predict_batches is 1, as after fast_dev_run"]),
        (["--model.compile_unet=true", "--model.deterministic=false"], ["compile_unet needs batches of one shape"]),
        (["--trainer.precision=bf16-true"], ["error: trainer.precision is bf16-true", "32-true, bf16-mixed"]),
        (["--trainer.precision=64-true"], ["error: trainer.precision is 64-true", "32-true, bf16-mixed"]),
    ],
)
def test_bad_input_ends_with_a_sentence_before_anything_is_written(overrides, words, arguments, tmp_path, capsys):
    text = refusal(capsys, arguments(tmp_path / "run", *overrides))
    missing = [word for word in words if word not in text]
    assert not missing, text
    assert "Union" not in text
    assert "Traceback" not in text
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        (["a", "b", "a"], "1 ids of AvatarsDataModule are not unique"),
        (["a", "../b"], "id '../b' cannot name a file"),
    ],
)
def test_ids_that_cannot_name_the_files_of_a_run_are_refused(ids, words, arguments, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("datamodules.AvatarsDataModule.predict_ids", lambda _: ids)
    assert f"error: {words}" in refusal(capsys, arguments(tmp_path / "run"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"channels": 1}, ["the images have 3 channels, the diffusion model takes 1", "convert the images"]),
        ({"levels": 8, "width": 8}, ["64x64", "multiples of 128", "resize"]),
    ],
)
def test_a_diffusion_model_of_other_images_is_refused(settings, words, arguments, make_ddpm_folder, tmp_path, capsys):
    text = refusal(capsys, arguments(tmp_path / "run", f"--model.diffusion={make_ddpm_folder(**settings)}"))
    assert all(word in text for word in words), text
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("network", "file"),
    [
        ("classifier", "model.safetensors"),
        ("classifier", "config.json"),
        ("diffusion", "unet/diffusion_pytorch_model.safetensors"),
        ("diffusion", "unet/config.json"),
        ("diffusion", "scheduler/scheduler_config.json"),
    ],
)
@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_missing_and_truncated_weights_are_refused(
    network, file, damage, arguments, classifier_folder, ddpm_folder, tmp_path, capsys
):
    folder = tmp_path / "weights"
    shutil.copytree({"classifier": classifier_folder, "diffusion": ddpm_folder}[network], folder)
    content = (folder / file).read_bytes()
    (folder / file).unlink()
    if damage == "truncated":
        (folder / file).write_bytes(content[: len(content) // 2])
    text = refusal(capsys, arguments(tmp_path / "run", f"--model.{network}={folder}"))
    assert str(folder) in text, "the place"
    remedies = {"missing": "missing", "truncated": "copy (it|the folder) again"}
    assert re.search(remedies[damage], text), text
    assert [path.name for path in tmp_path.iterdir()] == ["weights"]


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_what_is_no_run_is_left_alone(kind, arguments, tmp_path, capsys):
    place = tmp_path / "precious"
    if kind == "folder":
        place.mkdir()
        (place / "thesis.txt").write_text("dear")
    else:
        place.write_text("dear")
    text = refusal(capsys, arguments(place))
    assert str(place) in text
    assert "give another output folder" in text
    assert [path.name for path in tmp_path.rglob("*")] == (
        ["precious", "thesis.txt"] if kind == "folder" else ["precious"]
    )
