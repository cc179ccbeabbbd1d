"""Read pickles of arrays without running anything that they say.

A pickle is a program for a small machine. The machine here knows the instructions that build arrays, torch tensors,
numbers, strings and plain containers, and no others: a name that a pickle asks for is looked up in a table of our own
and never imported, no object's own methods are called, and what is built is bounded by the size of the file. It knows
nothing of models: the original's checkpoints and concept banks, and data sets that are published as pickles, all come
through here.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import struct
from collections import OrderedDict
from pathlib import Path
from typing import Any, Literal, NoReturn

import numpy as np
import torch

from .foreign_files import check_regular_file
from .pickled_values import Array, DataType, Name, RefusedError, Resolver, Storage, check_sizes, told

_STORAGE_TYPES = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
}  # fmt: skip

_TORCH_MAGIC, _TORCH_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
"""What a storage that torch has pickled begins with."""


def read_pickle(path: str | Path) -> Any:
    """The content of a pickle of arrays, tensors and plain containers.

    Dictionaries and sets may have strings, bytes, numbers, booleans and None as keys and members. Reading takes memory and
    time in proportion to the size of the file.

    Raises `pickle.UnpicklingError` if the file is no such pickle, is truncated, or asks for anything else; the message
    names what it asked for. Raises `ValueError` if there is no file at `path`.
    """
    check_regular_file(path)
    data = Path(path).read_bytes()
    try:
        return Resolver().resolve(_Machine(io.BytesIO(data), _Allowance(len(data))).run())[0]
    except RefusedError as error:
        raise pickle.UnpicklingError(f"{path}: {error}") from None
    except (ValueError, TypeError, KeyError, IndexError, OverflowError, MemoryError, struct.error) as error:
        raise pickle.UnpicklingError(
            f"{path}: got a damaged file or no pickle at all ({type(error).__name__}: {str(error)[:200]}), expected a pickle "
            "of arrays: download it again."
        ) from None


class _Allowance:
    """How much a file may make of itself: instructions, containers and bytes of arrays, each spent as it is used."""

    def __init__(self, file_size: int) -> None:
        self.instructions = 1_000_000 + file_size // 2
        self.left = {"containers": 500_000 + file_size // 32, "bytes of arrays": 65_536 + 4 * file_size}

    def spend(self, what: str, number: int = 1) -> None:
        self.left[what] -= number
        if self.left[what] < 0:
            raise RefusedError(f"refused a file that makes more {what} than one of its size can need.")


class _Machine:
    """Carries out one pickle; `is_storage` says that torch has written it into another one, around a tensor's numbers."""

    def __init__(self, file: io.BytesIO, allowance: _Allowance, *, is_storage: bool = False) -> None:
        self.file, self.allowance, self.is_storage = file, allowance, is_storage
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        """What the pickle leaves on the stack."""
        steps = {name: getattr(self, method) for name, method in _STEPS.items()}
        for opcode, argument, _ in pickletools.genops(self.file):
            self.allowance.instructions -= 1
            if self.allowance.instructions < 0:
                raise RefusedError("refused a file of more instructions than one of its size can need.")
            name = opcode.name
            if name in _LITERALS:
                if type(argument) is int and argument.bit_length() > 2048:
                    raise RefusedError("refused a number of more than 2048 bits.")
                self.stack.append(argument)
            elif name in steps:
                steps[name](argument)
            elif name in _CONSTANTS:
                self.stack.append(_CONSTANTS[name])
            elif name == "STOP":
                if len(self.stack) != 1 or self.marks:
                    raise ValueError("the pickle ends in the middle")
                return self.stack[0]
            elif name not in _IGNORED:
                raise RefusedError(f"refused the instruction {name}: expected arrays and plain containers only.")
        raise ValueError("the pickle has no end")

    def _top(self, kind: type) -> Any:
        if not self.stack or type(self.stack[-1]) is not kind:
            raise ValueError(f"found no {kind.__name__} where the pickle fills one")
        return self.stack[-1]

    def _since_mark(self) -> list[Any]:
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    # The stack, and what is remembered.

    def _mark(self, _: Any) -> None:
        self.marks.append(len(self.stack))

    def _pop(self, _: Any) -> None:
        if self.marks and self.marks[-1] == len(self.stack):
            self.marks.pop()
        else:
            self.stack.pop()

    def _pop_mark(self, _: Any) -> None:
        self._since_mark()

    def _dup(self, _: Any) -> None:
        self.stack.append(self.stack[-1])

    def _memoize(self, _: Any) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def _put(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    _binput = _long_binput = _put

    def _get(self, index: int) -> None:
        self.stack.append(self.memo[index])

    _binget = _long_binget = _get

    # Containers.

    def _push(self, container: Any) -> None:
        self.allowance.spend("containers")
        self.stack.append(container)

    def _empty_list(self, _: Any) -> None:
        self._push([])

    def _empty_tuple(self, _: Any) -> None:
        self._push(())

    def _empty_dict(self, _: Any) -> None:
        self._push({})

    def _empty_set(self, _: Any) -> None:
        self._push(set())

    def _list(self, _: Any) -> None:
        self._push(self._since_mark())

    def _tuple(self, _: Any) -> None:
        self._push(tuple(self._since_mark()))

    def _frozenset(self, _: Any) -> None:
        self._push(frozenset(map(_checked_key, self._since_mark())))

    def _dict(self, _: Any) -> None:
        items = self._since_mark()
        self._push({})
        self._set_items(items)

    def _last(self, number: int) -> None:
        if len(self.stack) < number:
            raise ValueError("a tuple lacks its items")
        items = tuple(self.stack[-number:])
        del self.stack[-number:]
        self._push(items)

    def _tuple1(self, _: Any) -> None:
        self._last(1)

    def _tuple2(self, _: Any) -> None:
        self._last(2)

    def _tuple3(self, _: Any) -> None:
        self._last(3)

    def _append(self, _: Any) -> None:
        item = self.stack.pop()
        self._top(list).append(item)

    def _appends(self, _: Any) -> None:
        items = self._since_mark()
        self._top(list).extend(items)

    def _additems(self, _: Any) -> None:
        items = self._since_mark()
        self._top(set).update(map(_checked_key, items))

    def _setitem(self, _: Any) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set_items([key, value])

    def _setitems(self, _: Any) -> None:
        self._set_items(self._since_mark())

    def _set_items(self, items: list[Any]) -> None:
        if len(items) % 2 or not self.stack or type(self.stack[-1]) not in (dict, OrderedDict):
            raise ValueError("found no dictionary, or no pairs, where the pickle fills one")
        self.stack[-1].update(zip(map(_checked_key, items[::2]), items[1::2]))

    # Names, calls of them, and what is built afterwards.

    def _global(self, name: str) -> None:
        self._find(*name.split(" ", 1))

    def _stack_global(self, _: Any) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self._find(module, name)

    def _find(self, module: Any, name: Any) -> None:
        if type(module) is not str or type(name) is not str:
            raise RefusedError("refused a name that is not text.")
        if self.is_storage and module == "torch" and name in _STORAGE_TYPES:
            self.stack.append(_STORAGE_TYPES[name])
            return
        method = _CALLS.get((module, name))
        if method is None:
            raise RefusedError(
                f"refused to load {module[:100]}.{name[:100]}: expected arrays, torch tensors and plain containers only. "
                "The file may be malicious; do not open it with pickle or torch.load."
            )
        self.stack.append(Name(name, getattr(self, method)))

    def _reduce(self, _: Any) -> None:
        arguments, called = self.stack.pop(), self.stack.pop()
        if type(called) is not Name or type(arguments) is not tuple:
            raise RefusedError(
                "refused to call something that is not a function: expected arrays and plain containers only."
            )
        self._push(called.call(*arguments))

    _newobj = _reduce

    def _build(self, _: Any) -> None:
        state = self.stack.pop()
        built = self.stack[-1]
        if type(built) is DataType:
            built.build(state)
        elif type(built) is Array:
            if type(state) is not tuple or len(state) < 4:
                raise RefusedError("refused an array without its shape, type and bytes.")
            shape, data_type, is_fortran, data = state[-4:]
            built.value = self._array(data, data_type, shape, "F" if is_fortran is True or is_fortran == 1 else "C")
        elif type(built) is Name:
            raise RefusedError("refused to change a function: expected arrays and plain containers only.")
        elif type(built) is not OrderedDict:  # torch hangs the versions of its modules on one, which nobody needs
            raise RefusedError("refused to change an object: expected arrays and plain containers only.")

    def _binpersid(self, _: Any) -> None:
        identity = self.stack.pop()
        if not self.is_storage:
            raise RefusedError(f"refused a persistent id {told(identity)}: expected a self-contained pickle.")
        self.stack.append(identity)

    def _persid(self, argument: str) -> NoReturn:
        raise RefusedError(f"refused a persistent id {told(argument)}: expected a self-contained pickle.")

    # The functions of our table.

    def call_reconstruct(self, *_arguments: Any) -> Array:
        return Array()

    def call_array_type(self, *_arguments: Any) -> NoReturn:
        raise RefusedError("refused a call of numpy.ndarray: expected arrays with their bytes.")

    def call_data_type(self, code: Any, *_flags: Any) -> DataType:
        return DataType(code)

    def _array(self, data: Any, data_type: Any, shape: Any, order: Literal["C", "F"]) -> np.ndarray:
        """An array from raw bytes whose length fits its shape."""
        if type(data_type) is not DataType or type(data) not in (bytes, bytearray):
            raise RefusedError("refused an array that is not made of plain bytes.")
        check_sizes("an array", shape)
        if math.prod(shape) * data_type.value.itemsize != len(data):
            raise RefusedError(f"got {len(data)} bytes for an array of shape {shape} and type {data_type.value}.")
        self.allowance.spend("bytes of arrays", len(data))
        return np.frombuffer(bytearray(data), data_type.value).reshape(shape, order=order)

    def call_from_buffer(self, data: Any, data_type: Any, shape: Any, order: Any) -> np.ndarray:
        """numpy's `_frombuffer`, which protocol 5 uses."""
        return self._array(data, data_type, shape, "F" if type(order) is str and order == "F" else "C")

    def call_scalar(self, data_type: Any, data: Any) -> Any:
        return self._array(data, data_type, (), "C")[()]

    def call_bytes(self) -> bytes:
        """`bytes`, by which old protocols write empty bytes; it takes nothing, so it makes nothing large."""
        return b""

    def call_encode(self, text: Any, encoding: Any = "latin1") -> bytes:
        """`_codecs.encode`, by which protocols 0 to 2 write bytes."""
        if type(text) is not str or type(encoding) is not str or encoding != "latin1":
            raise RefusedError(f"refused text in encoding {told(encoding)}: expected latin1.")
        self.allowance.spend("bytes of arrays", len(text))
        return text.encode("latin1")

    def call_set(self, items: Any = ()) -> set[Any]:
        return set(map(_checked_key, _plain_list(items)))

    def call_frozenset(self, items: Any = ()) -> frozenset[Any]:
        return frozenset(map(_checked_key, _plain_list(items)))

    def call_ordered_dict(self, items: Any = ()) -> OrderedDict[Any, Any]:
        pairs = [tuple(_plain_list(pair)) for pair in _plain_list(items)]
        if any(len(pair) != 2 for pair in pairs):
            raise RefusedError("refused an ordered dictionary that is not made of pairs.")
        self.allowance.spend("containers", len(pairs))
        return OrderedDict((_checked_key(key), value) for key, value in pairs)

    def call_storage(self, data: Any) -> Storage:
        """torch's `_load_from_bytes`, for the numbers of one tensor: five pickles, a count, and the numbers as bytes."""
        if type(data) is not bytes:
            raise RefusedError("refused a torch storage that is not made of bytes.")
        file = io.BytesIO(data)
        start = [_Machine(file, self.allowance, is_storage=True).run() for _ in range(5)]
        magic, protocol, system, identity, keys = start
        whole = type(identity) is tuple and len(identity) == 6 and identity[0] == "storage"
        if not whole or type(magic) is not int or magic != _TORCH_MAGIC or protocol != _TORCH_PROTOCOL:
            raise RefusedError("refused an embedded torch file that is not the numbers of one tensor.")
        _, dtype, key, _location, size, view = identity
        if type(dtype) is not torch.dtype or type(key) is not str or keys != [key] or view is not None:
            raise RefusedError("refused an embedded torch file that is not the numbers of one tensor.")
        if type(system) is not dict or system.get("little_endian") is not True:
            raise RefusedError("refused a torch storage with its bytes in big-endian order.")
        (count,) = struct.unpack("<q", file.read(8))
        numbers = file.read()
        if type(size) is not int or size != count or size * dtype.itemsize != len(numbers):
            raise RefusedError(f"got {len(numbers)} bytes for a torch storage of {told(size)} numbers of {dtype}.")
        self.allowance.spend("bytes of arrays", len(numbers))
        return Storage(torch.frombuffer(bytearray(numbers), dtype=dtype) if numbers else torch.empty(0, dtype=dtype))

    def call_tensor(self, storage: Any, offset: Any, size: Any, stride: Any, *_more: Any) -> torch.Tensor:
        """torch's `_rebuild_tensor_v2`; a view that would leave its storage is refused."""
        if type(storage) is not Storage:
            raise RefusedError("refused a tensor without a storage.")
        check_sizes("a tensor", size, stride, (offset,))
        count = math.prod(size)
        last = offset + sum((n - 1) * step for n, step in zip(size, stride))
        if len(size) != len(stride) or (count and last >= storage.values.numel()) or count > storage.values.numel():
            raise RefusedError("refused a tensor that reaches beyond its storage.")
        self.allowance.spend("bytes of arrays", count * storage.values.element_size())
        return torch.as_strided(storage.values, size, stride, offset if count else 0).clone()


# --- what the machine knows -------------------------------------------------------------------------------------------

_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_IGNORED = {"PROTO", "FRAME"}
_LITERALS = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
    "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8",
    "BINBYTES", "BINBYTES8", "SHORT_BINBYTES", "BYTEARRAY8",
}  # fmt: skip

