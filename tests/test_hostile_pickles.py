"""Pickles that change what is alive, or take all time and memory: nothing changes, and they are refused at once."""

import collections
import copy
import struct
import sys
import zipfile
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from budget import MEBIBYTES, SECONDS, Meter
from hostile import refused, survived
from weights import MAGIC, PROTOCOL, Tensor, dumps, write_zip

from convert_weights import inert_pickle, records, torch_file
from convert_weights.torch_file import read_contents
from ddiff_jax import card

pytestmark = pytest.mark.once

READ = "convert_weights.torch_file:read_contents"


def plain(path, tree):
    path.write_bytes(b"\x80\x04" + tree)


def zipped(path, tree):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x04" + tree)


def legacy(path, tree):
    start = b"".join(dumps(part) for part in (MAGIC, PROTOCOL, {"little_endian": True}))
    path.write_bytes(start + b"\x80\x04" + tree + dumps([]))


CONTAINERS = {"plain": plain, "zip": zipped, "legacy": legacy}

PLANT = b"}(S'__defaults__'\n(K\x01tS'__code__'\nNS'planted'\nK\x01S'itemsize'\nJ\0\0\0\x01u"
DTYPE_STATE = b"(K\x03S'>'\nNNNJ\0\0\0\x01K\0K\0t"
CHANGES = {
    "BUILD on a type of numbers": b"cml_dtypes\nbfloat16\n" + PLANT + b"b.",
    "BUILD on a dtype of it": b"cnumpy\ndtype\n(cml_dtypes\nbfloat16\nI00\nI01\ntR" + DTYPE_STATE + b"b.",
    "BUILD on a plain dtype": b"cnumpy\ndtype\n(S'f4'\nI00\nI01\ntR" + DTYPE_STATE + b"b.",
    "BUILD on numpy.float32": b"cnumpy\nfloat32\n" + PLANT + b"b.",
    "BUILD on a function": b"cconvert_weights.records\ncontents\n" + PLANT + b"b.",
    "BUILD on a method": b"cconvert_weights.inert_pickle\n_Machine.get\n" + PLANT + b"b.",
    "BUILD with slots": b"cconvert_weights.records\nstorage\nN" + PLANT + b"\x86b.",
    "BUILD on a token of PyTorch": b"ctorch\nFloatStorage\n" + PLANT + b"b.",
    "BUILD on a rebuilder": b"ctorch._utils\n_rebuild_tensor_v2\n" + PLANT + b"b.",
    "BUILD on a module": b"csys\nmodules\n" + PLANT + b"b.",
    "SETITEMS on a table": b"cconvert_weights.records\nDTYPES\n(S'FloatStorage'\nNu.",
    "SETITEM on the modules": b"csys\nmodules\nS'numpy'\nNs.",
    "APPENDS on a tuple": b"cddiff_jax.card\nDTYPES\n(S'planted'\ne.",
    "APPEND on a path": b"csys\npath\nS'/planted'\na.",
    "ADDITEMS on a set": b"cconvert_weights.schedules\nBUFFERS\n(S'planted'\n\x90.",
    "REDUCE of setattr": b"cbuiltins\nsetattr\n(cml_dtypes\nbfloat16\nS'planted'\nK\x01tR.",
    "REDUCE of setitem": b"coperator\nsetitem\n(csys\nmodules\nS'numpy'\nNtR.",
    "NEWOBJ and BUILD": b"ccollections\nOrderedDict\n)\x81" + PLANT + b"b.",
    "NEWOBJ_EX": b"cbuiltins\ntype\n(S'planted'\n)}t}\x92.",
    "an array with a foreign dtype": (
        b"cnumpy._core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\0tC\x01btR(K\x01(K\x01tcml_dtypes\nbfloat16\nI00\n"
        b"C\x02abtb."
    ),
    "partial with state": b"cfunctools\npartial\n(cos\nsystem\ntR(cos\nsystem\n(S'true'\ntNNtb.",
    "a shared list that grows": b"]q\x00(h\x00h\x00e}(S'w'\nh\x00u.",
}


