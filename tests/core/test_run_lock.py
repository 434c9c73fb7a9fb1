"""What a resume finds changed since a checkpoint was saved, and what of it is accepted."""

import itertools
import json

import pytest

from bumblecore_core.errors import RunError
from bumblecore_core.run.checkpoint.resume import Start, check_start
from bumblecore_core.run.lock import batch_size, config_differences, drift, lock_digest, read_lock
from bumblecore_core.toolkit.state_files import read_state, write_state
from core.locks import GONE, changed, make_lock

DRIFTS = [
    # path, new value, name, code, a section whose name accepts it
    ("config.stage.name", "pretrain", "stage.name", "BC043", "stage"),
    ("config.optimizer.lr", 2e-3, "optimizer.lr", "BC043", "optimizer"),
    ("config.optimizer.lr", GONE, "optimizer.lr", "BC043", "optimizer"),
    ("config.optimizer.beta", 0.9, "optimizer.beta", "BC043", "optimizer"),
    ("plugins.2.files.table", "u" * 64, "optimizer.table", "BC043", "optimizer"),
    ("config.train.seed", 1, "train.seed", "BC043", "train"),
    ("config.data.max_length", 128, "data.max_length", "BC043", "data"),
    ("config.model.dtype", "fp32", "model.dtype", "BC043", "model"),
    ("config.model.layers.1", 3, "model.layers.1", "BC043", "model.layers"),
    ("config.model.layers", [1, 2, 3], "model.layers", "BC043", "model"),
    ("config.adapter", None, "adapter", "BC043", "adapter"),
    ("config.adapter.rank", 16, "adapter.rank", "BC043", "adapter"),
    ("data.content", "f" * 64, "data", "BC050", "data"),
    ("data.weights", [2.0], "data", "BC050", "data"),
    ("data.examples", 1235, "data", "BC050", "data"),
    ("evaluation_data.content", "f" * 64, "evaluation_data", "BC050", "evaluation_data"),
    ("evaluation_data", None, "evaluation_data", "BC050", "evaluation_data"),
    ("tokenizer", "u" * 64, "tokenizer", "BC050", "tokenizer"),
    ("model.config.hidden_size", 64, "model.config.hidden_size", "BC047", "model.config"),
    ("model.config.rope.theta", 1e6, "model.config.rope.theta", "BC047", "model"),
    ("model.config.eos", [1], "model.config.eos", "BC047", "model.config"),
    ("model.weights", "x" * 64, "model.weights", "BC047", "model"),
    ("plugins.2.version", "1.1", "plugin.optimizer.lion", "BC070", "plugin"),
    ("plugins.2.distribution", "other", "plugin.optimizer.lion", "BC070", "plugin.optimizer"),
    ("plugins.1.distribution", "other", "plugin.loss.cross_entropy", "BC070", "plugin"),
    ("libraries.torch", "2.10", "library.torch", "BC070", "library"),
    ("libraries.python", "3.12.0", "library.python", "BC070", "library"),
    ("libraries.bumblecore", "1.1", "library.bumblecore", "BC070", "library"),
]

SAME = [
    *[("config.output_dir", "elsewhere"), ("config.loggers", []), ("config.loggers.0.name", "bar")],
    *[("config.checkpoint.save_steps", None), ("config.checkpoint", GONE), ("config.data.cache_dir", None)],
    *[("config.data.num_proc", 4), ("config.data.num_workers", 0), ("config.train.logging_steps", 10)],
    *[("config.train.max_skipped_steps", 3), ("config.data.max_bad_share", 0.5)],
    # compared by their content
    *[("config.data.on_bad_row", "skip"), ("config.data.too_long", "drop")],
    *[("config.data.path", ["moved.jsonl"]), ("config.data.eval_path", "moved"), ("config.data.format", "alpaca")],
    *[("config.model.path", "moved"), ("config.model.tokenizer", "moved"), ("config.model.chat_template", "moved")],
    ("config.optimizer.table", "moved"),
    # compared by their product
    *[("config.train.micro_batch_size", 6), ("config.train.gradient_accumulation_steps", 1), ("world_size", 1)],
    # says nothing about the numbers
    *[("plugins.0.version", "1.1"), ("plugins.3.version", "9"), ("plugins.3", GONE)],
    ("plugins.3.files", {"style": "s" * 64}),
    *[("plugins.2.options_sha256", "1" * 64), ("libraries.torch", GONE), ("libraries.peft", "1.0")],
    # a key that a version adds with nothing set
    ("config.train.new_option", None),
]


