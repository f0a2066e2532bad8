"""Pickles are read, whatever they ask for, without doing any of it."""

import argparse
import builtins
import collections
import datetime
import io
import os
import pickle
import sys
import time

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from weights import Global, Tensor, dumps, write_zip

from convert_weights import inert_pickle, records
from convert_weights.torch_file import read_contents, read_tensors

pytestmark = pytest.mark.once

QUICKLY = 60  # seconds, on any machine; what these files make of a naive reader takes longer than anybody waits

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=4)
    ),
    max_leaves=12,
)


def load(pickled):
    return inert_pickle.load(io.BytesIO(pickled)).tree


@settings(max_examples=60, deadline=None)
@given(PLAIN, st.integers(0, pickle.HIGHEST_PROTOCOL))
def test_plain_values_come_back_as_they_were(value, protocol):
    shared = [value, {"again": value}]
    assert load(pickle.dumps(shared, protocol)) == shared


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_bytes_and_sets_come_back(protocol):
    assert load(pickle.dumps({"raw": b"\0\xff", "long": b"a" * 300}, protocol)) == {
        "raw": b"\0\xff",
        "long": b"a" * 300,
    }
    assert load(pickle.dumps(bytearray(b"ab"), 5)) == b"ab"
    if protocol > 3:
        assert load(pickle.dumps([{1}, frozenset({2})], protocol)) == [[1], [2]]


def test_the_file_is_left_behind_the_pickle():
    file = io.BytesIO(pickle.dumps(1) + pickle.dumps("two") + b"rest")
    assert [inert_pickle.load(file).tree for _ in range(2)] == [1, "two"]
    assert file.read() == b"rest"


# Every way in which a pickle can call something: `os.system("touch proof")`, by all instructions that there are.
TOUCH = b"cos\nsystem\n"
CALLS = {
    "reduce": TOUCH + b"(S'touch proof'\ntR.",
    "inst": b"(S'touch proof'\nios\nsystem\n.",
    "obj": b"(" + TOUCH + b"S'touch proof'\no.",
    "newobj": b"\x80\x02" + TOUCH + b"(S'touch proof'\nt\x81.",
    "newobj_ex": b"\x80\x04" + TOUCH + b"(S'touch proof'\nt}\x92.",
    "stack_global": b"\x80\x04\x8c\x02os\x8c\x06system\x93S'touch proof'\n\x85R.",
    "setstate": b"\x80\x02" + b"cbuiltins\nobject\n)\x81}S'__setstate__'\n" + TOUCH + b"sbS'touch proof'\nb.",
    "called twice": b"\x80\x02" + TOUCH + b"S'touch proof'\n\x85RS'touch proof'\n\x85R.",
    "extension": b"\x80\x02\x82\x01.",
    "key": b"\x80\x02}" + TOUCH + b"S'touch proof'\n\x85RK\x01s.",
}


@pytest.mark.parametrize("how", CALLS)
def test_no_call_is_made(tmp_path, monkeypatch, how):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "system", lambda command: pytest.fail("called"))
    (tmp_path / "bad.pkl").write_bytes(b"\x80\x04" + CALLS[how])
    if how == "extension":
        with pytest.raises(pickle.UnpicklingError, match="unknown instruction EXT1"):
            load(CALLS[how])
    else:
        load(CALLS[how])
    with pytest.raises(ValueError, match=r"cannot be read as weights"):
        read_tensors(tmp_path / "bad.pkl")
    assert [path.name for path in tmp_path.iterdir()] == ["bad.pkl"]


