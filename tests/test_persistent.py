"""NVIDIA's pickles of whole networks: read in both protocols, and whatever they hold besides, nothing of it runs."""

import dataclasses
import functools
import struct
import zipfile
from typing import Any

import numpy as np
import pytest
from budget import MEBIBYTES, SECONDS, Meter
from hostile import refused
from weights import MAGIC, PROTOCOL, dumps

import convert_weights
from convert_weights import inert_pickle
from convert_weights.inert_pickle import Call, Name, Reference
from convert_weights.torch_file import read_contents

pytestmark = pytest.mark.once

QUICK, LITTLE = 1.0, 200  # seconds and MiB that a damaged file may take


convert = functools.partial(convert_weights.convert, probe=False)  # no network here is trained


@dataclasses.dataclass
class Raw:
    """Instructions as they are."""

    code: bytes


def emit(value: Any, protocol: int = 4) -> bytes:
    """Write what a pickle says as a pickle again, without a memo."""

    def many(values):
        return b"".join(emit(one, protocol) for one in values)

    match value:
        case Raw():
            return value.code
        case bool() | None:
            return {None: b"N", True: b"\x88", False: b"\x89"}[value]
        case int():
            return b"I%d\n" % value
        case float():
            return b"G" + struct.pack(">d", value)
        case str():
            text = value.encode("utf-8", "surrogatepass")
            return b"X" + struct.pack("<I", len(text)) + text
        case bytes() if protocol == 2:
            return emit(Call(Name("_codecs", "encode"), (value.decode("latin-1"), "latin1")), 2)
        case bytes():
            return b"B" + struct.pack("<I", len(value)) + value
        case list():
            return b"](" + many(value) + b"e"
        case tuple():
            return b"(" + many(value) + b"t"
        case dict():
            return b"}(" + many(part for pair in value.items() for part in pair) + b"u"
        case Name():
            return b"c" + f"{value.module}\n{value.name}\n".encode()
        case Reference():
            return emit(value.pid, protocol) + b"Q"
        case Call():
            made = emit(value.function, protocol) + emit(value.args, protocol) + b"R"
            made += b"(" + many(part for pair in value.items.items() for part in pair) + b"u" if value.items else b""
            return made + (emit(value.state, protocol) + b"b" if value.state is not None else b"")
    raise TypeError(type(value))


def stream(numbers, *, magic=MAGIC, little=True, count=None, more=b"", kind="FloatStorage", keys=("0",)):
    """Write one storage as torch.save did before 1.6."""
    size = numbers.size if count is None else count
    one = Reference(("storage", Name("torch", kind), "0", "cpu", numbers.size))
    parts = [dumps(magic), dumps(PROTOCOL), dumps({"little_endian": little})]
    parts += [b"\x80\x02" + emit(part) + b"." for part in (one, list(keys))]
    return b"".join(parts) + struct.pack("<q", size) + numbers.tobytes() + more


def tensor(data, shape=(4,)):
    """Call for a parameter whose storage is in bytes."""
    strides = tuple(int(np.prod(shape[i + 1 :])) for i in range(len(shape)))
    source = Call(Name("torch.storage", "_load_from_bytes"), (data,)) if isinstance(data, bytes | str) else data
    made = Call(Name("torch._utils", "_rebuild_tensor_v2"), (source, 0, shape, strides, False, None))
    return Call(Name("torch._utils", "_rebuild_parameter"), (made, True, None))


def module(class_name="EDMPrecond", parameters=None, children=None, source="", **state):
    """Call for a persistent object."""
    state = {"_parameters": parameters or {}, "_buffers": {}, "_modules": children or {}, **state}
    record = {"type": "class", "version": 6, "module_src": source, "class_name": class_name, "state": state}
    return Call(Name("torch_utils.persistence", "_reconstruct_persistent_obj"), (record,))


def container(children):
    """Call for a ModuleDict."""
    return Call(Name("torch.nn.modules.container", "ModuleDict"), (), {"_modules": children})


def write(path, tree, protocol=4):
    path.write_bytes(bytes([0x80, protocol]) + emit(tree, protocol) + b".")
    return path


FOUR = np.arange(4, dtype=np.float32)


def small(data=None, **more):
    data = stream(FOUR) if data is None else data
    return {"ema": module(children={"model": module("SongUNet", {"w": tensor(data)})}, **more)}


def test_the_names_are_those_of_the_state_dict_and_attributes_say_the_rest(golden):
    found = read_contents(golden("nvidia_ncsnpp.pkl"))
    assert len(found.tensors) == 149
    assert all(name.startswith("ema.model.") for name in found.tensors)
    assert {"ema.model.enc.16x16_conv.weight", "ema.model.map_noise.freqs"} <= found.tensors.keys()
    about = {"class_name": "EDMPrecond", "precond": "edm", "img_resolution": 16, "sigma_data": 0.5}
    assert about.items() <= found.about.items()
    assert not found.objects


