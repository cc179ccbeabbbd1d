"""Pickles are programs; ours run nothing. A dozen and more hostile ones are tried, with a witness that would tell."""

from __future__ import annotations

import collections
import contextlib
import io
import json
import os
import pickle
import pickletools
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from limited import GIGABYTE, run_python

from tap_tokenizer import read_pickle


def written(path: Path, content: Any, protocol: int = 4) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content, protocol=protocol))
    return path


# --- what must be readable --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_and_containers_of_every_protocol(tmp_path: Path, protocol: int) -> None:
    content = {
        "float": np.arange(6, dtype=np.float32).reshape(2, 3),
        "fortran": np.asfortranarray(np.arange(6, dtype=np.float64).reshape(2, 3)),
        "half": np.ones(3, np.float16),
        "big-endian": np.arange(3, dtype=">i4"),
        "scalar": np.float32(2.5),
        "empty": np.zeros((0, 4), np.float32),
        "flags": np.array([True, False]),
        "nested": [(1, "two", 3.0, None, True), b"bytes"],
        "ordered": collections.OrderedDict(a=np.int64(7)),
        "sets": [{1, 2}, frozenset({3})],
    }
    got = read_pickle(written(tmp_path / "x.pkl", content, protocol))
    assert list(got) == list(content)
    for name in ("float", "fortran", "half", "big-endian", "empty", "flags"):
        np.testing.assert_array_equal(got[name], content[name])
        assert got[name].dtype == content[name].dtype
    assert (got["scalar"], got["nested"], got["ordered"]) == (2.5, content["nested"], {"a": 7})
    assert got["sets"] == content["sets"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int64])
def test_torch_tensors(tmp_path: Path, dtype: torch.dtype) -> None:
    whole = torch.arange(24).reshape(4, 6).to(dtype)
    got = read_pickle(written(tmp_path / "x.pkl", {"whole": whole, "view": whole[1:3, ::2], "turned": whole.T}))
    assert torch.equal(got["whole"], whole)
    assert torch.equal(got["view"], whole[1:3, ::2])
    assert torch.equal(got["turned"], whole.T)


def test_files_of_numpy_1_name_other_modules(tmp_path: Path) -> None:
    data = pickle.dumps(np.arange(3.0), protocol=2)
    data = data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    np.testing.assert_array_equal(read_pickle(written(tmp_path / "x.pkl", data)), np.arange(3.0))


# --- what must not run ------------------------------------------------------------------------------------------------


