"""A user's DeepSpeed file: what is refused, all at once, what is warned about, and what DeepSpeed itself says of it."""

import json

import pytest
import torch

from bumblecore_core import ConfigError, EngineContext
from bumblecore_plugins.engines import DeepSpeedOptions
from bumblecore_plugins.engines.deepspeed_config import make_config
from bumblecore_plugins.engines.deepspeed_file import (
    ELSEWHERE,
    SECTIONS,
    UNSUPPORTED,
    UNSUPPORTED_ZERO,
    VALUES,
    read_config_file,
)
from bumblecore_plugins.engines.deepspeed_library import check_with_deepspeed

WRITTEN_FOR_OTHERS = {
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "bf16": "auto",
    "fp16": {"enabled": "auto", "loss_scale": 0, "initial_scale_power": 16},
    "optimizer": {"type": "AdamW", "params": {"lr": "auto", "betas": "auto", "weight_decay": "auto"}},
    "scheduler": {"type": "WarmupLR", "params": {"warmup_min_lr": "auto", "warmup_num_steps": "auto"}},
    "zero_optimization": {"stage": 3, "offload_optimizer": {"device": "none"}, "reduce_bucket_size": "auto"},
    "elasticity": {"enabled": False},
    "tensorboard": {"enabled": False, "output_path": "logs"},
    "wall_clock_breakdown": False,
}
"""As the documentation of transformers has it."""


def read(tmp_path, content):
    """(what the file sets, warnings)."""
    path = tmp_path / "deepspeed.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    warnings = []
    return read_config_file(str(path), warnings.append), warnings


def problems(call):
    with pytest.raises(ConfigError) as raised:
        call()
    assert {problem.field for problem in raised.value.problems} == {"engine.config_file"}
    return [str(problem) for problem in raised.value.problems]


def checked(given, dtype=torch.float32):
    """DeepSpeed's opinion of a file's settings in a run of one process."""
    context = EngineContext(dtype="fp32", max_grad_norm=1.0, micro_batch_size=3, gradient_accumulation_steps=4)
    options = DeepSpeedOptions()
    check_with_deepspeed(
        make_config(options=options, given=given, context=context, dtype=dtype, world_size=2), {"given": True}
    )


def test_everything_that_is_refused_is_named_at_once(tmp_path):
    content = {
        "optimizer": {"type": "Lion", "params": {"lr": 1e-4}},
        "wandb": {"enabled": True},
        "nebula": {"enabled": True},
        "sparse_attention": {"mode": "fixed"},
        "aio": 3,
        "fp16": {"fp16_master_weights_and_grads": True},
        "log_level": "loud",
        "zero_optimization": {"stage": 7, "offload_param": {"device": "tape"}, "zenflow": {}, "legacy_stage1": True},
    }
    lines = problems(lambda: read(tmp_path, content))
    assert all(line.startswith(f"BC039 {tmp_path / 'deepspeed.json'} engine.config_file: ") for line in lines)
    quoted = ("'optimizer'", "'wandb'", "'nebula'", "'sparse_attention'", "'aio'", "fp16_master_weights_and_grads")
    quoted += ("log_level is 'loud'", "stage is 7", "offload_param", "'zenflow'", "'legacy_stage1'")
    assert len(lines) == len(quoted)
    for part in quoted:
        assert sum(part in line for line in lines) == 1, part


@pytest.mark.parametrize("key", sorted(UNSUPPORTED))
def test_features_that_this_engine_does_not_have_are_refused_unless_they_are_off(tmp_path, key):
    (line,) = problems(lambda: read(tmp_path, {key: {"enabled": True}}))
    assert f"'{key}', which this engine does not support. Remove it there." in line
    for off in ({"enabled": False, "x": 1}, {}, False, None, "auto", {"a": "auto"}):
        assert read(tmp_path, {key: off}) == ({}, [])


