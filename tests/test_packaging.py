"""What an installation brings along."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
PACKAGES = [pattern.removesuffix("*") for pattern in SETTINGS["packages"]["find"]["include"]]


def test_every_file_of_the_packages_is_installed():
    files = [path.relative_to(ROOT) for package in PACKAGES for path in (ROOT / package).rglob("*") if path.is_file()]
    data = [path for path in files if path.suffix not in (".py", ".pyc")]
    declared = {path: SETTINGS["package-data"].get(".".join(path.parent.parts), []) for path in data}
    assert Path("ace/report/page.css") in declared
    assert [path for path, patterns in declared.items() if not any(map(path.match, patterns))] == []


def test_every_module_that_the_scripts_import_is_installed():
    folders = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert set(PACKAGES) == folders
    assert set(SETTINGS["py-modules"]) == {path.stem for path in ROOT.glob("*.py")}