class Call:
    """Pickles as a call of `function` on `arguments`."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.reduced = (function, arguments)

    def __reduce__(self) -> Any:
        return self.reduced


class WithState:
    """Pickles as an object of `kind` whose state is set."""

    def __init__(self, kind: Any, arguments: tuple[Any, ...], state: Any) -> None:
        self.reduced = (kind, arguments, state)

    def __reduce__(self) -> Any:
        return self.reduced


def raw(module: str, name: str, *strings: str) -> bytes:
    """A hand-written pickle that calls module.name on strings."""
    body = b"".join(b"V" + s.encode() + b"\n" for s in strings)
    return b"c" + module.encode() + b"\n" + name.encode() + b"\n(" + body + b"tR."


def hostile(witness: str) -> dict[str, Any]:
    """Pickles that would create the file `witness`, or worse, in any reader that trusts them."""
    touch = f"open({witness!r}, 'w').close()"
    dtype = np.dtype("f4")
    evil_dtype = WithState(np.dtype, ("O8", False, True), (3, "|", None, None, None, -1, -1, 63))
    return {
        "os.system": Call(os.system, f"touch {witness}"),
        "builtins.eval": Call(eval, touch),
        "builtins.exec": Call(exec, touch),
        "builtins.open": Call(open, witness, "w"),
        "builtins.getattr": raw("builtins", "getattr", "x", "y"),
        "builtins.__import__": raw("builtins", "__import__", "os"),
        "subprocess.Popen": raw("subprocess", "Popen", f"touch {witness}"),
        "nested in a list": [np.zeros(2), {"deep": [Call(os.system, f"touch {witness}")]}],
        "as a dictionary's key": {Call(os.system, f"touch {witness}"): 1},
        "dotted name": b"\x80\x04\x8c\x05numpy\x8c\x11ndarray.__class__\x93.",
        "numpy's own file reader": raw("numpy", "load", witness),
        "torch.load": raw("torch", "load", witness),
        "an evil torch storage": Call(
            torch.storage._load_from_bytes, pickle.dumps(Call(os.system, f"touch {witness}"))
        ),
        "a torch archive with code": Call(torch.storage._load_from_bytes, _torch_archive(witness)),
        "an array of objects": np.array([Call(os.system, f"touch {witness}")], dtype=object),
        "an object dtype": evil_dtype,
        "a structured array": np.zeros(2, dtype=[("a", "f4")]),
        "a call of ndarray": Call(np.ndarray, (10**12,)),
        "a persistent id": b"\x80\x04\x8c\x04evilQ.",
        "an extension code": b"\x80\x02\x82\x01.",
        "state on a function": WithState(collections.OrderedDict, (), {"__class__": 1, "keys": Call(eval, touch)}),
        "codecs beyond latin1": raw("_codecs", "encode", "abc", "zlib"),
        "a bare function": b"cos\nsystem\n.",
        "a bare allowed type": b"cnumpy\ndtype\n.",
        "more shape than bytes": WithState(
            np.zeros(0).__reduce__()[0], (np.ndarray, (0,), b"b"), (1, (10**9,), dtype, False, b"\0" * 4)
        ),
        "a tensor beyond its storage": Call(
            torch._utils._rebuild_tensor_v2,
            torch.zeros(2).storage(),
            0,
            (1000,),
            (1,),
            False,
            collections.OrderedDict(),
        ),
    }


def _torch_archive(witness: str) -> bytes:
    buffer = io.BytesIO()
    torch.save({"x": Call(os.system, f"touch {witness}")}, buffer)
    return buffer.getvalue()


HOSTILE_NAMES = sorted(hostile("nowhere"))


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_hostile_pickles_are_refused_and_run_nothing(tmp_path: Path, name: str) -> None:
    witness = tmp_path / "witness"
    path = written(tmp_path / "x.pkl", hostile(str(witness))[name])
    with pytest.raises((pickle.UnpicklingError, ValueError)) as refusal:
        read_pickle(path)
    assert not witness.exists()
    assert str(path) in str(refusal.value)


def test_the_refusal_names_what_was_asked_for(tmp_path: Path) -> None:
    path = written(tmp_path / "x.pkl", Call(os.system, "true"))
    with pytest.raises(pickle.UnpicklingError, match=r"refused to load (posix|nt)\.system: expected arrays"):
        read_pickle(path)


def test_the_hostile_pickles_are_well_formed(tmp_path: Path) -> None:
    """They are refused for what they ask, not because they are broken: each can be disassembled to its end."""
    for name, content in hostile(str(tmp_path / "witness")).items():
        data = content if isinstance(content, bytes) else pickle.dumps(content)
        assert list(pickletools.genops(data))[-1][0].name == "STOP", name


# --- damaged files ----------------------------------------------------------------------------------------------------


def test_truncated_files_are_refused(tmp_path: Path) -> None:
    whole = pickle.dumps({"a": np.arange(1000.0), "b": [1, 2, 3], "c": torch.zeros(5)})
    for length in [0, 1, 2, 10, 100, len(whole) // 2, len(whole) - 20, len(whole) - 1]:
        with pytest.raises(pickle.UnpicklingError):
            read_pickle(written(tmp_path / "x.pkl", whole[:length]))


def test_other_files_are_refused(tmp_path: Path) -> None:
    for content in (
        b"<html>404 not found</html>",
        b"PK\x03\x04zip",
        b"version https://git-lfs.github.com/spec/v1\n",
        b"\0" * 64,
    ):
        with pytest.raises(pickle.UnpicklingError, match=str(tmp_path)):
            read_pickle(written(tmp_path / "x.pkl", content))


def test_random_damage_never_escapes(tmp_path: Path) -> None:
    """Whatever bytes are flipped, the reader returns or raises its own error."""
    whole = pickle.dumps({"a": np.arange(20.0), "b": ["x", 2], "c": torch.zeros(5)})
    random = np.random.RandomState(0)
    for _ in range(300):
        damaged = bytearray(whole)
        for position in random.randint(len(whole), size=random.randint(1, 4)):
            damaged[position] = random.randint(256)
        with contextlib.suppress(pickle.UnpicklingError):
            read_pickle(written(tmp_path / "x.pkl", bytes(damaged)))


def test_a_claim_of_huge_size_takes_no_memory(tmp_path: Path) -> None:
    claim = b"\x80\x04\x8e" + struct.pack("<Q", 2**60) + b"abc."
    with pytest.raises(pickle.UnpicklingError):
        read_pickle(written(tmp_path / "x.pkl", claim))


def test_deep_nesting_is_refused(tmp_path: Path) -> None:
    with pytest.raises(pickle.UnpicklingError):
        read_pickle(written(tmp_path / "x.pkl", b"]" * 100_000 + b"a" * 99_999 + b"."))
    selfish: list[Any] = []
    selfish.append(selfish)
    with pytest.raises(pickle.UnpicklingError):
        read_pickle(written(tmp_path / "y.pkl", selfish))


def _nested(depth: int) -> bytes:
    """Code of a tuple in a tuple in a tuple …"""
    return b")" + b"\x85" * depth


def _doubled(depth: int) -> bytes:
    """Code of a tuple that holds the one before twice: whoever walks all ways in it never ends."""
    return b")" + b"2\x86" * depth


def _text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def _array_state(shape: bytes, dtype: bytes = b"cnumpy\ndtype\n" + _text("f4") + b"\x85R") -> bytes:
    """An array whose state is (1, shape, dtype, False, eight bytes)."""
    empty = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R"
    return b"\x80\x03" + empty + b"(K\x01" + shape + dtype + b"\x89C\x08abcdefgh" + b"tb."


def _torch_zip(megabytes: int) -> bytes:
    """A compressed archive of zeros, as torch would write it uncompressed."""
    buffer, packed = io.BytesIO(), io.BytesIO()
    torch.save(torch.zeros(megabytes << 18), buffer)
    with zipfile.ZipFile(buffer) as archive, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as other:
        for name in archive.namelist():
            other.writestr(name, archive.read(name))
    return packed.getvalue()


def _large_files() -> dict[str, bytes]:
    """Small files of which a reader that trusts them makes gigabytes, or works on for ever."""
    start = b"\x80\x04"
    storage = pickle.dumps(torch.zeros(4).storage(), protocol=2)[2:-1]
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\x00%s%s\x89ccollections\nOrderedDict\n)RtR"
    colliding = b"".join(b"\x8a\x0a" + ((1 << 61) - 1 << 10 | i * 0).to_bytes(10, "little") + b"N" for i in range(300))
    int8 = b"cnumpy.core.multiarray\nscalar\ncnumpy\ndtype\n" + _text("i1") + b"\x85RC\x01\x7f\x86R"
    return {
        "a memo of 2**28": b"\x80\x02Nr" + struct.pack("<I", 1 << 28) + b".",
        "a memo of 2**32 - 1": b"\x80\x02Nr" + b"\xff" * 4 + b".",
        "a doubled tuple as key": start + b"}" + _doubled(60) + b"Ns.",
        "a doubled tuple as member": start + b"\x8f(" + _doubled(60) + b"\x90.",
        "a doubled tuple in a frozenset": start + b"(" + _doubled(60) + b"\x91.",
        "a doubled tuple as persistent id": start + _doubled(60) + b"Q.",
        "a doubled tuple as type": start + b"cnumpy\ndtype\n" + _doubled(60) + b"\x85R.",
        "a doubled tuple as encoding": start + b"c_codecs\nencode\n" + _text("x") + _doubled(60) + b"\x86R.",
        "a doubled tuple as text": start + b"c_codecs\nencode\n" + _doubled(60) + _text("latin1") + b"\x86R.",
        "a doubled tuple as shape": _array_state(_doubled(60)),
        "a doubled tuple as byte order": start + b"cnumpy\ndtype\n" + _text("f4") + b"\x85R(" + _doubled(60) * 2 + b"tb.",
        "a doubled tuple as a name": start + _doubled(60) + _text("x") + b"\x93.",
        "300,000 tuples as key": start + b"}" + _nested(300_000) + b"Ns.",
        "300,000 tuples as persistent id": start + _nested(300_000) + b"Q.",
        "300,000 lists": start + b"]" * 300_000 + b"a" * 299_999 + b".",
        "300,000 tuples": start + _nested(300_000) + b".",
        "integers that collide": start + b"}(" + colliding + b"u.",
        "a long number": start + b"\x8b" + struct.pack("<i", 1_000_000) + b"\x7f" * 1_000_000 + b".",
        "a long number in digits": b"L" + b"9" * 1_000_000 + b"L\n.",
        "sizes of numpy's": _array_state(b"(" + int8 * 4 + b"t"),
        "a shape of booleans": _array_state(b"\x88\x88\x86"),
        "a shape that is too long": _array_state(b"(" + b"K\x01" * 70 + b"K\x02t"),
        "a negative shape": _array_state(b"J" + struct.pack("<i", -2) + b"J" + struct.pack("<i", -1) + b"\x86"),
        "a shape of 2**70": _array_state(b"\x8a\x09" + (1 << 70).to_bytes(9, "little") + b"K\x00\x86"),
        "a type of 5,000 ones": start + b"cnumpy\ndtype\n" + _text("1," * 5000) + b"\x85R.",
        "a type with a shape": start + b"cnumpy\ndtype\n" + _text("(100000,100000)f4") + b"\x85R.",
        "a type of many bytes": start + b"cnumpy\ndtype\n" + _text("f99") + b"\x85R.",
        "state on a tensor": start + tensor % (b"K\x04\x85", b"K\x01\x85") + b"(K\x01K\x02tb.",
        "an expanded view": start + tensor % (b"J" + struct.pack("<i", 1 << 30) + b"\x85", b"K\x00\x85") + b".",
        "a view of many views": start + tensor % (b"(" + b"K\x04" * 16 + b"t", b"(" + b"K\x00" * 16 + b"t") + b".",
        "sizes of booleans": start + tensor % (b"\x88\x85", b"K\x01\x85") + b".",
        "a compressed torch archive": pickle.dumps(Call(torch.storage._load_from_bytes, _torch_zip(64))),
        "bytes that are copied": start + b"B" + struct.pack("<I", 1 << 20) + bytes(1 << 20) + b"\x940("
            + (b"cnumpy.core.numeric\n_frombuffer\n(h\x00cnumpy\ndtype\n" + _text("u1") + b"\x85R"
               + b"J" + struct.pack("<i", 1 << 20) + b"\x85" + _text("C") + b"tR") * 4000 + b"l.",
        "text that is encoded": start + b"X" + struct.pack("<I", 1 << 20) + b"a" * (1 << 20) + b"\x940("
            + (b"c_codecs\nencode\nh\x00\x85R") * 4000 + b"l.",
        "views that are copied": start + tensor.replace(b"%s", b"K\x04\x85", 1) % b"K\x01\x85" + b".",
        "a frame of 2**62": start + b"\x95" + struct.pack("<Q", 1 << 62) + b"N.",
        "bytes of 2**62": start + b"\x8e" + struct.pack("<Q", 1 << 62) + b"N.",
        "a byte array of 2**40": b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b"N.",
        "a million sets": start + b"(" + b"\x8f" * 1_000_000 + b"l.",
        "three million instructions": start + b"(" + b"N" * 3_000_000 + b"l.",
        "a list in itself, twice": start + b"]\x94(h\x00h\x00e.",
        "a dictionary in itself": start + b"}\x94N h\x00s.".replace(b" ", b""),
        "buffers from outside": b"\x80\x05\x97\x98.",
        "an instance": b"(cos\nsystem\no.",
    }  # fmt: skip


READ_ALL = """
import json, pickle, resource, sys, time, warnings
from pathlib import Path
import numpy as np
from tap_tokenizer import read_pickle

