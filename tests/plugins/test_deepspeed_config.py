"""DeepSpeed's configuration: what the run says, what the user's file says, and what happens where they differ."""

import json

import pytest
import torch

from bumblecore_core import ConfigError, EngineContext
from bumblecore_plugins.engines import DeepSpeedOptions
from bumblecore_plugins.engines.deepspeed_config import make_config, zero_stage
from bumblecore_plugins.engines.deepspeed_file import read_config_file

CONTEXT = EngineContext(dtype="bf16", max_grad_norm=1.0, micro_batch_size=3, gradient_accumulation_steps=4)


def made(
    given=None,
    *,
    dtype=torch.bfloat16,
    world_size=2,
    hidden_size=None,
    context=CONTEXT,
    largest=None,
    swap_directory=None,
    **options,
):
    return make_config(
        options=DeepSpeedOptions(**options),
        given=given or {},
        context=context,
        dtype=dtype,
        world_size=world_size,
        hidden_size=hidden_size,
        largest=largest,
        swap_directory=swap_directory,
    )


def refused(code, call, field="engine.config_file"):
    """The text of the one problem that `call` is refused with."""
    with pytest.raises(ConfigError) as raised:
        call()
    (problem,) = raised.value.problems
    assert problem.code == code
    assert problem.field == field
    return str(raised.value)


@pytest.fixture
def file(tmp_path):
    def write(content):
        path = tmp_path / "deepspeed.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return str(path)

    return write


def test_without_a_file_nothing_is_given():
    assert read_config_file(None) == {}


def test_auto_values_are_left_out_wherever_they_stand(file):
    path = file(
        {
            "train_batch_size": "auto",
            "bf16": {"enabled": "auto"},
            "optimizer": "auto",
            "zero_optimization": {"stage": 3, "reduce_bucket_size": "auto", "sub_group_size": 1e9},
        }
    )
    assert read_config_file(path) == {"bf16": {}, "zero_optimization": {"stage": 3, "sub_group_size": 1e9}}


@pytest.mark.parametrize("content", ["{", "", "{'stage': 3}", "stage: 3"])
def test_a_file_that_is_not_json_is_refused(file, content):
    assert "not JSON" in refused("BC039", lambda: read_config_file(file(content)))


def test_a_file_in_another_encoding_is_refused(tmp_path):
    (tmp_path / "deepspeed.json").write_bytes('{"stage": "é"}'.encode("latin-1"))
    refused("BC039", lambda: read_config_file(str(tmp_path / "deepspeed.json")))


@pytest.mark.parametrize("content", ["[]", "3", "null", '"auto"'])
def test_a_file_that_holds_no_object_is_refused(file, content):
    assert "no object" in refused("BC039", lambda: read_config_file(file(content)))


def test_a_file_that_is_missing_or_a_directory_is_refused_with_its_path(tmp_path):
    for path in (tmp_path / "none.json", tmp_path):
        assert str(path) in refused("BC061", lambda path=path: read_config_file(str(path)))


@pytest.mark.parametrize(
    ("section", "place"),
    [
        ("optimizer", "optimizer"),
        ("scheduler", "scheduler"),
        ("tensorboard", "loggers"),
        ("wandb", "loggers"),
        ("amp", "model.dtype"),
        ("data_types", "train.float32_gradients"),
    ],
)
def test_sections_that_the_run_has_its_own_place_for_are_refused(file, section, place):
    text = refused("BC039", lambda: read_config_file(file({section: {"type": "AdamW"}})))
    assert f"'{section}'" in text
    assert f"`{place}`" in text


@pytest.mark.parametrize(
    ("option", "of_file", "expected"),
    [(None, None, 2), (None, 3, 3), (None, 0, 0), (0, None, 0), (1, None, 1), (3, 3, 3), (0, 0, 0)],
)
def test_the_stage_is_that_of_the_options_else_the_files_else_2(option, of_file, expected):
    given = {} if of_file is None else {"zero_optimization": {"stage": of_file}}
    assert zero_stage(DeepSpeedOptions(zero_stage=option), given) == expected
    assert made(given, zero_stage=option)["zero_optimization"]["stage"] == expected


