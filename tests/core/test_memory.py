"""Memory estimates against figures by hand, in bytes per parameter and per token."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from bumblecore_core.config.schema import RunConfig
from bumblecore_core.run import memory
from bumblecore_core.run.data.plan import BatchPlan, PlanOptions
from bumblecore_core.run.facts import memory_facts, space_facts
from bumblecore_core.run.memory import MemoryInputs, Placement, estimate

MILLION = 1_000_000
SHAPE = SimpleNamespace(
    hidden_size=64,
    num_attention_heads=4,
    head_dim=32,
    num_key_value_heads=2,
    intermediate_size=200,
    num_hidden_layers=3,
    vocab_size=1000,
)
SHAPE.get_text_config = lambda: SHAPE
# Values kept of a token in a layer: 4 of the hidden size, 2 of all queries, 2 of all keys and values, 4 of the MLP's.
LAYER = 4 * 64 + 2 * (4 * 32) + 2 * (2 * 32) + 4 * 200


def inputs(**changes):
    given = {
        "parameters": 3 * MILLION,
        "trainable": 2 * MILLION,
        "weight_bytes": 2,
        "master_weights": True,
        "float32_gradients": True,
        "gradient_checkpointing": False,
        "tokens": 70,
        "supervised": 30,
        "config": SHAPE,
    }
    return MemoryInputs(**{**given, **changes})


@pytest.mark.parametrize(
    ("changes", "megabytes"),
    [
        ({}, {"weights": 6, "float32 masters": 8, "gradients": 8, "AdamW moments": 16}),
        ({"float32_gradients": False}, {"weights": 6, "float32 masters": 8, "gradients": 4, "AdamW moments": 16}),
        ({"master_weights": False}, {"weights": 6, "float32 masters": 0, "gradients": 8, "AdamW moments": 8}),
        ({"weight_bytes": 4}, {"weights": 12, "float32 masters": 0, "gradients": 8, "AdamW moments": 16}),
    ],
)
def test_bytes_per_parameter(changes, megabytes):
    parts = estimate(inputs(**changes)).sizes
    assert {name: parts[name] / MILLION for name in megabytes} == megabytes


def test_bytes_per_token():
    parts = estimate(inputs()).sizes
    assert parts["activations"] == 3 * 70 * 2 * LAYER
    assert parts["head"] == 30 * 1000 * 2
    assert estimate(inputs(weight_bytes=4)).sizes["activations"] == 2 * parts["activations"]


def test_gradient_checkpointing_keeps_each_layers_input_and_one_layers_activations():
    assert estimate(inputs(gradient_checkpointing=True)).sizes["activations"] == 70 * 2 * (3 * 64 + LAYER)


def test_what_the_config_does_not_state_is_unknown_and_not_counted():
    silent = SimpleNamespace(hidden_size=64, num_hidden_layers=3, num_attention_heads=4)
    facts = memory_facts(run_config(), silent, 3 * MILLION, 2 * MILLION, 2, plan_of([4] * 8), Placement())
    assert facts[0] == ("estimated memory", "38.1 MB for a micro-batch of 8 tokens, head not counted:")
    assert facts[-1] == ("  head", "unknown: config.json states no vocab_size")
    recurrent = SimpleNamespace(**{**vars(SHAPE), "layer_types": ["full_attention", "linear_attention"] * 2})
    recurrent.num_hidden_layers = 4
    recurrent.get_text_config = lambda: recurrent
    estimated = estimate(inputs(config=recurrent))
    assert list(estimated.unknown) == ["activations"]
    assert "linear_attention" in estimated.unknown["activations"]


def test_each_layer_counts_with_its_own_widths():
    layers = SimpleNamespace(**{**vars(SHAPE), "intermediate_size": [200, 100, 50]})
    layers.get_text_config = lambda: layers
    assert estimate(inputs(config=layers)).sizes["activations"] == 70 * 2 * (3 * LAYER - 4 * (100 + 150))


def run_config(**checkpoint):
    return RunConfig.model_validate(
        {
            "stage": "sft",
            "model": {"path": "model"},
            "data": {"path": "data.jsonl"},
            "output_dir": "runs/none",
            "checkpoint": checkpoint,
        }
    )


def plan_of(lengths, **options):
    settings = {"micro_batch_size": 2, "gradient_accumulation_steps": 2, "world_size": 1, "seed": 0, "packing": False}
    lengths = np.asarray(lengths, dtype=np.int32)
    plan = PlanOptions(**{**settings, **options}, max_length=100)
    return BatchPlan(lengths=lengths, counts=lengths // 2, rows=np.arange(len(lengths)), options=plan, epochs=1.0)


def test_the_largest_micro_batch_decides():
    plan = plan_of([3, 5, 8, 80, 70, 2, 6, 4])
    largest = max(sum(plan.lengths[list(micro.rows)]) for window in plan.windows() for micro in window.micro_batches[0])
    facts = memory_facts(run_config(), SHAPE, 3 * MILLION, 2 * MILLION, 2, plan, Placement())
    assert facts[0][1].endswith(f" for a micro-batch of {largest} tokens:")
    assert dict(facts)["  activations"] == memory.readable(3 * largest * 2 * LAYER)


def test_what_is_sharded_is_divided_and_what_is_offloaded_is_not_counted():
    plan = plan_of([4] * 8, world_size=2)
    placement = Placement(sharded=("gradients",), elsewhere={"AdamW moments": "in the CPU's memory"})
    facts = memory_facts(run_config(), SHAPE, 3 * MILLION, 2 * MILLION, 2, plan, placement)
    shown = dict(facts)
    assert shown["  gradients"] == "4.0 MB"
    assert shown["  AdamW moments"] == "16.0 MB (in the CPU's memory, not counted)"
    parts = estimate(inputs(tokens=8, supervised=4)).sizes
    counted = 6 * MILLION + 8 * MILLION + 4 * MILLION + parts["activations"] + parts["head"]
    assert shown["estimated memory"].startswith(f"{memory.readable(counted)} a rank ")


@pytest.mark.parametrize(
    ("checkpoint", "needed"),
    [
        ({"save_every": None, "save_steps": None}, 10),
        ({"save_every": None, "save_steps": None, "save_last": False}, 0),
        ({"save_steps": 5, "save_total_limit": 2}, 3 * (10 + 70) + 10),
        ({"save_steps": 5, "save_total_limit": None, "save_last": False}, 2 * (10 + 70)),
    ],
)
def test_the_disk_holds_checkpoints_one_being_written_and_the_final_model(monkeypatch, checkpoint, needed):
    for free, warned in ((needed * MILLION, False), (needed * MILLION - 1, True)):
        monkeypatch.setattr("shutil.disk_usage", lambda _, free=free: SimpleNamespace(free=free))
        assert bool(space_facts(run_config(**checkpoint), 10 * MILLION, 70 * MILLION)) == warned


class Files:
    """Stands in for `Path`: reads what the test says that the kernel and the control group say."""

    def __init__(self, contents, path=""):
        self.contents, self.path = contents, path

    def __call__(self, path):
        return Files(self.contents, path)

    def __truediv__(self, name):
        return Files(self.contents, f"{self.path}/{name}")

    def read_text(self):
        if self.path not in self.contents:
            raise FileNotFoundError(self.path)
        return self.contents[self.path]


@pytest.mark.parametrize(
    ("kernel", "limit", "expected"),
    [
        ("MemTotal: 9 kB\nMemAvailable:      3 kB\n", "max", 3 * 1024),
        ("MemTotal: 9 kB\nMemAvailable:      3 kB\n", "2500", 2000),
        ("MemTotal: 9 kB\nMemAvailable:      1 kB\n", "2500", 1024),
        (None, "2500", 2000),
        ("MemTotal: 9 kB\n", None, None),
        (None, None, None),
    ],
)
def test_the_smaller_of_the_kernels_and_the_control_groups_figure_holds(monkeypatch, kernel, limit, expected):
    group = "/sys/fs/cgroup"
    given = {"/proc/meminfo": kernel, f"{group}/memory.max": limit, f"{group}/memory.current": "500"}
    monkeypatch.setattr(memory, "Path", Files({path: text for path, text in given.items() if text is not None}))
    assert memory.available_memory() == expected


def test_this_machines_free_memory_is_read():
    if Path("/proc/meminfo").exists():
        assert 1 << 20 < memory.available_memory() < 1 << 50