for path in sorted(Path(sys.argv[1]).glob("*.pkl")):
    start = time.process_time()
    try:
        said = f"read: {type(read_pickle(path)).__name__}"
    except pickle.UnpicklingError as error:
        said = str(error)
    print(json.dumps([path.stem, time.process_time() - start, said]), flush=True)
"""


def test_no_file_makes_more_than_its_size_can_need(tmp_path: Path) -> None:
    """Each of them ends within seconds and in little memory: it is read, or refused in a sentence."""
    files = list(_large_files().items())
    for number, (_, content) in enumerate(files):
        (tmp_path / f"{number:03}.pkl").write_bytes(content)
    done = run_python(READ_ALL, tmp_path, cpu_seconds=100, memory=2 * GIGABYTE)
    said = [json.loads(line) for line in done.output.splitlines()]
    assert done.code == 0, f"{files[len(said)][0]}: {done.code} {done.errors[-500:]}"
    assert done.peak_memory < 2 * GIGABYTE
    harmless = {"a memo of 2**28", "a memo of 2**32 - 1", "views that are copied", "a frame of 2**62"}
    for (name, _), (_, seconds, words) in zip(files, said, strict=True):
        assert seconds < 10, name
        assert words.startswith("read: ") if name in harmless else ".pkl: " in words, (name, words)


MUTATE = """
import pickle, sys
import numpy as np, torch
from pathlib import Path
from tap_tokenizer import read_pickle