def alive():
    """Sum up what a pickle could have changed."""
    brain: Any = np.asarray([1.5, -2, 0.1], ml_dtypes.bfloat16)
    functions = (records.contents, records.storage, inert_pickle.load, inert_pickle._Machine.get, torch_file._numbers)
    types = (ml_dtypes.bfloat16, np.float32, np.dtype, collections.OrderedDict)
    return (
        np.add(brain, np.multiply(brain, brain)).tobytes(),
        *((str(np.dtype(t)), np.dtype(t).itemsize, np.dtype(t).alignment) for t in (ml_dtypes.bfloat16, "f4")),
        *((f.__defaults__, f.__kwdefaults__, f.__code__) for f in functions),
        *(dict(vars(t)) for t in types),
        dict(records.DTYPES),
        card.DTYPES,
        list(sys.path),
        sys.modules["numpy"] is np,
        len(inert_pickle._ACTIONS),
    )


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("change", CHANGES)
def test_nothing_alive_is_changed(tmp_path, change, container):
    before = alive()
    CONTAINERS[container](tmp_path / "w.pt", CHANGES[change])
    survived(read_contents, tmp_path / "w.pt")
    assert alive() == before


def doubled(start, depth):
    """Make lists that hold each other twice: 2^depth places in a few bytes."""
    return start + b"".join(b"q%c0](h%ch%ce" % (i, i, i) for i in range(depth))


NUMBERS = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\1\0\0\0" + b"0X\3\0\0\0cpuK\x01tQ"
TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n"
LONG = b"\x8b" + struct.pack("<i", 100_000) + b"\x7f" * 100_000
MANY = 100_000
BOMBS = {
    "lists that hold each other twice": b"}S'a'\n" + doubled(b"]", 60) + b"s.",
    "dictionaries that do": b"}" + b"".join(b"q%c0}(S'a'\nh%cS'b'\nh%cu" % (i, i, i) for i in range(60)) + b".",
    "ordered ones": b"ccollections\nOrderedDict\nq\xff)R"
    + b"".join(b"q%c0h\xff)R(S'a'\nh%cS'b'\nh%cu" % (i, i, i) for i in range(60))
    + b".",
    "a dictionary that holds itself": b"}q\0S'a'\nh\0s.",
    "two that hold each other": b"}q\0}q\1S'a'\nh\0sS'b'\nh\1s.",
    "a storage named by such lists": b"}S'w'\n"
    + TENSOR
    + b"((S'storage'\nctorch\nFloatStorage\n"
    + doubled(b"]", 60)
    + b"S'cpu'\nK\x01tQK\0(K\x01t(K\x01ttRs.",
    "a persistent name of such lists": b"}S'w'\n" + TENSOR + b"(" + doubled(b"]", 60) + b"QK\0(K\x01t(K\x01ttRs.",
    "a number as a key, again and again": b"}q\0" + LONG + b"q\1" + b"0h\0h\1Ns" * MANY + b"0h\0.",
    "a shape of a million axes": b"}("
    + b"("
    + b"K\x01" * 300_000
    + b"tq\0"
    + b"".join(b"0S'%d'\n" % i + TENSOR + b"(" + NUMBERS + b"K\0h\0h\0tR" for i in range(10))
    + b"u.",
    "keywords copied again and again": b"}(S'a'\ncos\nsystem\n("
    + b"N" * 1000
    + b"tq\0}q\1\x92"
    + b"0cos\nsystem\nh\0h\1\x92" * 20_000
    + b"u.",
    "a name of a megabyte": b"}(S'a'\nc" + b"a" * (1 << 20) + b"\nb\nu.",
    "such a name on the stack": b"}(S'a'\nX\0\0\x10\0" + b"a" * (1 << 20) + b"S'b'\n\x93u.",
    "more instructions than needed": b"]" * 600_000 + b".",
    "empty dictionaries": b"(" + b"}" * 500_001 + b"l.",
    "marks": b"(" * 600_000 + b".",
    "more names than needed": b"}(" + b"".join(b"S'%d'\ncos\nsystem\n" % i for i in range(110_000)) + b"u.",
    "long names": b"}(S'" + b"a" * 1100 + b"'\ncos\nsystem\nu.",
    "a memo without end": b"".join(b"Nr" + struct.pack("<I", 2**30 + i) + b"0" for i in range(100)) + b"N.",
    "bytes of a whole disk": b"\x8e" + struct.pack("<Q", 2**40) + b"abc.",
    "text of a whole disk": b"\x8d" + struct.pack("<Q", 2**62) + b"abc.",
    "a number of a million digits": b"I" + b"9" * 1_000_000 + b"\n.",
    "a number of 2 GiB": b"\x8b" + struct.pack("<i", 2**31 - 1) + b"abc.",
    "deep lists": b"]" * 200_000 + b"a" * 199_999 + b".",
    "deep dictionaries": b"}S'a'\n" * 100_000 + b"}" + b"s" * 100_000 + b".",
    "deep calls": b"cos\nsystem\nq\0" + b")R0h\0" * 3 + b"h\0(" * 100_000 + b"NtR" * 100_000 + b".",
    "wrapped parameters": b"}S'a'\nN" + b"q\1ctorch._utils\n_rebuild_parameter\n(h\1tR" * 50_000 + b"s.",
    "pairs that are none": b"ccollections\nOrderedDict\n(]("
    + b"N" * 500_000
    + b"etRq\0}("
    + b"".join(b"S'%d'\nh\0" % i for i in range(1000))
    + b"u.",
    "an array in many copies": b"X\0\0\x10\0"
    + b"a" * (1 << 20)
    + b"q\0}("
    + b"".join(
        b"S'%d'\ncnumpy._core.numeric\n_frombuffer\n(h\0cnumpy\ndtype\n(S'u1'\ntR(J\0\0\x10\0tS'C'\ntR" % i
        for i in range(2000)
    )
    + b"u.",
    "no end": b"}" * 10,
    "nothing": b"",
    "a stack that is empty": b"0.",
    "a mark that is missing": b"t.",
    "an odd dictionary": b"(NNNd.",
    "a memory of nothing": b"h\x07.",
    "no text as a name": b"NN\x93.",
    "a buffer from outside": b"\x97.",
    "an extension": b"\x82\x01.",
    "an instruction that is none": b"\xff.",
}
# Nothing in them could be a tensor, so that nobody looks at them.
ACCEPTED = ("a memo without end", "lists that hold each other twice", "keywords copied again and again", "deep lists")