_STEPS = {
    name: f"_{name.lower()}"
    for name in (
        "MARK", "POP", "POP_MARK", "DUP", "MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT", "GET", "BINGET", "LONG_BINGET",
        "EMPTY_LIST", "EMPTY_TUPLE", "EMPTY_DICT", "EMPTY_SET", "LIST", "TUPLE", "FROZENSET", "DICT",
        "TUPLE1", "TUPLE2", "TUPLE3", "APPEND", "APPENDS", "ADDITEMS", "SETITEM", "SETITEMS",
        "GLOBAL", "STACK_GLOBAL", "REDUCE", "NEWOBJ", "BUILD", "BINPERSID", "PERSID",
    )
}  # fmt: skip
"""Instructions that have a method of the machine's."""

_CALLS = {
    ("numpy", "ndarray"): "call_array_type",  # as an argument of `_reconstruct`
    ("numpy", "dtype"): "call_data_type",
    ("collections", "OrderedDict"): "call_ordered_dict",
    ("_codecs", "encode"): "call_encode",
    ("torch._utils", "_rebuild_tensor_v2"): "call_tensor",
    ("torch.storage", "_load_from_bytes"): "call_storage",
}
for _builtins in ("builtins", "__builtin__"):  # protocols 0 to 3 spell these out as calls
    _CALLS[_builtins, "bytes"] = "call_bytes"
    _CALLS[_builtins, "set"] = "call_set"
    _CALLS[_builtins, "frozenset"] = "call_frozenset"
for _core in ("numpy.core", "numpy._core"):  # NumPy 1 and 2 write different names
    _CALLS[f"{_core}.multiarray", "_reconstruct"] = "call_reconstruct"
    _CALLS[f"{_core}.multiarray", "scalar"] = "call_scalar"
    _CALLS[f"{_core}.numeric", "_frombuffer"] = "call_from_buffer"

_LARGEST_KEY = 1 << 60
"""Below it, different integers have different hashes: no file can make a dictionary slow."""


def _checked_key(key: Any) -> Any:
    """A key of a dictionary or a member of a set: plain, so that its hash is quick and its own."""
    if type(key) in (str, bytes, float, bool, type(None)) or (type(key) is int and abs(key) < _LARGEST_KEY):
        return key
    raise RefusedError(f"refused {told(key)} as a key: expected text, bytes or a number.")


def _plain_list(items: Any) -> Any:
    if type(items) not in (list, tuple):
        raise RefusedError("refused a container that is not made of a list.")
    return items