def test_an_option_that_is_new_in_this_version_is_no_change_at_its_default():
    saved, now = make_lock(), changed(("config.optimizer.beta", 0.9))
    assert [one.name for one in drift(saved, now, allowed=[])] == ["optimizer.beta"]
    assert drift(saved, {**now, "defaults": ["optimizer.beta"]}, allowed=[]) == []
    off = changed(("config.optimizer.beta", None))  # it was there, and null
    assert [one.name for one in drift(off, {**now, "defaults": ["optimizer.beta"]}, allowed=[])] == ["optimizer.beta"]


@pytest.mark.parametrize(("path", "value", "name", "code", "section"), DRIFTS)
def test_a_difference_is_found_by_name_and_code_from_either_side(path, value, name, code, section):
    one, other = make_lock(), changed((path, value))
    assert [(found.name, found.code) for found in drift(one, other, allowed=[])] == [(name, code)]
    (there,), (back,) = drift(one, other, allowed=[]), drift(other, one, allowed=[])
    assert (back.name, back.code, back.saved, back.now) == (name, code, there.now, there.saved)
    problem = there.problem(__file__)
    assert (problem.code, problem.field) == (code, name)
    assert f"--allow {name}" in problem.fix


@pytest.mark.parametrize("without", ["config", "hash"])
def test_a_file_that_one_side_has_no_hash_of_is_told_by_its_path(without):
    """The option is not set, or the lock was written before files had hashes."""
    other = changed(("plugins.2.files", GONE), ("config.optimizer.table", None if without == "config" else "moved"))
    for one, two in ((make_lock(), other), (other, make_lock())):
        assert [found.name for found in drift(one, two, allowed=[])] == ["optimizer.table"]


@pytest.mark.parametrize(("path", "value", "name", "code", "section"), DRIFTS)
def test_allowing_it_by_name_or_section_accepts_it_and_no_other_name_does(path, value, name, code, section):
    other = changed((path, value))
    assert drift(make_lock(), other, allowed=[name]) == []
    assert drift(make_lock(), other, allowed=["unrelated", section]) == []
    wrong = [name[:-1], f"{name}x", f"{name}.", f"{name}.more", section[:-1], "", "*", name.upper()]
    assert [found.name for found in drift(make_lock(), other, allowed=wrong)] == [name]


def test_allowing_one_of_many_accepts_that_one_alone():
    picked = {name: (path, value) for path, value, name, _, _ in DRIFTS if name not in ("adapter", "model.layers")}
    everything = changed(*picked.values())
    found = [one.name for one in drift(make_lock(), everything, allowed=[])]
    assert sorted(found) == sorted(picked)
    for name in picked:
        kept = [one.name for one in drift(make_lock(), everything, allowed=[name])]
        assert kept == [one for one in found if one != name and not one.startswith(f"{name}.")]
    assert drift(make_lock(), everything, allowed=list(picked)) == []


@pytest.mark.parametrize(("path", "value"), SAME)
def test_what_changes_no_number_is_no_difference(path, value):
    other = changed((path, value))
    assert other != make_lock()
    assert drift(make_lock(), other, allowed=[]) == []
    assert drift(other, make_lock(), allowed=[]) == []


@pytest.mark.parametrize("adapter", [None, {"name": "lora", "rank": 8}])
def test_other_start_weights_are_a_difference_and_named_with_their_places(adapter):
    one = changed(("config.adapter", adapter))
    other = changed(("config.adapter", adapter), ("model.weights", "x" * 64), ("config.model.path", "other"))
    (found,) = drift(one, other, allowed=[])
    assert (found.name, found.saved, found.now) == ("model.weights", f"{'w' * 12} (base)", f"{'x' * 12} (other)")


def test_a_lock_that_cannot_be_read_is_none(tmp_path):
    file = tmp_path / "run.lock.json"
    assert read_lock(file) is None
    for content in (b"", b"{}", b"[1]", b"\xff", b'{"format": 99}', b'{"format": "2"}', b"[" * 10**5, b'{"format": 2'):
        file.write_bytes(content)
        assert read_lock(file) is None
    file.write_text(json.dumps(make_lock(), indent=2))
    assert read_lock(file) == make_lock()


def test_a_lock_written_as_json_and_read_again_is_the_same(tmp_path):
    lock = changed(("config.model.layers", [1, 2.5, None]), ("config.optimizer.name", "naïve 雪"))
    through_json = json.loads(json.dumps(lock))
    write_state(tmp_path, "lock", lock)
    through_state = read_state(tmp_path, "lock")
    for other in (through_json, through_state):
        assert other == lock
        assert drift(lock, other, allowed=[]) == []
        assert drift(other, lock, allowed=[]) == []
        assert lock_digest(other) == lock_digest(lock)
        assert check_start(Start(path=tmp_path, step=1, lock=other), lock, allowed=[]) == []