path, seed, count = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
content = {"a": np.arange(20.0), "b": ["x", 2, (3.5, None, True)], "c": torch.zeros(5), "d": {1, 2}, "e": b"bytes"}
whole = [pickle.dumps(content, protocol) for protocol in range(6)]
opcodes = b"()0 1 2].NIJKLMQRSTUVXabcdefghijlopqrstu}" + bytes([*range(0x80, 0x83), *range(0x85, 0x97)])
random = np.random.RandomState(seed)
read = 0
for number in range(count):
    if number % 4 == 3:
        data = bytes(random.choice(list(opcodes), random.randint(1, 60)).astype(np.uint8)) + b"."
    else:
        damaged = bytearray(whole[random.randint(6)])
        for _ in range(random.randint(1, 6)):
            place = random.randint(len(damaged))
            kind = random.randint(4)
            if kind == 0:
                damaged[place] = random.randint(256)
            elif kind == 1:
                damaged[place] = opcodes[random.randint(len(opcodes))]
            elif kind == 2:
                del damaged[place : place + random.randint(1, 9)]
            else:
                damaged[place:place] = damaged[random.randint(len(damaged)) :][: random.randint(1, 30)]
        data = bytes(damaged)
    path.write_bytes(data)
    try:
        repr(read_pickle(path))
        read += 1
    except pickle.UnpicklingError:
        pass