def test_the_older_protocol_says_the_same(golden, tmp_path):
    with golden("nvidia_ncsnpp.pkl").open("rb") as file:
        tree = inert_pickle.load(file).tree
    again = read_contents(write(tmp_path / "w.pkl", tree, 2))
    for name, array in read_contents(golden("nvidia_ncsnpp.pkl")).tensors.items():
        np.testing.assert_array_equal(again.tensors[name], array)


def test_containers_buffers_and_numbers_of_numpy_are_read(tmp_path):
    half = stream(FOUR.astype(np.float16), kind="HalfStorage")
    scalar = Call(
        Name("numpy.core.multiarray", "scalar"), (Call(Name("numpy", "dtype"), ("f8",)), struct.pack("<d", 2))
    )
    hidden = Call(Name("__builtin__", "set"), (["hidden"],))
    inner = module(
        "SongUNet",
        {"w": tensor(half, (2, 2)), "none": None},
        {"enc": container({"a": module("Linear", {"b": tensor(stream(FOUR))}), "empty": None})},
        _buffers={"hidden": tensor(stream(FOUR)), "u": tensor(stream(FOUR))},
        _non_persistent_buffers_set=hidden,
    )
    tree = {"ema": module("VPPrecond", {}, {"model": inner}, beta_d=scalar, M=1000), "loss_fn": None}
    found = read_contents(write(tmp_path / "w.pkl", tree, 2))
    assert list(found.tensors) == ["ema.model.w", "ema.model.u", "ema.model.enc.a.b"]
    assert found.tensors["ema.model.w"].dtype == np.float16 and found.tensors["ema.model.w"].shape == (2, 2)
    np.testing.assert_array_equal(found.tensors["ema.model.enc.a.b"], FOUR)
    assert found.about == {"class_name": "VPPrecond", "precond": "vp", "beta_d": 2.0, "M": 1000}


def test_nothing_is_executed(tmp_path):
    planted = tmp_path / "planted"
    source = f"open({str(planted)!r}, 'w')"
    call = Call(Name("os", "system"), (f"touch {planted}",))
    tree = {**small(source=source, sigma_data=0.5, other=call), "loss_fn": call, "augment_pipe": module("Pipe")}
    found = read_contents(write(tmp_path / "w.pkl", tree))
    assert list(found.tensors) == ["ema.model.w"]
    assert set(found.objects) == {"loss_fn", "augment_pipe"}
    assert not planted.exists()
    assert read_contents(write(tmp_path / "w.pkl", {"ema": module(parameters={"w": call})})).objects == {
        "ema.w": "wants to call os.system"
    }
    assert not planted.exists()


def test_the_averaged_network_is_taken_and_a_whole_module_in_a_zip_too(tmp_path):
    tree = {"net": small()["ema"], **small(sigma_data=0.25)}
    found = read_contents(write(tmp_path / "w.pkl", tree))
    assert (list(found.tensors), found.about["sigma_data"]) == (["ema.model.w"], 0.25)
    assert "net" in found.objects
    reference = Reference(("storage", Name("torch", "FloatStorage"), "0", "cpu", 4))
    state = {"net": module("VEPrecond", {}, {"model": module("SongUNet", {"w": tensor(reference)})}), "optimizer": {}}
    with zipfile.ZipFile(tmp_path / "state.pt", "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x04" + emit(state) + b".")
        archive.writestr("a/data/0", FOUR.tobytes())
    found = read_contents(tmp_path / "state.pt")
    np.testing.assert_array_equal(found.tensors["net.model.w"], FOUR)
    assert found.about["precond"] == "ve"


def test_what_the_file_says_needs_no_flag_and_bears_no_other(golden, tmp_path):
    with pytest.raises(ValueError, match=r"says that its preconditioning is edm \(EDMPrecond\); leave --precond out"):
        convert(golden("nvidia_ncsnpp.pkl"), tmp_path / "prior", precond="vp")


def record(**changes):
    made = module(parameters={"w": tensor(stream(FOUR))})
    made.args[0].update(changes)
    return {"ema": made}


def shaped(shape, strides):
    source = Call(Name("torch.storage", "_load_from_bytes"), (stream(FOUR),))
    return {
        "ema": module(parameters={"w": Call(Name("torch._utils", "_rebuild_tensor_v2"), (source, 0, shape, strides))})
    }


