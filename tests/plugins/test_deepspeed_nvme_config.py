"""Where offload to NVMe goes, and what is refused."""

import subprocess
import sys

import pytest
import torch
from test_deepspeed_config import made, refused

from bumblecore_core import ConfigError
from bumblecore_plugins.engines import DeepSpeedOptions
from bumblecore_plugins.engines.deepspeed_config import left_device, nvme_directory
from bumblecore_plugins.engines.zero_nvme import drop_stale_lock

STATE, MEMORY, DISK = ("AdamW moments", "float32 masters"), "in the memory of the cpu", "on the disk"


def on_disk(**changes):
    return DeepSpeedOptions(**{"zero_stage": 3, "offload_optimizer": "nvme", "offload_parameters": "nvme", **changes})


def test_the_directory_for_nvme_is_that_of_the_option_or_the_files(tmp_path):
    file = {"zero_optimization": {"offload_param": {"device": "nvme", "nvme_path": str(tmp_path)}}}
    assert nvme_directory(on_disk(nvme_path=str(tmp_path)), {}) == tmp_path
    assert nvme_directory(on_disk(), file) == tmp_path
    assert nvme_directory(DeepSpeedOptions(), file) == tmp_path
    assert nvme_directory(on_disk(nvme_path=str(tmp_path)), file) == tmp_path
    assert nvme_directory(DeepSpeedOptions(nvme_path=str(tmp_path)), {}) is None
    assert "nvme_path" in refused("BC039", lambda: nvme_directory(on_disk(nvme_path="elsewhere"), file))
    refused("BC039", lambda: nvme_directory(on_disk(), {}), "engine.nvme_path")
    refused("BC061", lambda: nvme_directory(on_disk(nvme_path=str(tmp_path / "no")), {}), "engine.nvme_path")


def test_what_goes_to_nvme_goes_to_the_ranks_own_directory_in_groups(tmp_path):
    options = {"offload_optimizer": "nvme", "offload_parameters": "nvme", "zero_stage": 3}
    zero = made({}, largest=1000, swap_directory=tmp_path, **options)["zero_optimization"]
    assert zero["sub_group_size"] == 10**8
    assert zero["offload_optimizer"] == {"device": "nvme", "nvme_path": str(tmp_path), "buffer_count": 5}
    weights = {"device": "nvme", "nvme_path": str(tmp_path), "max_in_cpu": 0, "buffer_size": 1000}
    assert zero["offload_param"] == weights
    given = {"zero_optimization": {"sub_group_size": 7, "offload_param": {"max_in_cpu": 9, "buffer_size": 8}}}
    zero = made(given, largest=1000, swap_directory=tmp_path, **options)["zero_optimization"]
    assert zero["sub_group_size"] == 7
    assert zero["offload_param"] == {**weights, "max_in_cpu": 9, "buffer_size": 8}


@pytest.mark.parametrize(
    ("device", "offloads", "elsewhere"),
    [
        ("cuda", {}, {}),
        ("cuda", {"offload_optimizer": "cpu"}, dict.fromkeys(STATE, MEMORY)),
        (
            "cuda",
            {"offload_optimizer": "cpu", "offload_param": "nvme"},
            {**dict.fromkeys(STATE, MEMORY), "weights": DISK},
        ),
        ("cpu", {"offload_optimizer": "cpu", "offload_param": "cpu"}, {}),
        ("cpu", {"offload_optimizer": "nvme", "offload_param": "none"}, dict.fromkeys(STATE, DISK)),
    ],
)
def test_what_is_offloaded_does_not_lie_in_the_devices_memory(device, offloads, elsewhere):
    zero = {name: {"device": to} for name, to in offloads.items()}
    assert left_device(zero, torch.device(device)) == elsewhere


def test_offload_of_the_optimizer_to_nvme_below_stage_3_is_refused():
    with pytest.raises(ConfigError, match=r"this is stage 2.*to cpu"):
        made({}, zero_stage=2, offload_optimizer="nvme")


def test_offload_of_weights_below_stage_3_is_refused():
    with pytest.raises(ConfigError, match="this is stage 2"):
        made({}, zero_stage=2, offload_parameters="cpu")


def test_offload_to_the_cpu_can_be_said_in_the_file_alone():
    given = {"zero_optimization": {"stage": 3, "offload_param": {"device": "cpu"}}}
    assert made(given)["zero_optimization"]["offload_param"] == {"device": "cpu"}


def test_the_lock_of_a_build_that_died_is_removed_and_that_of_a_living_one_is_not(tmp_path):
    lock = tmp_path / "lock"
    assert not drop_stale_lock(tmp_path, patience=0.1)
    lock.touch()
    with subprocess.Popen([sys.executable, "-c", "input()"], cwd=tmp_path, stdin=subprocess.PIPE) as compiler:
        assert not drop_stale_lock(tmp_path, patience=0.1)
        assert lock.exists()
        compiler.communicate(b"\n")
    assert drop_stale_lock(tmp_path, patience=0.1)
    assert not lock.exists()
