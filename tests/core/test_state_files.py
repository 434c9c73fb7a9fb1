"""State is read back from disk as it was written, or refused by name."""

import collections
import json
import math
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bumblecore_core.errors import PluginError
from bumblecore_core.toolkit.state_files import MARKS, copied, read_state, write_state

DTYPES = "float64 float32 float16 bfloat16 float8_e4m3fn float8_e5m2 complex64 bool int8 int16 int32 int64 uint8 uint16"
DTYPES = tuple(getattr(torch, name) for name in f"{DTYPES} uint32 uint64".split())
SHAPES = ((), (0,), (1,), (5,), (2, 3), (3, 0, 2), (2, 2, 3))
FORMS = ("plain", "transposed", "every other", "expanded", "part of a larger one", "requires_grad", "parameter")


@st.composite
def tensors(draw):
    """Random bits of a dtype, laid out in memory in one of several ways."""
    dtype, shape = draw(st.sampled_from(DTYPES)), draw(st.sampled_from(SHAPES))
    size = math.prod(shape) * dtype.itemsize
    raw = torch.frombuffer(bytearray(draw(st.binary(min_size=size, max_size=size)) + b"\0"), dtype=torch.uint8)[:size]
    if dtype == torch.bool:
        raw = raw % 2
    plain = raw.clone().view(dtype).reshape(shape)
    form = draw(st.sampled_from(FORMS))
    if form == "transposed":
        return plain.t() if plain.ndim == 2 else plain.movedim(0, -1) if plain.ndim else plain
    if form == "every other" and plain.ndim:
        return torch.cat([plain, plain])[::2]
    if form == "expanded":
        return plain.expand(2, *shape)
    if form == "part of a larger one":
        return torch.stack([plain, plain])[1]
    if form in ("requires_grad", "parameter") and dtype.is_floating_point:
        return torch.nn.Parameter(plain) if form == "parameter" else plain.requires_grad_()
    return plain


texts = st.text(max_size=4) | st.sampled_from(
    [*MARKS, "a.b", "a", "b", "0", "1", "key", "", "naïve 雪 🐝", "\0", "\ud800"]
)
plain_values = (
    st.none() | st.booleans() | st.integers() | st.integers(-(2**300), 2**300) | st.floats() | st.just(-0.0) | texts
)
# keys that hold tensors end up as names in the file, in which no lone surrogate can be written
keys = st.text(max_size=3) | st.sampled_from([*MARKS, "a.b", "a", "b", "0", "1", "key", ""])
odd_keys = keys | st.integers(-2, 12) | st.tuples(st.integers(0, 2), keys) | st.floats(allow_nan=False) | st.none()
trees = st.recursive(
    plain_values | tensors(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(keys, inner, max_size=4)
        | st.dictionaries(odd_keys, inner, max_size=4)
    ),
    max_leaves=12,
)


def bits(tensor):
    """(dtype, shape, bytes) of a tensor."""
    flat = tensor.detach().resolve_conj().resolve_neg().clone(memory_format=torch.contiguous_format).reshape(-1)
    return tensor.dtype, tuple(tensor.shape), flat.view(torch.uint8).numpy().tobytes()


def assert_same(left, right, path="tree"):
    """Equal types and bits all through. One not-a-number is as good as another: text holds neither sign nor payload."""
    if isinstance(left, torch.Tensor):
        assert isinstance(right, torch.Tensor), path
        assert bits(left) == bits(right), path
        return
    assert type(left) is type(right), path
    if isinstance(left, float):
        assert (math.isnan(left) and math.isnan(right)) or left.hex() == right.hex(), path
    elif isinstance(left, list | tuple):
        assert len(left) == len(right), path
        for at, (one, other) in enumerate(zip(left, right, strict=True)):
            assert_same(one, other, f"{path}.{at}")
    elif isinstance(left, dict):
        assert_same(list(left), list(right), f"{path}.keys")
        for one, other in zip(left, right, strict=True):
            assert_same(left[one], right[other], f"{path}.{one}")
    else:
        assert left == right, path


def again(tree, directory):
    """`tree` written and read; the JSON file is strict JSON in UTF-8."""
    write_state(directory, "state", tree)

    def refuse(literal):
        raise AssertionError(f"{literal} is no JSON")

    json.loads((directory / "state.json").read_bytes().decode("utf-8"), parse_constant=refuse)
    return read_state(directory, "state")


@settings(max_examples=100, deadline=None)
@given(trees)
def test_a_tree_is_read_back_with_equal_types_and_bits(tree):
    with tempfile.TemporaryDirectory() as directory:
        assert_same(tree, again(tree, Path(directory)))


@settings(max_examples=60, deadline=None)
@given(st.lists(tensors(), min_size=2, max_size=5), st.data())
def test_tensors_under_confusable_names_stay_apart(values, data):
    names = st.sampled_from(["a", "a.b", "b", "0", "0.0", "a.0", 0, 1, "1", "key", (0, "a"), "(0, 'a')"])
    tree = {}
    for value in values:
        tree[data.draw(names)] = data.draw(st.sampled_from([value, {"b": value}, [value], {0: value, "0": -1}]))
    with tempfile.TemporaryDirectory() as directory:
        assert_same(tree, again(tree, Path(directory)))


