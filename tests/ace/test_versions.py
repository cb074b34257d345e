import subprocess

import pytest

from ace.versions import git_commit, versions


@pytest.fixture
def checkout(tmp_path):
    """A git checkout with one committed file, and a function that runs git in it."""

    def git(*arguments):
        identity = ("-c", "user.name=me", "-c", "user.email=me@example.org")
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    (tmp_path / "code.py").write_text("one")
    git("init")
    git("add", "code.py")
    git("commit", "-m", "first")
    return tmp_path, git


def test_a_checkout_is_named_by_its_commit_and_marked_if_it_has_changed(checkout):
    folder, git = checkout
    commit = git("rev-parse", "HEAD")
    git("tag", "-a", "v1", "-m", "first")
    (folder / "notes.txt").write_text("of no matter")
    assert git_commit(folder / "code.py") == commit
    (folder / "code.py").write_text("two")
    assert git_commit(folder / "code.py") == f"{commit}-dirty"


def test_what_git_does_not_know_has_no_commit(checkout, tmp_path_factory, monkeypatch):
    folder, _ = checkout
    (folder / "installed.py").write_text("somebody else's checkout")
    outside = tmp_path_factory.mktemp("outside") / "code.py"
    outside.touch()
    assert git_commit(folder / "installed.py") is None
    assert git_commit(outside) is None
    monkeypatch.setenv("PATH", "")
    assert git_commit(folder / "code.py") is None, "without git"


def test_the_versions_name_the_project_and_what_it_computes_with():
    assert versions().keys() - {"commit"} == {
        "python", "lightning-ace", "torch", "torchvision", "diffusers", "lightning"
    }  # fmt: skip
    assert all(versions().values())