DAMAGED = {
    "EDM2": (record(class_name="Precond"), r"an EDM2 network \(class Precond\).*not supported"),
    "StyleGAN": (record(class_name="Generator"), "a network of class Generator; known are EDMPrecond"),
    "another type": (record(type="func"), "without a class or a state"),
    "a class that is no text": (record(class_name=7), "without a class or a state"),
    "no state": (record(state=[1]), "without a class or a state"),
    "no record": ({"ema": Call(Name("torch_utils.persistence", "_reconstruct_persistent_obj"), ())}, "without a class"),
    "no tensors": ({"ema": module()}, None),
    "other magic": (small(stream(FOUR, magic=7)), "not in the form of torch.save"),
    "big-endian": (small(stream(FOUR, little=False)), "big-endian"),
    "too few": (small(stream(FOUR, count=3)), "a storage of 4 numbers holds 16 bytes"),
    "more behind": (small(stream(FOUR, more=b"x")), "a storage of 4 numbers holds 17 bytes"),
    "cut": (small(stream(FOUR)[:-1]), "a storage of 4 numbers holds 15 bytes"),
    "cut early": (small(stream(FOUR)[:60]), "damaged"),
    "other keys": (small(stream(FOUR, keys=("1",))), "storage of its numbers is damaged"),
    "unknown numbers": (small(stream(FOUR, kind="os.system")), "its numbers are in a torch.os.system"),
    "no bytes": (small(FOUR.tobytes()), "damaged"),
    "text that is none": ({"ema": module(parameters={"w": tensor("日本")})}, "damaged"),
    "outside": (shaped((5,), (1,)), "reaches outside of its storage"),
    "repeated": (shaped((1 << 20, 1 << 20), (0, 0)), "larger than its storage"),
    "twice": (small(_buffers={"model": tensor(stream(FOUR))}), "holds model twice in one module"),
    "a damaged number": (small(sigma_data=Call(Name("numpy.core.multiarray", "scalar"), (7, b""))), "something else"),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_damaged_networks_are_refused_in_one_line(tmp_path, damage):
    tree, message = DAMAGED[damage]
    path = write(tmp_path / "w.pkl", tree)
    if message is None:
        assert not read_contents(path).tensors
        path = tmp_path / "w.pkl"
        refused(lambda path: convert(path, tmp_path / "prior"), path, "no dictionary of tensors")
    else:
        refused(read_contents, path, message)


ONE = stream(FOUR[:1])
LONG = b"\x80\x04" + b"N0" * 100_000 + dumps(MAGIC)[2:]


def nested(depth):
    made: Any = module("Linear")
    for _ in range(depth):
        made = Raw(emit(module("Linear", children={"a": made})))
    return emit({"ema": module(children={"a": made})})


def circular():
    """Write a module whose child has the state of its parent."""
    inner, outer = module("Linear"), module()
    inner.args[0]["state"] = Raw(b"h\1")
    outer.args[0]["state"] = Raw(b"}q\1(" + emit("_modules") + emit({"a": inner}) + b"u")
    return emit({"ema": outer})


def doubled(depth):
    """Write modules that hold each other twice."""
    made: Any = module("Linear", {"w": tensor(ONE, (1,))})
    for i in range(depth):
        twice = {"a": Raw(emit(made) + b"q%c" % i), "b": Raw(b"h%c" % i)}
        made = Raw(emit(module(children=twice)))
    return emit({"ema": made})


def shared(count):
    """Write many calls for the same text."""
    text = stream(np.zeros(1 << 18, np.float32)).decode("latin-1")
    data = Call(Name("_codecs", "encode"), (Raw(b"h\0"), "latin1"))
    source = Call(Name("torch.storage", "_load_from_bytes"), (data,))
    parameters = {str(i): tensor(source, (1,)) for i in range(count)}
    return emit(text) + b"q\0000" + emit({"ema": module(parameters=parameters)})


BOMBS = {
    "deep modules": (nested(60), "32 deep or in a circle"),
    "a module in itself": (circular(), "32 deep or in a circle"),
    "modules that hold each other twice": (doubled(30), "more entries, or longer names"),
    "many storages": (
        emit({"ema": module(parameters={str(i): tensor(ONE, (1,)) for i in range(5000)})}),
        "more than 2000 storages in pickles",
    ),
    "2000 storages": (
        emit({"ema": module(parameters={str(i): tensor(ONE, (1,)) for i in range(2000)})}),
        None,
    ),
    "a storage of many instructions": (emit(small(LONG)), "more than 64 instructions"),
    "text in many calls": (shared(2000), None),
    "a source of 20 MB": (emit(small(source="x" * (20 << 20))), None),
    "a list for a set": (emit(small(_non_persistent_buffers_set=[[["a"]] * 10_000])), None),
}


@pytest.fixture(scope="module")
def meter():
    found = Meter()
    yield found
    found.close()


@pytest.mark.parametrize("damage", DAMAGED)
def test_damage_costs_nothing(tmp_path, meter, damage):
    cost = meter.measure("budget:convert", write(tmp_path / "w.pkl", DAMAGED[damage][0]))
    assert cost.raised == "ValueError", cost
    assert cost.seconds < QUICK
    assert cost.mebibytes < LITTLE


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_network_takes_neither_time_nor_memory(tmp_path, meter, bomb):
    tree, message = BOMBS[bomb]
    (tmp_path / "w.pkl").write_bytes(b"\x80\x04" + tree + b".")
    cost = meter.measure("convert_weights.torch_file:read_contents", tmp_path / "w.pkl")
    assert cost.seconds < SECONDS
    assert cost.mebibytes < MEBIBYTES
    if message is None:
        assert not cost.raised, cost.message
    else:
        assert cost.raised == "ValueError" and message in cost.message
        assert len(cost.message.splitlines()) == 1