@pytest.mark.parametrize(
    "tree",
    [
        {"a": {"b": torch.zeros(1)}, "a.b": torch.ones(1)},
        {1: torch.zeros(1), "1": torch.ones(1)},
        {"a": [torch.zeros(1)], "a.0": torch.ones(1)},
    ],
    ids=["a dot in a key", "a number and its text", "an index and its text"],
)
def test_no_tensor_takes_the_place_of_another(tree, tmp_path):
    assert_same(tree, again(tree, tmp_path))


def test_every_special_float_keeps_its_bits(tmp_path):
    floats = [math.nan, math.inf, -math.inf, -0.0, 0.0, 5e-324, 1.7976931348623157e308, 0.1]
    assert_same(floats, again(floats, tmp_path))
    assert_same(torch.tensor(floats), again(torch.tensor(floats), tmp_path))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 0.1])
def test_a_float_of_numpy_is_read_back_as_the_same_number(value, tmp_path):
    assert_same([value], again([np.float64(value)], tmp_path))


def test_tensors_that_share_memory_are_read_back_apart(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    tree = {"all": base, "same": base, "turned": base.t(), "row": base[1], "column": base[:, 2], "wide": base[:1].T}
    found = again(tree, tmp_path)
    assert_same(tree, found)
    assert len({tensor.untyped_storage().data_ptr() for tensor in found.values()}) == len(tree)
    found["all"].zero_()
    assert_same(base[1], found["row"])


def test_a_conjugate_view_is_saved_as_the_numbers_it_shows(tmp_path):
    tensor = torch.tensor([1 + 2j, 3 - 4j], dtype=torch.complex64)
    tree = [tensor.conj(), tensor.conj().imag]
    assert_same(tree, again(tree, tmp_path))


def test_what_is_read_wants_no_gradient_and_can_be_changed_in_place(tmp_path):
    found = again({"weight": torch.nn.Parameter(torch.ones(2))}, tmp_path)["weight"]
    assert type(found) is torch.Tensor
    assert not found.requires_grad
    found.add_(1)
    assert_same(torch.ones(2), read_state(tmp_path, "state")["weight"])


def test_a_tree_without_tensors_is_one_file(tmp_path):
    write_state(tmp_path, "state", {"step": 3})
    assert [path.name for path in tmp_path.iterdir()] == ["state.json"]


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ({1, 2}, "set"),
        (np.zeros(2), "ndarray"),
        (np.int64(1), "int64"),
        (object(), "object"),
        (b"bytes", "bytes"),
        (1j, "complex"),
        (Path("a"), "Path"),
        (len, "function"),
        (torch.eye(2).to_sparse(), "Tensor"),
        (torch.ones(2, dtype=torch.complex128), "Tensor"),
        (torch.ones(2, device="meta"), "Tensor"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("where", ["outer.3.deep", "outer.3", "outer"])
def test_what_cannot_be_saved_is_refused_with_its_place(value, kind, where, tmp_path):
    inside = {"outer.3.deep": [0, 1, 2, {"deep": value}], "outer.3": (0, 1, 2, value), "outer": value}[where]
    with pytest.raises(PluginError) as caught:
        write_state(tmp_path, "state", {"fine": torch.ones(1), "outer": inside})
    (problem,) = caught.value.problems
    assert problem.code == "BC055"
    assert problem.field == f"state.{where}"
    assert kind in problem.problem
    assert f"state.{where}" in problem.problem
    assert problem.fix


@pytest.mark.parametrize(
    "key", [torch.ones(1), (1, torch.ones(1)), frozenset({1}), b"k"], ids=lambda key: str(type(key))
)
def test_a_key_that_cannot_be_read_back_is_refused(key, tmp_path):
    with pytest.raises(PluginError) as caught:
        write_state(tmp_path, "state", {"outer": {key: 1}})
    assert caught.value.problems[0].code == "BC055"
    assert caught.value.problems[0].field.startswith("state.outer")


@settings(max_examples=80, deadline=None)
@given(trees)
def test_a_copy_equals_and_shares_nothing_that_can_change(tree):
    copy = copied(tree)
    assert_same(tree, copy)
    before = copied(copy)
    change(tree)
    assert_same(before, copy)


@torch.no_grad()
def change(tree):
    """Changes every tensor and every container of `tree` in place."""
    if isinstance(tree, torch.Tensor):
        tree = tree if tree.is_contiguous() else tree[:1] if tree.numel() and 0 not in tree.stride() else tree[:0]
        tree.copy_(torch.logical_not(tree) if tree.dtype == torch.bool else torch.zeros_like(tree))
        return
    for item in list(tree.values()) if isinstance(tree, dict) else tree if isinstance(tree, list | tuple) else ():
        change(item)
    if isinstance(tree, dict | list):
        tree.clear()


def test_a_copy_is_on_the_cpu_and_keeps_no_gradient():
    tensor = torch.ones(2, requires_grad=True)
    copy = copied([tensor])[0]
    assert copy.device.type == "cpu"
    assert not copy.requires_grad
    assert copy.data_ptr() != tensor.data_ptr()


def test_a_copy_of_a_named_tuple_shares_no_tensor():
    pair = collections.namedtuple("pair", "left right")(torch.ones(2), 1)
    copy = copied({"pair": pair})
    pair.left.zero_()
    assert_same(torch.ones(2), copy["pair"][0])