def test_a_file_written_for_transformers_is_accepted(tmp_path):
    given, warnings = read(tmp_path, WRITTEN_FOR_OTHERS)
    assert given == {
        "fp16": {"loss_scale": 0, "initial_scale_power": 16},
        "zero_optimization": {"stage": 3, "offload_optimizer": {"device": "none"}},
        "wall_clock_breakdown": False,
    }
    assert warnings == [
        "the DeepSpeed file's optimizer 'AdamW' is not used: the run has its own `optimizer`",
        "the DeepSpeed file's scheduler 'WarmupLR' is not used: the run has its own `scheduler`",
    ]
    checked(given)


@pytest.mark.parametrize("optimizer", [{"type": "AdamW"}, {"type": "AdamW", "params": {"lr": "auto", "eps": 1e-6}}])
def test_an_optimizer_with_a_value_of_its_own_is_refused(tmp_path, optimizer):
    (line,) = problems(lambda: read(tmp_path, {"optimizer": optimizer}))
    assert "choose with `optimizer` in the run's configuration" in line


def test_unknown_keys_are_named_with_the_nearest_and_left_out(tmp_path):
    content = {"zero_optimisation": {"stage": 3}, "xyz": 1, "aio": {"block_size": 1, "qeue_depth": 2}, "bf16": {}}
    given, warnings = read(tmp_path, content)
    assert given == {"aio": {"block_size": 1}, "bf16": {}}
    place = f"BC034 {tmp_path / 'deepspeed.json'}: unknown key"
    assert warnings == [
        f"{place} 'zero_optimisation' is ignored; did you mean 'zero_optimization'?",
        f"{place} 'xyz' is ignored; check its spelling",
        f"{place} 'aio.qeue_depth' is ignored; did you mean 'queue_depth'?",
    ]


def test_the_old_name_of_a_section(tmp_path):
    assert read(tmp_path, {"bfloat16": {"enabled": True}}) == ({"bf16": {"enabled": True}}, [])


@pytest.mark.parametrize(
    "content",
    [
        "[" * 100_000,
        '{"a": ' * 5000,
        '{"fp16": {}, "fp16": {}}',
        '{"gradient_clipping": NaN}',
        '{"a": ' + "9" * 5000 + "}",
    ],
    ids=["deep", "deep objects", "duplicate", "NaN", "long number"],
)
def test_json_that_no_parser_should_take(tmp_path, content):
    (line,) = problems(lambda: read(tmp_path, content))
    assert "is not JSON" in line


def test_what_deepspeed_refuses_is_found_before_anything_is_loaded():
    given = {
        "zero_optimization": {"stage": 2, "overlap_com": True, "reduce_bucket_size": 0},
        "fp16": {"loss_scale": "large"},
        "comms_logger": {"enable": True},
    }
    lines = problems(lambda: checked(given))
    assert len(lines) == 4
    for part in (
        "an unknown key, zero_optimization.overlap_com; did you mean 'overlap_comm'?",
        "zero_optimization.reduce_bucket_size is not what DeepSpeed takes",
        "fp16.loss_scale is not what DeepSpeed takes",
        "an unknown key, comms_logger.enable; did you mean 'enabled'?",
    ):
        assert any(part in line for line in lines), part
    (line,) = problems(lambda: checked({"checkpoint": {"tag_validation": 3}}))
    assert "DeepSpeed does not take the configuration" in line


def test_the_lists_name_what_deepspeed_has():
    """Each key that is passed on or refused occurs in DeepSpeed's own source."""
    from pathlib import Path

    import deepspeed

    files = [*Path(deepspeed.__file__).parent.glob("runtime/**/*.py"), *Path(deepspeed.__file__).parent.glob("*/*.py")]
    source = "\n".join(file.read_text(encoding="utf-8") for file in files)
    names = {*SECTIONS, *VALUES, *ELSEWHERE, *UNSUPPORTED, *UNSUPPORTED_ZERO}
    names |= {name for keys in SECTIONS.values() for name in keys or ()}
    assert {name for name in names if name not in source} == set()