def test_no_name_is_looked_up(tmp_path, monkeypatch):
    (tmp_path / "side_effect.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    record = load(b"cside_effect\nthing\n.")
    assert isinstance(record, inert_pickle.Name)
    assert str(record) == "side_effect.thing"
    assert "side_effect" not in sys.modules
    assert isinstance(load(pickle.dumps(np.float32)), inert_pickle.Name)  # a name, and not the type


LIVE = {
    "a type of numbers": (ml_dtypes.bfloat16, "ml_dtypes", "bfloat16"),
    "a function of this reader": (records.contents, "convert_weights.records", "contents"),
    "another": (inert_pickle.load, "convert_weights.inert_pickle", "load"),
    "numpy": (np.dtype, "numpy", "dtype"),
    "a container": (collections.OrderedDict, "collections", "OrderedDict"),
    "builtins": (builtins, "builtins", "__dict__"),
}
STATES = {
    "attributes": b"}S'__defaults__'\n(K\x01K\x02tsS'planted'\nK\x01s",
    "slots": b"N}S'__defaults__'\n(K\x01K\x02tsS'planted'\nK\x01s\x86",
}


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("target", LIVE)
def test_no_live_object_is_changed(tmp_path, target, state):
    thing, module, name = LIVE[target]
    before = dict(vars(thing)), getattr(thing, "__defaults__", None)
    reference = f"c{module}\n{name}\n".encode()
    for pickled in (
        b"\x80\x02" + reference + STATES[state] + b"b.",
        b"\x80\x02" + reference + b")R" + STATES[state] + b"b.",
        b"\x80\x02" + reference + b"(S'planted'\nK\x01u.",
        b"\x80\x02" + reference + b"(K\x01e.",
    ):
        (tmp_path / "bad.pkl").write_bytes(pickled)
        with pytest.raises(ValueError, match="cannot be read as weights"):
            read_tensors(tmp_path / "bad.pkl")
    assert (dict(vars(thing)), getattr(thing, "__defaults__", None)) == before


def test_the_objects_of_training_codes_are_left_out(tmp_path):
    weight = np.ones((2, 2), np.float32)
    tree = {
        "net": {"w": Tensor("0", weight)},
        "args": argparse.Namespace(lr=0.1),
        "when": datetime.date(2026, 1, 1),
        "dtype": Global("torch", "float32"),
        "lr": np.float64(1e-4),
        "history": [1.0, 2.0],
        "deque": collections.deque([1]),
        "defaults": collections.defaultdict(list, {"inner": {"v": Tensor("0", weight)}}),
    }
    write_zip(tmp_path / "w.pt", tree, {"0": weight})
    found = read_contents(tmp_path / "w.pt")
    assert list(found.tensors) == ["net.w", "defaults.inner.v"]
    assert found.objects == {
        "args": "wants to call argparse.Namespace",
        "when": "wants to call datetime.date",
        "dtype": "wants to call torch.float32",
        "deque": "wants to call collections.deque",
    }


def test_readers_of_python_2_wrote_ordered_dictionaries_as_pairs():
    tree = load(b"ccollections\nOrderedDict\n((lp0\n(lp1\nS'a'\nacnumpy\nndarray\naatR.")
    assert records.contents(tree, lambda where: pytest.fail("no numbers")).objects == {
        "a": "wants to call numpy.ndarray"
    }


BOMBS = {
    "a key that takes for ever to hash": b"\x80\x02}" + b")" + b"2\x86" * 60 + b"K\x01s.",
    "dictionaries that hold each other twice": (
        b"\x80\x02}" + b"".join(b"q%c0}(S'a'\nh%cS'b'\nh%cu" % (i, i, i) for i in range(40)) + b"."
    ),
    "pairs that take for ever to hash": (
        b"\x80\x02ccollections\nOrderedDict\n](](" + b")" + b"2\x86" * 60 + b"K\x01ee\x85R."
    ),
    "a tuple without end": b"\x80\x02]q\x00h\x00a.",
    "a dictionary without end": b"\x80\x02}q\x00S'a'\nh\x00s.",
    "deep lists": b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b".",
    "deep dictionaries": b"\x80\x02" + b"}S'a'\n" * 100_000 + b"}" + b"s" * 100_000 + b".",
    "a memory of a whole disk": b"\x80\x04\x8e" + (1 << 62).to_bytes(8, "little") + b"abc.",
    "a number of a million digits": b"I" + b"9" * 1_000_000 + b"\n.",
    "long names": b"\x80\x02}X\x00\x00\x10\x00" + b"a" * (1 << 20) + b"}S'b'\ncos\nsystem\nss.",
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_no_file_takes_for_ever(tmp_path, bomb):
    (tmp_path / "bad.pkl").write_bytes(b"\x80\x02" + BOMBS[bomb])
    start = time.monotonic()
    with pytest.raises(ValueError, match=r"bad\.pkl cannot be read as weights"):
        read_tensors(tmp_path / "bad.pkl")
    assert time.monotonic() - start < QUICKLY


@pytest.mark.parametrize("tree", [{"a\n\x1b[2J": np.ones(2)}, {"a": Global("os", "system\r")}])
def test_names_do_not_write_to_the_terminal(tmp_path, tree):
    (tmp_path / "bad.pkl").write_bytes(dumps(tree))
    with pytest.raises(ValueError, match="characters that cannot be printed"):
        read_tensors(tmp_path / "bad.pkl")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shape": (1 << 20, 1 << 20), "strides": (0, 0)}, "larger than its storage"),
        ({"shape": (4,), "strides": (1,)}, "outside of its storage"),
        ({"offset": 3}, "outside of its storage"),
        ({"offset": -1}, "outside of its storage"),
        ({"shape": (-1,)}, "no row of whole numbers"),
        ({"strides": (-1,)}, "no row of whole numbers"),
        ({"shape": (2.0,)}, "no row of whole numbers"),
        ({"shape": (1, 3)}, "as many strides"),
    ],
)
def test_views_beyond_their_numbers_are_refused(tmp_path, changes, message):
    few = np.arange(3, dtype=np.float32)
    tensor = Tensor("0", few)
    for name, value in changes.items():
        setattr(tensor, name, value)
    write_zip(tmp_path / "bad.pt", {"w": tensor}, {"0": few})
    with pytest.raises(ValueError, match=message):
        read_tensors(tmp_path / "bad.pt")


def test_a_storage_of_another_size_than_stated_is_refused(tmp_path):
    few = np.arange(3, dtype=np.float32)
    write_zip(tmp_path / "bad.pt", {"w": Tensor("0", few)}, {"0": few[:2]})
    with pytest.raises(ValueError, match="a storage of 3 numbers holds 2"):
        read_tensors(tmp_path / "bad.pt")


def test_arrays_of_another_size_than_stated_are_refused(tmp_path):
    pickled = pickle.dumps({"w": np.arange(3, dtype=np.float32)}, 2)
    assert pickled.count(b"K\x03\x85") == 1  # the shape
    (tmp_path / "w.pkl").write_bytes(pickled.replace(b"K\x03\x85", b"K\x04\x85"))
    with pytest.raises(ValueError, match=r"an array of shape \(4,\) with 12 bytes"):
        read_tensors(tmp_path / "w.pkl")