def test_the_digest_of_a_lock_is_that_of_its_values_in_any_order():
    def backwards(value):
        return {key: backwards(value[key]) for key in reversed(value)} if isinstance(value, dict) else value

    lock = make_lock()
    assert list(backwards(lock)) != list(lock)
    assert lock_digest(backwards(lock)) == lock_digest(lock)
    assert lock_digest({**lock, "config": {**lock["config"], "model": (1, 2)}}) == lock_digest(
        {**lock, "config": {**lock["config"], "model": [1, 2]}}
    )
    others = [lock_digest(changed((path, value))) for path, value, *_ in DRIFTS]
    assert len({lock_digest(lock), *others}) == len(others) + 1


def test_config_differences_name_the_deepest_key_in_order_and_leave_out_what_is_ignored():
    saved = {"b": {"x": 1, "y": {"z": 1}}, "a": [1, {"k": 1}], "c": None, "d": 1}
    now = {"b": {"x": 2, "y": {"z": 2}}, "a": [1, {"k": 2}], "e": None, "d": {"x": 1}}
    found = config_differences(saved, now, ignored=())
    assert [(one.name, one.saved, one.now) for one in found] == [
        ("a.1.k", 1, 2),
        ("b.x", 1, 2),
        ("b.y.z", 1, 2),
        ("d", 1, {"x": 1}),
    ]
    assert {one.code for one in found} == {"BC043"}
    assert [one.name for one in config_differences(saved, now, ignored=("b.y", "a"))] == ["b.x", "d"]
    assert config_differences(saved, now, ignored=("a", "b", "d")) == []
    assert config_differences(saved, saved, ignored=()) == []


def start_of(lock, tmp_path):
    return Start(path=tmp_path / "checkpoint-4", step=4, lock=lock)


def shaped(micro, accumulated, processes):
    train = ("config.train.micro_batch_size", micro), ("config.train.gradient_accumulation_steps", accumulated)
    return changed(*train, ("world_size", processes))


SHAPES = list(itertools.product((1, 2, 3, 6), (1, 2, 4), (1, 2)))


@pytest.mark.parametrize("shape", SHAPES)
def test_another_batch_is_refused_and_an_equal_product_is_told(tmp_path, shape):
    product = shape[0] * shape[1] * shape[2]
    lock = shaped(*shape)
    assert batch_size(lock) == product
    start = start_of(make_lock(), tmp_path)  # 2 × 3 × 2 = 12
    if product == 12:
        (told,) = check_start(start, lock, allowed=[])
        assert "2 × 3 accumulated × 2 processes = 12" in told
        assert f"{shape[0]} × {shape[1]} accumulated × {shape[2]} processes = 12" in told
        assert "not bit for bit" in told
        return
    with pytest.raises(RunError) as caught:
        check_start(start, lock, allowed=[])
    (problem,) = caught.value.problems
    assert (problem.code, problem.field, problem.place) == ("BC048", "batch", str(start.path))
    assert "= 12 " in problem.problem
    assert f"= {product} " in problem.problem
    assert "product 12" in problem.fix
    assert "--allow batch" in problem.fix


def test_the_same_batch_is_taken_up_without_a_word(tmp_path):
    assert check_start(start_of(make_lock(), tmp_path), make_lock(), allowed=[]) == []


def test_an_allowed_batch_is_told_and_not_called_equal(tmp_path):
    (told,) = check_start(start_of(make_lock(), tmp_path), shaped(2, 3, 1), allowed=["batch"])
    assert "= 12" in told
    assert "= 6" in told
    assert "agree" not in told


def test_all_that_differs_is_told_at_once(tmp_path):
    lock = changed(*((path, value) for path, value, name, _, _ in DRIFTS if name in ("train.seed", "tokenizer")))
    lock["world_size"] = 1
    with pytest.raises(RunError) as caught:
        check_start(start_of(make_lock(), tmp_path), lock, allowed=[])
    assert [(one.code, one.field) for one in caught.value.problems] == [
        ("BC043", "train.seed"),
        ("BC050", "tokenizer"),
        ("BC048", "batch"),
    ]
    allowed = ["train", "tokenizer", "batch"]
    assert len(check_start(start_of(make_lock(), tmp_path), lock, allowed=allowed)) == 1
