from types import SimpleNamespace

import pytest

from callbacks.counterfactual_progress import CounterfactualProgress


@pytest.fixture
def trainer():
    return SimpleNamespace(predict_dataloaders=SimpleNamespace(dataset=range(4)))


@pytest.fixture
def module():
    pool = SimpleNamespace(progress=0.0, on_iteration=lambda: None)
    return SimpleNamespace(explainer=SimpleNamespace(pool=pool))


def outcomes(*flipped):
    return [SimpleNamespace(flipped=value) for value in flipped]


def test_the_bar_counts_images_and_the_flip_rate(trainer, module, capsys):
    progress = CounterfactualProgress()
    progress.on_predict_start(trainer, module)
    assert "0/4 images, none finished yet" in capsys.readouterr().out
    progress.on_predict_batch_end(trainer, module, outcomes(True, False), None, 0)
    text = capsys.readouterr().out
    assert "2/4 images, 50% flipped" in text
    assert "50%" in text
    progress.on_predict_batch_end(trainer, module, outcomes(True, True), None, 1)
    progress.on_predict_end(trainer, module)
    text = capsys.readouterr().out
    assert "4/4 images, 75% flipped" in text
    assert "100%" in text
    assert text.endswith("\n")


def test_the_bar_moves_with_every_iteration_and_never_back(trainer, module):
    progress, pool = CounterfactualProgress(), module.explainer.pool
    progress.on_predict_start(trainer, module)
    seen = []
    for in_work in (0.5, 1.0, 1.5):
        pool.progress = in_work
        pool.on_iteration()
        seen.append(progress.bar.n)
    pool.progress = 0.0
    progress.on_predict_batch_end(trainer, module, outcomes(True), None, 0)
    seen.append(progress.bar.n)
    pool.progress = 9.0
    pool.on_iteration()
    assert [*seen, progress.bar.n] == [0.5, 1.0, 1.5, 1.5, 4]
    assert "1/4 images" in progress.bar.desc, "images in work are not done"
    progress.on_predict_end(trainer, module)


def test_a_disabled_bar_writes_nothing(trainer, module, capfd):
    progress = CounterfactualProgress()
    progress.disable()
    progress.on_predict_start(trainer, module)
    module.explainer.pool.on_iteration()
    progress.on_predict_batch_end(trainer, module, outcomes(True), None, 0)
    progress.on_predict_end(trainer, module)
    assert capfd.readouterr() == ("", "")


def test_a_bar_enabled_again_writes(trainer, module, capsys):
    progress = CounterfactualProgress()
    progress.disable()
    progress.enable()
    progress.on_predict_start(trainer, module)
    assert "0/4 images" in capsys.readouterr().out
