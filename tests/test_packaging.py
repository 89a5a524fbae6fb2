"""The lists in pyproject.toml agree with the folders, and the package carries its data."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from importlib import resources
from pathlib import Path

ROOT = Path(__file__).parents[1]
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
FOLDERS = {"attndsl": "attndsl", "codegen": "attndsl.codegen", "grammar": "attndsl.grammar"}


def test_packages_are_the_folders() -> None:
    found = set()
    for folder, package in FOLDERS.items():
        for init in (ROOT / folder).rglob("__init__.py"):
            parts = init.parent.relative_to(ROOT / folder).parts
            found.add(".".join((package, *parts)))
    assert set(SETTINGS["tool"]["setuptools"]["packages"]) == found


def test_every_module_lies_in_a_package() -> None:
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*.py"):
            assert (path.parent / "__init__.py").exists(), f"{path} is in no package"


def test_data_is_where_the_lists_say() -> None:
    for package, patterns in SETTINGS["tool"]["setuptools"]["package-data"].items():
        folder = {package: path for path, package in FOLDERS.items()}[package]
        for pattern in patterns:
            assert list((ROOT / folder).glob(pattern)), f"{package}: nothing matches {pattern}"
    listed = SETTINGS["tool"]["setuptools"]["package-data"]["attndsl"]
    for path in (ROOT / "attndsl").rglob("*.attn"):
        assert any(path.match(pattern) for pattern in listed), f"{path} is not shipped"


def test_resources_can_be_read() -> None:
    assert (resources.files("attndsl.grammar") / "attn.lark").is_file()
    assert any(p.name.endswith(".attn") for p in (resources.files("attndsl") / "std").iterdir())


def test_bare_checkout_imports_from_anywhere(tmp_path: Path) -> None:
    """With nothing but PYTHONPATH the mapped packages are found, and nothing heavy is imported."""
    script = (
        "import sys, attndsl; import attndsl.codegen, attndsl.grammar\n"
        "heavy = {'sympy', 'networkx', 'lark', 'triton'} & set(sys.modules)\n"
        "import torch\n"
        "assert not heavy - {'sympy', 'networkx', 'triton'}, heavy\n"
    )
    environment = {"PYTHONPATH": str(ROOT), "PATH": "", "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_version_and_console_script() -> None:
    assert SETTINGS["project"]["scripts"] == {"attndsl": "attndsl.cli:main"}
    assert SETTINGS["project"]["requires-python"] == ">=3.11"
