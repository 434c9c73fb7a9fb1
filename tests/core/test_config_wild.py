"""Whatever a config holds, the outcome is a run or an error."""

from __future__ import annotations

from pathlib import Path

import pytest
from config_records import MINIMAL, make_registry
from hypothesis import given, settings
from hypothesis import strategies as st

from bumblecore_core.config.resolve import load_config, resolve
from bumblecore_core.config.yaml import dump
from bumblecore_core.errors import BumbleError

REGISTRY = make_registry()


KEYS = st.sampled_from(
    ["stage", "model", "data", "path", "format", "loss", "optimizer", "lr", "name", "adapter", "rank", "train",
     "epochs", "loggers", "eval_path", "scheduler", "output_dir", "warmup_steps", "max_steps", "attention"]
) | st.text(max_size=4)  # fmt: skip
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6)
    | st.sampled_from(["sft", "odd", "adamw", "lora", "auto", "plateau", "dpo_sigmoid", "raising"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=10,
)  # fmt: skip


def outcome(path: Path, overrides: tuple[str, ...] = ()) -> None:
    """Resolves, and lets nothing but a `BumbleError` with one line for each problem pass."""
    try:
        run = resolve(load_config(path, overrides), REGISTRY)
    except BumbleError as error:
        problems, text = error.problems, str(error)
    else:
        assert run.to_dict()
        return
    assert problems
    assert len(text.splitlines()) == min(len(problems), 20) + (len(problems) > 20)
    assert text.encode("utf-8")


@pytest.fixture(scope="module")
def wild_file(tmp_path_factory):
    return tmp_path_factory.mktemp("wild") / "run.yaml"


@settings(max_examples=40, deadline=None)
@given(data=st.dictionaries(KEYS, VALUES, max_size=8))
def test_wild_files(wild_file: Path, data: dict[str, object]):
    wild_file.write_text(dump(data), encoding="utf-8")
    outcome(wild_file)


@settings(max_examples=40, deadline=None)
@given(changes=st.lists(st.tuples(st.lists(KEYS | st.sampled_from("012"), min_size=1, max_size=4), VALUES), max_size=4))
def test_wild_overrides_of_a_good_file(wild_file: Path, changes: list[tuple[list[str], object]]):
    wild_file.write_text(MINIMAL, encoding="utf-8")
    flow = [f"{'.'.join(keys)}={' '.join(dump({'v': value}).split())[3:]}" for keys, value in changes]
    outcome(wild_file, tuple(flow))


@settings(max_examples=40, deadline=None)
@given(text=st.text(max_size=20) | st.from_regex(r"[a-z.]{0,8}=[\[\]{}a-z:,0-9 !&*]{0,8}", fullmatch=True))
def test_wild_override_strings(wild_file: Path, text: str):
    wild_file.write_text(MINIMAL, encoding="utf-8")
    outcome(wild_file, (text,))
