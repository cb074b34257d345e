import os

import pytest
import wandb

from callbacks.wandb_mode import never_prompt


@pytest.fixture
def stranger(monkeypatch, tmp_path):
    """A machine on which nobody is logged in to W&B and nothing is said about the mode."""
    wandb.teardown()
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    yield
    monkeypatch.undo()
    wandb.teardown()


def test_without_a_key_runs_are_offline_and_nothing_is_asked(stranger, monkeypatch):
    def ask(*_):
        raise AssertionError("a question was asked")

    monkeypatch.setattr("builtins.input", ask)
    monkeypatch.setattr("getpass.getpass", ask)
    never_prompt()
    assert os.environ["WANDB_MODE"] == "offline"


def test_a_run_right_after_is_offline(stranger, tmp_path):
    never_prompt()
    with wandb.init(project="test", dir=tmp_path, settings=wandb.Settings(silent=True)) as run:
        assert run.offline


@pytest.mark.parametrize("mode", ["online", "offline", "disabled"])
def test_a_mode_that_the_user_has_set_is_left_alone(mode, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", mode)
    monkeypatch.setattr(wandb, "login", lambda **_: pytest.fail("no login is needed"))
    never_prompt()
    assert os.environ["WANDB_MODE"] == mode


def test_who_is_logged_in_stays_online(stranger, monkeypatch):
    monkeypatch.setattr(wandb, "login", lambda prompt: True)
    never_prompt()
    assert "WANDB_MODE" not in os.environ
