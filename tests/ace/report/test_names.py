from pathlib import Path
from types import SimpleNamespace

import pytest

from ace.report.names import run_names


@pytest.mark.parametrize(
    ("folders", "names"),
    [
        (["out/a", "out/b"], ["a", "b"]),
        (["out/a/0"], ["0"]),
        (["out/plain/paper/0", "out/plain/best/0", "out/plain/fast/0"], ["paper", "best", "fast"]),
        (["out/a/0", "out/b/0", "out/b/1"], ["a/0", "b/0", "b/1"]),
        (["out/0", "out/a/0"], ["0", "a"]),
        (["out/run", "out/run/run"], ["out/run", "out/run/run"]),
    ],
)
def test_runs_are_named_by_what_tells_them_apart(folders, names):
    assert run_names([SimpleNamespace(folder=Path(folder)) for folder in folders]) == names
