import sys
import time
from types import SimpleNamespace

import pytest

from ace.record import Record
from ace.run_progress import RunProgress
from ace.run_store import RunStore
from callbacks.counterfactual_progress import CounterfactualProgress

TRAINER = SimpleNamespace(world_size=1)


@pytest.fixture
def module():
    pool = SimpleNamespace(progress=0.0, listeners=[])
    return SimpleNamespace(explainer=SimpleNamespace(pool=pool))


@pytest.fixture
def store(tmp_path):
    return RunStore.create(tmp_path / "run", {}, {})


@pytest.fixture
def bar(store):
    return CounterfactualProgress(RunProgress(store, 4))


def finish(store, *statuses):
    for status in statuses:
        name = f"image-{len(store.finished_ids())}"
        store.add(Record(id=name, seed=0, status=status, flipped=status == "flipped"), {})


def test_the_bar_counts_images_and_the_flip_rate_of_those_attempted(store, bar, module, capsys):
    bar.on_predict_start(TRAINER, module)

    def shown(*statuses):
        finish(store, *statuses)
        bar.on_predict_batch_end(TRAINER, module, None, None, 0)
        bar.bar.refresh()
        return capsys.readouterr().out

    assert "0/4 images, none flipped yet" in shown()
    assert "1/4 images, none flipped yet" in shown("skipped: why")
    text = shown("flipped", "failed: why")
    assert "3/4 images, 50% flipped, " in text
    assert " images/s" in text
    assert "75%" in text
    finish(store, "flipped")
    bar.on_predict_end(TRAINER, module)
    text = capsys.readouterr().out
    assert "4/4 images, 67% flipped" in text
    assert "100%" in text
    assert text.endswith("\n")


def test_the_bar_counts_what_other_processes_finish(tmp_path, bar, module, capsys):
    bar.on_predict_start(TRAINER, module)
    finish(RunStore.create(tmp_path / "run", {}, {}, rank=1), "flipped", "not_flipped")
    bar.on_predict_end(TRAINER, module)
    assert "2/4 images, 50% flipped" in capsys.readouterr().out


@pytest.mark.parametrize("terminal", [True, False])
def test_the_bar_of_a_log_file_is_drawn_rarely_and_at_the_end(terminal, store, bar, module, capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    pool = module.explainer.pool
    bar.on_predict_start(TRAINER, module)
    capsys.readouterr()
    time.sleep(0.15)
    pool.progress = 1.0
    pool.listeners[0]()
    assert ("25%" in capsys.readouterr().out) is terminal
    finish(store, "flipped", "not_flipped")
    bar.on_predict_end(TRAINER, module)
    assert "2/4 images, 50% flipped" in capsys.readouterr().out


def test_the_bar_moves_with_every_iteration_and_never_back(store, bar, module):
    pool, seen = module.explainer.pool, []
    bar.on_predict_start(TRAINER, module)
    for in_work in (0.5, 1.0, 1.5):
        pool.progress = in_work
        pool.listeners[0]()
        seen.append(bar.bar.n)
    pool.progress = 0.0
    finish(store, "flipped")
    bar.on_predict_batch_end(TRAINER, module, None, None, 0)
    seen.append(bar.bar.n)
    pool.progress = 9.0
    pool.listeners[0]()
    assert [*seen, bar.bar.n] == [0.5, 1.0, 1.5, 1.5, 4]
    assert "1/4 images" in bar.bar.desc, "images in work are not done"
    bar.on_predict_end(TRAINER, module)


def test_a_disabled_bar_writes_nothing_and_reads_no_records(store, bar, module, capfd):
    bar.disable()
    bar.on_predict_start(TRAINER, module)
    finish(store, "flipped")
    module.explainer.pool.listeners[0]()
    bar.on_predict_batch_end(TRAINER, module, None, None, 0)
    bar.on_predict_end(TRAINER, module)
    assert capfd.readouterr() == ("", "")
    assert bar.progress.done == 0


def test_a_bar_enabled_again_writes(bar, module, capsys):
    bar.disable()
    bar.enable()
    bar.on_predict_start(TRAINER, module)
    bar.bar.refresh()
    assert "0/4 images" in capsys.readouterr().out