print(read)
"""


def test_six_thousand_damaged_pickles_are_read_or_refused(tmp_path: Path) -> None:
    """Bytes changed, left out and doubled, and instructions in any order: no other error, no crash, no gigabytes."""
    done = run_python(MUTATE, tmp_path / "x.pkl", 0, 6000, cpu_seconds=60, memory=2 * GIGABYTE)
    assert done.code == 0, done.errors[-1500:]
    assert 0 < int(done.output) < 6000
    assert done.peak_memory < GIGABYTE


def test_the_metadata_of_a_state_dict_is_left_out(tmp_path: Path) -> None:
    state = torch.nn.BatchNorm1d(3).state_dict()
    assert state._metadata  # type: ignore[attr-defined]
    found = read_pickle(written(tmp_path / "x.pkl", state))
    assert list(found) == list(state)
    assert torch.equal(found["weight"], state["weight"])


def test_a_pipe_is_refused_as_a_pickle(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.pkl")
    with pytest.raises(ValueError, match="is a pipe, expected a file"):
        read_pickle(tmp_path / "x.pkl")
    with pytest.raises(ValueError, match="is a folder, expected a file"):
        read_pickle(tmp_path)


def test_shared_objects_are_read_once(tmp_path: Path) -> None:
    """Thirty lists that each hold the one before twice: 2³⁰ ways to it, which nobody walks."""
    nested: Any = [1]
    for _ in range(30):
        nested = [nested, nested]
    (tmp_path / "shared.pkl").write_bytes(pickle.dumps(nested))
    found = read_pickle(tmp_path / "shared.pkl")
    for _ in range(30):
        assert found[0] is found[1]
        found = found[0]
    assert found == [1]


def test_the_reader_cannot_be_changed(tmp_path: Path) -> None:
    """A state for a function, by which pickles set attributes."""
    change = b"\x80\x02c_codecs\nencode\nN}X\x0c\x00\x00\x00__defaults__X\x04\x00\x00\x00utf8\x85s\x86b0K\x01."
    (tmp_path / "change.pkl").write_bytes(change)
    with pytest.raises(pickle.UnpicklingError, match="refused to change a function"):
        read_pickle(tmp_path / "change.pkl")
