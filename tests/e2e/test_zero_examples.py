"""The configs of examples/zero run on two ranks, and train as the engine `torch` does."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from bumblecore_core.cli import main
from zero_runs import losses, on_ranks

ROOT = Path(__file__).resolve().parents[2]
ZERO = ROOT / "examples" / "zero"
SAID = {
    "zero0": (0, []),
    "zero1": (1, []),
    "zero2": (2, []),
    "zero3": (3, []),
    "offload_optimizer": (2, ["optimizer state"]),
    "offload_all": (3, ["optimizer state", "weights"]),
    "config_file": (3, []),
}
"""The stage of each config, and what it offloads."""
ON_DISK = {"offload_nvme": (3, ["optimizer state", "weights"])}
STEPS = 3


@pytest.fixture(autouse=True)
def from_the_checkout(monkeypatch):
    monkeypatch.chdir(ROOT)


def arguments(directory: Path, config: Path, *given: str, name: str | None = None) -> list[str]:
    """Of `bumble`, for a short run in float32 into `directory`."""
    output = directory / (name or config.stem)
    sets = {
        "train.max_steps": STEPS,
        "checkpoint.save_steps": 2,
        "model.dtype": "fp32",
        "loggers": "[log_file, metrics_json]",
        "output_dir": output,
    }
    return ["run", str(config), *given, *(part for key, value in sets.items() for part in ("--set", f"{key}={value}"))]


def on_one_process(directory: Path) -> list[float]:
    """The losses of the same run with the engine `torch`: each micro-batch of both ranks is accumulated."""
    sets = ["--set", "engine=torch", "--set", "train.gradient_accumulation_steps=4"]
    with pytest.raises(SystemExit) as ended:
        main(arguments(directory, ZERO / "zero0.yaml", *sets, name="torch"))
    assert not ended.value.code
    return losses(directory, "torch")


def check(directory: Path, name: str, expected: list[float]) -> None:
    found = losses(directory, name)
    assert len(found) == STEPS
    assert found == pytest.approx(expected, rel=1e-5)
    stage, offloaded = (SAID | ON_DISK)[name]
    log = (directory / name / "logs" / "train.log").read_text(encoding="utf-8")
    assert re.search(rf"ZeRO stage +{stage} \(sharded over 2 processes", log)
    assert re.search(r"head +on supervised positions only, read as data", log)
    assert re.findall(r"offload of (.+?) +to (?:the memory of the cpu|/tmp)", log) == offloaded


def variants(directory: Path) -> dict[str, Path]:
    """The configs in the comments of zero3.yaml, as files."""
    text = (ZERO / "zero3.yaml").read_text(encoding="utf-8")
    found = re.findall(r"^# >>> (\w+)\n(.*?)^# <<<$", text, re.MULTILINE | re.DOTALL)
    files = {name: directory / f"{name}.yaml" for name, _ in found}
    for name, block in found:
        files[name].write_text(re.sub(r"^# ?", "", block, flags=re.MULTILINE), encoding="utf-8")
    return files


def test_every_config_of_the_folder_is_tested():
    assert {path.stem for path in ZERO.glob("*.yaml")} == set(SAID | ON_DISK)


@pytest.mark.slow
def test_the_example_with_a_file_of_deepspeed_trains_as_the_engine_torch_does(tmp_path):
    plain = arguments(tmp_path, ZERO / "config_file.yaml", "--set", "engine=torch", name="torch")
    assert on_ranks(tmp_path, [plain, arguments(tmp_path, ZERO / "config_file.yaml")]) == [[0] * 2] * 2
    check(tmp_path, "config_file", losses(tmp_path, "torch"))


@pytest.mark.slow
def test_every_example_trains_as_one_process_does_and_goes_on_at_another_stage(tmp_path):
    runs = [arguments(tmp_path, ZERO / f"{name}.yaml") for name in SAID]
    start = str(tmp_path / "zero2" / "checkpoint-2")
    for name in ("zero0", "zero3"):
        runs.append(arguments(tmp_path, ZERO / f"{name}.yaml", "--resume", start, name=f"{name}_resumed"))
    assert on_ranks(tmp_path, runs) == [[0] * len(runs)] * 2
    expected = on_one_process(tmp_path)
    for name in SAID:
        check(tmp_path, name, expected)
    for name in ("zero0", "zero3"):
        assert losses(tmp_path, f"{name}_resumed") == pytest.approx(expected, rel=1e-5)


@pytest.mark.exhaustive
def test_the_example_on_a_disk_comes_to_the_bits_of_the_one_in_memory_and_goes_on_from_it(tmp_path):
    """DeepSpeed's file operator is compiled first, which takes minutes."""
    if not Path("/usr/include/libaio.h").is_file():
        pytest.skip("libaio is not here")
    runs = [arguments(tmp_path, ZERO / f"{name}.yaml") for name in ("offload_all", "offload_nvme")]
    start = str(tmp_path / "offload_all" / "checkpoint-2")
    runs.append(arguments(tmp_path, ZERO / "offload_nvme.yaml", "--resume", start, name="resumed"))
    files = variants(tmp_path)
    nvme = "{name: deepspeed, zero_stage: 3, offload_optimizer: nvme, offload_parameters: nvme, nvme_path: /tmp}"
    reference = ["--set", f"stage={{name: dpo, reference: {tmp_path / 'offload_nvme' / 'checkpoint-2'}}}"]
    for name, method in (("memory", []), ("disk", ["--set", f"engine={nvme}"])):
        more = [*method, *reference, "--set", f"model.path={tmp_path / 'offload_all'}"]
        runs.append(arguments(tmp_path, files["dpo"], *more, name=f"dpo_{name}"))
        more = [*method, "--set", f"model.path={tmp_path / 'offload_all'}"]
        runs.append(arguments(tmp_path, files["sft_lora"], *more, name=f"lora_{name}"))
    assert on_ranks(tmp_path, runs) == [[0] * len(runs)] * 2
    check(tmp_path, "offload_nvme", losses(tmp_path, "offload_all"))
    for name in ("offload_nvme", "resumed"):
        weights = load_file(tmp_path / name / "final" / "model.safetensors")
        expected = load_file(tmp_path / "offload_all" / "final" / "model.safetensors")
        assert all(torch.equal(weight, expected[key]) for key, weight in weights.items())
    for method in ("dpo", "lora"):
        assert losses(tmp_path, f"{method}_disk") == pytest.approx(losses(tmp_path, f"{method}_memory"), rel=1e-5)


@pytest.mark.slow
def test_the_variants_in_the_comments_run(tmp_path):
    base = arguments(tmp_path, ZERO / "zero3.yaml", name="base")
    files = variants(tmp_path)
    assert set(files) == {"sft_lora", "dpo"}
    runs = [arguments(tmp_path, file, "--set", f"model.path={tmp_path / 'base'}") for file in files.values()]
    assert on_ranks(tmp_path, [base, *runs]) == [[0] * 3] * 2
    assert (tmp_path / "sft_lora" / "final" / "adapter_model.safetensors").is_file()
    assert losses(tmp_path, "dpo")[0] == pytest.approx(0.6931, rel=1e-3)  # policy and reference are one model yet