@pytest.fixture(scope="module")
def meter():
    found = Meter()
    yield found
    found.close()


@pytest.mark.parametrize("container", ["plain", "zip"])
@pytest.mark.parametrize("bomb", BOMBS)
def test_a_pickle_takes_neither_time_nor_memory(tmp_path, meter, bomb, container):
    CONTAINERS[container](tmp_path / "w.pt", BOMBS[bomb])
    cost = meter.measure(READ, tmp_path / "w.pt")
    assert cost.seconds < SECONDS
    assert cost.mebibytes < MEBIBYTES
    if bomb not in ACCEPTED:
        assert cost.raised in ("ValueError", "Unusable")
        assert "w.pt cannot be read as weights" in cost.message
        assert len(cost.message.splitlines()) == 1
        assert len(cost.message) < 1000
    else:
        assert not cost.raised


def test_an_index_of_storages_that_is_no_list_of_names(tmp_path, meter):
    start = b"".join(dumps(part) for part in (MAGIC, PROTOCOL, {"little_endian": True}, {}))
    (tmp_path / "w.pt").write_bytes(start + b"\x80\x04](" + doubled(b"]", 60) + b"e.")
    cost = meter.measure(READ, tmp_path / "w.pt")
    assert (cost.raised, cost.seconds < SECONDS, cost.mebibytes < MEBIBYTES) == ("ValueError", True, True)


@pytest.mark.parametrize("digits", [5, 12, 18, 40, 5000])
def test_numbers_in_names_are_no_lengths(tmp_path, meter, digits):
    one = np.ones((4, 4), np.float32)
    names = ["time_embed.0.weight", "input_blocks.0.0.weight", "middle_block.0.in_layers.0.weight"]
    names += [f"output_blocks.{'9' * digits}.0.in_layers.0.weight", f"input_blocks.{'9' * digits}.0.x"]
    if digits < 900:
        write_zip(tmp_path / "w.pt", {name: Tensor("0", one) for name in names}, {"0": one})
    else:
        (tmp_path / "w.pt").write_bytes(dumps({name: Tensor("0", one) for name in names}))
    cost = meter.measure("budget:convert", tmp_path / "w.pt")
    assert cost.raised == "ValueError"
    assert cost.seconds < SECONDS
    assert cost.mebibytes < MEBIBYTES


def test_many_sets_of_tensors_are_not_compared(tmp_path, meter):
    one = np.ones(1, np.float32)
    tree = {f"{i}.time_embed.0.weight": Tensor("0", one) for i in range(15_000)}
    write_zip(tmp_path / "w.pt", tree, {"0": one})
    cost = meter.measure("budget:convert", tmp_path / "w.pt")
    assert "15000 sets of tensors; up to" in cost.message
    assert cost.seconds < SECONDS


