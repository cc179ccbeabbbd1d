"""Pickles are programs; ours run nothing. A dozen and more hostile ones are tried, with a witness that would tell."""

from __future__ import annotations

import collections
import contextlib
import io
import os
import pickle
import pickletools
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

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


def test_a_claim_of_huge_size_costs_nothing(tmp_path: Path) -> None:
    claim = b"\x80\x04\x8e" + struct.pack("<Q", 2**60) + b"abc."
    with pytest.raises(pickle.UnpicklingError):
        read_pickle(written(tmp_path / "x.pkl", claim))


def test_endless_nesting_is_refused(tmp_path: Path) -> None:
    with pytest.raises(pickle.UnpicklingError):
        read_pickle(written(tmp_path / "x.pkl", b"]" * 100_000 + b"a" * 99_999 + b"."))
    selfish: list[Any] = []
    selfish.append(selfish)
    with pytest.raises(pickle.UnpicklingError):
        read_pickle(written(tmp_path / "y.pkl", selfish))


def test_what_is_shared_is_read_once(tmp_path: Path) -> None:
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
