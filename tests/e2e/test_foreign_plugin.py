"""A distribution from outside: built as a wheel, installed into a fresh environment, chosen by name, uninstalled."""

from __future__ import annotations

import json
import os
import site
import subprocess
import sys
from pathlib import Path

import pytest

from workbench import make_model_config, make_tokenizer, sentence, write_config

SOURCE = Path(__file__).resolve().parents[1] / "foreign_plugin"
STEPS = 6


class Environment:
    """A fresh virtual environment that sees this one's packages; what is installed into it is its own."""

    def __init__(self, path: Path) -> None:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", path], check=True)
        self.python = next(place for place in (path / "bin/python", path / "Scripts/python.exe") if place.exists())
        mine = subprocess.check_output(
            [self.python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True
        )
        lines = [f"import site; site.addsitedir({folder!r})" for folder in site.getsitepackages()]
        (Path(mine.strip()) / "outer.pth").write_text("\n".join(lines) + "\n")

    def pip(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(self.python), *arguments]
        subprocess.run(command, check=True, capture_output=True)

    def bumble(self, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        dropped = ("PYTHONPATH", "BUMBLE_NO_PLUGINS", "BUMBLE_PLUGINS")
        environ = {name: value for name, value in os.environ.items() if name not in dropped}
        command = [str(self.python), "-m", "bumblecore_core", *arguments]
        return subprocess.run(command, cwd=cwd, env=environ, capture_output=True, text=True, check=False, timeout=300)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    target = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(target), str(SOURCE)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = target.glob("*.whl")
    return built


def make_run(directory: Path) -> Path:
    """A model's config, a tokenizer, rows that only the foreign data format reads, and a config of its four plugins."""
    make_model_config(directory / "model")
    make_tokenizer(directory / "model")
    rows = [json.dumps({"note": sentence(seed, 5 + seed % 7)}) for seed in range(24)]
    (directory / "notes.jsonl").write_text("\n".join(rows) + "\n")
    return write_config(
        directory / "run.yaml",
        stage={"name": "ending", "share": 0.75},
        model={"path": str(directory / "model"), "dtype": "fp32"},
        data={"path": str(directory / "notes.jsonl"), "format": "note", "max_length": 32},
        loss={"name": "focal", "gamma": 1.0},
        optimizer={"name": "adamw", "lr": 5e-3},
        train={"max_steps": STEPS, "micro_batch_size": 4},
        loggers=["trace"],
        output_dir=str(directory / "out"),
    )


@pytest.mark.slow
def test_a_foreign_distribution_is_installed_used_and_uninstalled(wheel: Path, tmp_path: Path):
    environment = Environment(tmp_path / "venv")
    config = make_run(tmp_path)
    environment.pip("install", "--no-index", "--no-deps", str(wheel))

    listed = environment.bumble("plugins", "list", cwd=tmp_path)
    assert listed.returncode == 0, listed.stderr
    assert "bumblecore-meadow 3.1.4" in listed.stdout
    assert "Rows with a note." not in listed.stdout, "the listing imported a third party"
    loaded = environment.bumble("plugins", "list", "--load", "--json", cwd=tmp_path)
    provided = json.loads(loaded.stdout)["records"]
    ours = {(item["kind"], item["name"]) for item in provided if item["distribution"] == "bumblecore-meadow"}
    assert ours == {("stages", "ending"), ("losses", "focal"), ("loggers", "trace"), ("data_formats", "note")}
    assert '"gamma"' in environment.bumble("config", "schema", cwd=tmp_path).stdout

    ran = environment.bumble("run", str(config), cwd=tmp_path)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    lines = [json.loads(line) for line in (tmp_path / "out" / "trace.jsonl").read_text().splitlines()]
    assert lines[0] == {"event": "start", "stage": "ending", "total_steps": STEPS}
    assert lines[-1] == {"event": "finish", "status": "complete"}
    steps = [line for line in lines if line["event"] == "train"]
    assert [line["step"] for line in steps] == list(range(1, STEPS + 1))
    assert all(0 < line["loss"] < line["cross_entropy"] for line in steps), "gamma 1 makes the loss smaller"
    assert steps[-1]["loss"] < steps[0]["loss"]
    assert list((tmp_path / "out" / "final").glob("*.safetensors"))
    assert "bumblecore-meadow" in (tmp_path / "out" / "run.lock.json").read_text()

    environment.pip("uninstall", "--yes", "bumblecore-meadow")
    refused = environment.bumble("run", str(config), cwd=tmp_path)
    assert refused.returncode == 2
    assert "Traceback" not in refused.stderr
    problems = [line for line in refused.stderr.splitlines() if line.startswith("BC056 ")]
    for name in ("ending", "focal", "trace", "note"):
        assert sum(f"'{name}'" in line and "run.yaml:" in line for line in problems) == 1, refused.stderr
    assert all("pip install" in line for line in problems)