@pytest.mark.parametrize("count", [10, 1000])
def test_tensors_may_share_their_numbers_within_limits(tmp_path, count):
    numbers = np.ones(1 << 18, np.float32)
    write_zip(tmp_path / "w.pt", {str(i): Tensor("0", numbers) for i in range(count)}, {"0": numbers})
    if count == 10:  # tied weights
        assert len(read_contents(tmp_path / "w.pt").tensors) == count
    else:
        refused(read_contents, tmp_path / "w.pt", "by sharing their numbers")


def test_a_tensor_that_repeats_one_number_is_refused(tmp_path):
    one = np.ones(1, np.float32)
    tensor = Tensor("0", one, shape=(1 << 15, 1 << 14), strides=(0, 0))
    write_zip(tmp_path / "w.pt", {"w": tensor}, {"0": one})
    assert (tmp_path / "w.pt").stat().st_size < 600
    refused(read_contents, tmp_path / "w.pt", "larger than its storage")


def compressed(path, method=zipfile.ZIP_DEFLATED, size=1 << 28):
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("a/data.pkl", dumps({"w": Tensor("0", np.empty(size // 4, np.float32))}))
        archive.writestr("a/data/0", bytes(size))


def overlapping(path):
    """List one member of a megabyte five hundred times."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data/0", bytes(1 << 20))
        one = np.empty(1 << 18, np.float32)
        archive.writestr("a/data.pkl", dumps({str(i): Tensor(str(i), one) for i in range(500)}))
        for i in range(1, 500):
            info = copy.copy(archive.filelist[0])
            info.filename = info.orig_filename = f"a/data/{i}"
            archive.filelist.append(info)
            archive.NameToInfo[info.filename] = info


def crowded(path):
    """List more members than a file of weights has."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", dumps({}))
        info = archive.filelist[0]
        archive.filelist += [info] * 90_000


def flagged(path, place, value):
    write_zip(path, {}, {"0": np.ones(4, np.float32)})
    data = bytearray(path.read_bytes())
    start = data.index(b"PK\1\2")
    data[start + place : start + place + len(value)] = value
    path.write_bytes(bytes(data))


ARCHIVES = {
    "deflated": compressed,
    "bzip2": lambda path: compressed(path, zipfile.ZIP_BZIP2),
    "lzma": lambda path: compressed(path, zipfile.ZIP_LZMA, 1 << 26),
    "overlapping": overlapping,
    "crowded": crowded,
    "encrypted": lambda path: flagged(path, 8, b"\1\0"),
    "another method": lambda path: flagged(path, 10, b"\x63\0"),
    "too large": lambda path: flagged(path, 24, b"\xff\xff\xff\x7f"),
    "stored as larger": lambda path: flagged(path, 20, b"\xff\xff\xff\x7f"),
    "outside": lambda path: flagged(path, 42, b"\xff\xff\xff\x7f"),
    "64 bits without them": lambda path: flagged(path, 20, b"\xff" * 8),
    "no pickle": lambda path: zipfile.ZipFile(path, "w").writestr("a/data/0", b""),
    "table alone": lambda path: path.write_bytes(b"PK\5\6" + bytes(18)),
    "table of 4 GiB": lambda path: path.write_bytes(b"PK\5\6" + bytes(8) + b"\xff" * 8 + bytes(2)),
    "half a table": lambda path: path.write_bytes(b"PK\3\4" + bytes(30) + b"PK\5\6" + bytes(9)),
}


@pytest.mark.parametrize("archive", ARCHIVES)
def test_archives_are_what_they_claim_to_be(tmp_path, meter, archive):
    ARCHIVES[archive](tmp_path / "w.pt")
    cost = meter.measure(READ, tmp_path / "w.pt")
    assert "w.pt cannot be read as weights" in cost.message
    assert cost.raised == "ValueError"
    assert cost.seconds < SECONDS
    assert cost.mebibytes < MEBIBYTES


def test_as_many_instructions_as_large_checkpoints_have_are_read(tmp_path):
    one = np.ones(1, np.float32)
    tree = {f"layer.{i}.weight": Tensor("0", one) for i in range(10_000)}
    write_zip(tmp_path / "w.pt", {"model": tree, "optimizer": {"state": {i: i for i in range(50_000)}}}, {"0": one})
    assert len(read_contents(tmp_path / "w.pt").tensors) == 10_000