@pytest.mark.parametrize(("option", "of_file"), [(2, 3), (0, 1), (1, 0)])
def test_two_stages_are_a_conflict_that_names_both(option, of_file):
    given = {"zero_optimization": {"stage": of_file}}
    text = refused("BC039", lambda: zero_stage(DeepSpeedOptions(zero_stage=option), given))
    assert f"zero_optimization.stage: {of_file}" in text
    assert f"engine.zero_stage: {option}" in text


def test_the_run_fills_in_what_the_file_does_not_say():
    config = made()
    assert config["train_micro_batch_size_per_gpu"] == 3
    assert config["gradient_accumulation_steps"] == 4
    assert config["train_batch_size"] == 24
    assert config["gradient_clipping"] == 1.0
    assert (config["bf16"]["enabled"], config["fp16"]["enabled"]) == (True, False)


@pytest.mark.parametrize(
    ("dtype", "bf16", "fp16"), [(torch.float32, 0, 0), (torch.bfloat16, 1, 0), (torch.float16, 0, 1)]
)
def test_the_dtype_switches_the_sections_of_half_precision(dtype, bf16, fp16):
    config = made(dtype=dtype)
    assert (config["bf16"]["enabled"], config["fp16"]["enabled"]) == (bf16, fp16)


@pytest.mark.parametrize(
    ("dtype", "wide", "expected"),
    [(torch.bfloat16, True, "fp32"), (torch.bfloat16, False, "bf16"), (torch.float32, False, "fp32")],
)
def test_gradients_are_added_up_as_the_run_says(dtype, wide, expected):
    context = EngineContext(dtype="auto", float32_gradients=wide)
    config = made(dtype=dtype, context=context, zero_stage=2)
    assert config["data_types"]["grad_accum_dtype"] == expected
    assert config["communication_data_type"] == expected


def test_no_clipping_is_a_limit_of_zero():
    context = EngineContext(dtype="bf16", max_grad_norm=None)
    assert made(context=context)["gradient_clipping"] == 0.0
    assert made({"gradient_clipping": 0}, context=context)["gradient_clipping"] == 0.0


def test_what_only_the_file_says_is_kept():
    given = {
        "comms_logger": {"enabled": True},
        "fp16": {"loss_scale_window": 500, "initial_scale_power": 12},
        "zero_optimization": {"stage": 2, "overlap_comm": True, "allgather_bucket_size": 12345},
    }
    before = json.dumps(given)
    config = made(given)
    assert config["comms_logger"] == {"enabled": True}
    assert config["fp16"] == {"loss_scale_window": 500, "initial_scale_power": 12, "enabled": False}
    assert config["zero_optimization"]["overlap_comm"] is True
    assert config["zero_optimization"]["allgather_bucket_size"] == 12345
    assert json.dumps(given) == before


def test_values_that_agree_are_taken():
    given = {
        "train_batch_size": 24,
        "train_micro_batch_size_per_gpu": 3,
        "gradient_accumulation_steps": 4,
        "gradient_clipping": 1,
        "bf16": {"enabled": True},
        "fp16": {"enabled": False},
    }
    config = made(given)
    assert {key: config[key] for key in given if not key.endswith("16")} == {
        key: value for key, value in given.items() if not key.endswith("16")
    }
    assert config["bf16"]["enabled"] is True


