"""The source distribution is complete, and a wheel built from it works."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import zipfile

import pytest
from hatchling.build import build_sdist, build_wheel

from architecture.repository import ROOT, files, name

NOT_SHIPPED = (".ci/",)
PACKAGES = ("bumblecore_core/", "plugins/")
ADDED = {"PKG-INFO"}


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    """The unpacked source distribution."""
    target = tmp_path_factory.mktemp("sdist")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        packed = target / build_sdist(str(target))
    with tarfile.open(packed) as archive:
        archive.extractall(target, filter="data")
    (directory,) = (path for path in target.iterdir() if path.is_dir())
    return directory


def test_the_source_distribution_holds_the_repository_and_nothing_else(sdist):
    shipped = {path.relative_to(sdist).as_posix() for path in sdist.rglob("*") if path.is_file()}
    assert shipped - ADDED == {name(path) for path in files() if not name(path).startswith(NOT_SHIPPED)}


def test_a_wheel_built_from_the_source_distribution_works(sdist, tmp_path, monkeypatch):
    monkeypatch.chdir(sdist)
    with zipfile.ZipFile(tmp_path / build_wheel(str(tmp_path))) as wheel:
        wheel.extractall(tmp_path / "installed")
    installed = {
        path.relative_to(tmp_path / "installed").as_posix()
        for path in (tmp_path / "installed").rglob("*")
        if path.is_file()
    }
    packages = [name(path).removeprefix("plugins/") for path in files() if name(path).startswith(PACKAGES)]
    assert installed >= set(packages)
    code = "import bumblecore_core; from bumblecore_core.cli import main; print(bumblecore_core.__file__); main()"
    command = [sys.executable, "-c", code, "plugins", "list", "--load", "--json"]
    environ = {**os.environ, "PYTHONPATH": str(tmp_path / "installed")}
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, check=False)
    place, _, listing = done.stdout.partition("\n")
    assert place == str(tmp_path / "installed" / "bumblecore_core" / "__init__.py"), done.stderr
    records = json.loads(listing)["records"]
    assert {("stages", "sft"), ("engines", "deepspeed"), ("commands", "report")} <= {
        (record["kind"], record["name"]) for record in records
    }