@pytest.mark.parametrize(
    ("given", "of_file", "of_run"),
    [
        ({"gradient_clipping": 0.5}, "gradient_clipping: 0.5", "train.max_grad_norm: 1.0"),
        ({"bf16": {"enabled": False}}, "bf16.enabled: False", "model.dtype (bf16): True"),
        ({"fp16": {"enabled": True}}, "fp16.enabled: True", "model.dtype (bf16): False"),
    ],
)
def test_a_conflict_names_both_keys_and_both_values(given, of_file, of_run):
    text = refused("BC039", lambda: made(given))
    assert of_file in text
    assert of_run in text


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"train_batch_size": 32}, "train_batch_size is 32"),
        ({"train_micro_batch_size_per_gpu": 1}, "train_micro_batch_size_per_gpu is 1"),
        ({"gradient_accumulation_steps": 2}, "gradient_accumulation_steps is 2"),
        (
            {"train_micro_batch_size_per_gpu": 6, "gradient_accumulation_steps": 2, "train_batch_size": 24},
            "train_micro_batch_size_per_gpu is 6 and gradient_accumulation_steps is 2;",
        ),
    ],
)
def test_batch_sizes_that_are_not_the_runs_are_refused_with_the_arithmetic(given, said):
    text = refused("BC040", lambda: made(given))
    assert said in text
    assert "micro_batch_size 3 × gradient_accumulation_steps 4 × 2 processes = 24" in text


def test_the_batch_size_is_that_of_all_processes():
    given = {"train_batch_size": 24}
    assert made(given, world_size=2)["train_batch_size"] == 24
    assert "× 3 processes = 36" in refused("BC040", lambda: made(given, world_size=3))


# -- buckets of stage 3, and offload ----------------------------------------------------------------------------------

BUCKETS = {
    "reduce_bucket_size": 192 * 192,
    "stage3_prefetch_bucket_size": int(0.9 * 192 * 192),
    "stage3_param_persistence_threshold": 10 * 192,
}


def test_the_buckets_of_stage_3_are_sized_from_the_hidden_size():
    zero = made(hidden_size=192, zero_stage=3)["zero_optimization"]
    assert {key: zero[key] for key in BUCKETS} == BUCKETS
    for other in (made(hidden_size=192, zero_stage=2), made(hidden_size=None, zero_stage=3)):
        assert not BUCKETS.keys() & other["zero_optimization"].keys()


@pytest.mark.parametrize("key", BUCKETS)
def test_a_bucket_that_the_file_sets_stays_and_auto_is_not_set(file, key):
    automatic = dict.fromkeys(BUCKETS, "auto")
    given = read_config_file(file({"zero_optimization": {"stage": 3, **automatic, key: 1000}}))
    zero = made(given, hidden_size=192)["zero_optimization"]
    assert {name: zero[name] for name in BUCKETS} == {**BUCKETS, key: 1000}


def test_offload_of_the_options_joins_what_the_file_says_about_it():
    given = {"zero_optimization": {"stage": 3, "offload_optimizer": {"pin_memory": True}}}
    zero = made(given, offload_optimizer="cpu", offload_parameters="cpu")["zero_optimization"]
    assert zero["offload_optimizer"] == {"pin_memory": True, "device": "cpu"}
    assert zero["offload_param"] == {"device": "cpu"}
    plain = made(zero_stage=3)["zero_optimization"]
    assert "offload_optimizer" not in plain
    assert "offload_param" not in plain


@pytest.mark.parametrize("section", ["offload_optimizer", "offload_param"])
def test_offload_to_another_device_is_refused(file, section):
    given = {"zero_optimization": {"stage": 3, section: {"device": "tape"}}}
    text = refused("BC039", lambda: read_config_file(file(given)))
    assert section in text
    assert "cpu or nvme" in text


def test_an_offload_of_null_is_none(file):
    given = read_config_file(file({"zero_optimization": {"stage": 2, "offload_optimizer": None}}))
    assert given == {"zero_optimization": {"stage": 2}}


@pytest.mark.parametrize(
    "given",
    [
        {"zero_optimization": 3},
        {"zero_optimization": {"stage": "two"}},
        {"zero_optimization": {"stage": 7}},
        {"zero_optimization": {"stage": True}},
        {"bf16": True},
        {"fp16": []},
    ],
)
def test_a_section_of_another_shape_is_refused(file, given):
    refused("BC039", lambda: read_config_file(file(given)))
