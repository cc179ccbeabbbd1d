"""Read pickles of arrays without running anything that they say.

A pickle is a program. This reader lets one build arrays, torch tensors, numbers, strings and plain containers; any
other name it asks for is refused before it is looked up, and nothing of it is imported or called. Knows nothing of
models: the original's checkpoints and concept banks, and data sets that are published as pickles, all come through here.
"""

from __future__ import annotations

import io
import math
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any, Literal, NoReturn

import numpy as np
import torch

_ALLOWED_KINDS = "biuf"  # booleans, integers, unsigned integers, floats


def read_pickle(path: str | Path) -> Any:
    """The content of a pickle of arrays, tensors and plain containers.

    Raises `pickle.UnpicklingError` if the file is no such pickle, is truncated, or asks for anything else; the message
    names what it asked for.
    """
    data = Path(path).read_bytes()
    try:
        return _resolve(_RestrictedUnpickler(io.BytesIO(data)).load())
    except _RefusedError as error:
        raise pickle.UnpicklingError(f"{path}: {error}") from None
    except (
        pickle.UnpicklingError, EOFError, ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError,
        MemoryError, ImportError, RecursionError, RuntimeError, UnicodeDecodeError,
    ) as error:  # fmt: skip
        raise pickle.UnpicklingError(
            f"{path}: got a damaged file or no pickle at all ({type(error).__name__}: {error}), expected a pickle of "
            "arrays: download it again."
        ) from None


class _RefusedError(pickle.UnpicklingError):
    """What this reader will not have, told apart from what it cannot make out."""


class _RestrictedUnpickler(pickle.Unpickler):
    """Looks names up in a table of our own stand-ins; the pickle never gets hold of a real module's function."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            found = _STAND_INS[module, name]
            return found if found in (set, frozenset, OrderedDict) else _StandIn(found)
        except KeyError:
            raise _RefusedError(
                f"refused to load {module}.{name}: expected arrays, torch tensors and plain containers only. "
                "The file may be malicious; do not open it with pickle or torch.load."
            ) from None

    def persistent_load(self, pid: Any) -> NoReturn:
        raise _RefusedError(f"refused a persistent id ({str(pid)[:80]}): expected a self-contained pickle.")


class _StandIn:
    """Passes calls on to a stand-in and keeps nothing: a pickle that would set attributes on it is refused."""

    __slots__ = ("call",)

    def __init__(self, call: Any) -> None:
        self.call = call

    def __call__(self, *arguments: Any) -> Any:
        return self.call(*arguments)

    def __setstate__(self, state: Any) -> NoReturn:
        raise _RefusedError("refused to change a function: expected arrays and plain containers only.")


class _DataType:
    """Stands in for numpy.dtype: `dtype("f4", …)` and then a state that carries the byte order."""

    def __init__(self, code: str, *_flags: Any) -> None:
        self.value = np.dtype(code) if isinstance(code, str) else None
        if self.value is None or self.value.kind not in _ALLOWED_KINDS:
            raise _RefusedError(f"refused an array of type {code!r}: expected numbers or booleans.")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        order = state[1]
        if order not in ("<", ">", "|", "="):
            raise _RefusedError(f"refused an array type with byte order {order!r}.")
        assert self.value is not None
        self.value = self.value.newbyteorder(order)


class _Array:
    """Stands in for numpy's `_reconstruct`: made empty, then given (version, shape, dtype, is_fortran, bytes)."""

    def __init__(self, *_arguments: Any) -> None:
        self.value: np.ndarray | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        shape, data_type, is_fortran, data = state[-4:]
        self.value = _array(data, data_type, shape, "F" if is_fortran else "C")


def _array(data: Any, data_type: Any, shape: Any, order: Literal["C", "F"]) -> np.ndarray:
    """An array from raw bytes whose length fits its shape."""
    if not isinstance(data_type, _DataType) or not isinstance(data, (bytes, bytearray)):
        raise _RefusedError("refused an array that is not made of plain bytes.")
    assert data_type.value is not None
    if math.prod(shape) * data_type.value.itemsize != len(data):
        raise _RefusedError(f"got {len(data)} bytes for an array of shape {shape} and type {data_type.value}.")
    return np.frombuffer(bytearray(data), data_type.value).reshape(shape, order=order)


def _from_buffer(data: Any, data_type: Any, shape: Any, order: Any) -> np.ndarray:
    """Stands in for numpy's `_frombuffer`, which protocol 5 uses."""
    return _array(data, data_type, shape, "F" if order == "F" else "C")


def _scalar(data_type: Any, data: bytes) -> Any:
    """Stands in for numpy's `scalar`."""
    return _array(data, data_type, (), "C")[()]


def _no_bytes() -> bytes:
    """Stands in for `bytes`, by which old protocols write empty bytes; it takes nothing, so it makes nothing large."""
    return b""


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """Stands in for `_codecs.encode`, by which protocols 0 to 2 write bytes."""
    if encoding != "latin1":
        raise _RefusedError(f"refused text in encoding {encoding!r}: expected latin1.")
    return text.encode("latin1")


def _tensor_from_bytes(data: bytes) -> Any:
    """Stands in for torch's `_load_from_bytes`: the inner file is read in torch's own restricted way."""
    try:
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # whatever is wrong with it, it is refused
        raise _RefusedError(f"refused an embedded torch storage: {str(error).splitlines()[0]}") from None


def _rebuild_tensor(
    storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_more: Any
) -> torch.Tensor:
    """Stands in for `torch._utils._rebuild_tensor_v2`; a view that would leave its storage is refused."""
    if not isinstance(storage, torch.storage.TypedStorage):
        raise _RefusedError("refused a tensor without a storage.")
    if offset < 0 or len(size) != len(stride) or min((*size, *stride), default=0) < 0:
        raise _RefusedError("refused a tensor of negative size.")
    if math.prod(size) > storage.size():
        raise _RefusedError("refused a tensor that is larger than its storage.")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride))
    if math.prod(size) and last >= storage.size():
        raise _RefusedError("refused a tensor that reaches beyond its storage.")
    return torch.empty(0, dtype=storage.dtype).set_(storage, offset, size, stride).clone()


class _ArrayType:
    """Stands in for the name `numpy.ndarray`, an argument of `_reconstruct`; the pickle must not call it."""

    def __init__(self, *_arguments: Any) -> None:
        raise _RefusedError("refused a call of numpy.ndarray: expected arrays with their bytes.")


_STAND_INS: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _ArrayType,
    ("numpy", "dtype"): _DataType,
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): _encode,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch.storage", "_load_from_bytes"): _tensor_from_bytes,
}
for _builtins in ("builtins", "__builtin__"):  # protocols 0 to 3 spell these out as calls
    _STAND_INS[_builtins, "bytes"] = _no_bytes
    _STAND_INS[_builtins, "set"] = set
    _STAND_INS[_builtins, "frozenset"] = frozenset
for _core in ("numpy.core", "numpy._core"):  # NumPy 1 and 2 write different names
    _STAND_INS[f"{_core}.multiarray", "_reconstruct"] = _Array
    _STAND_INS[f"{_core}.multiarray", "scalar"] = _scalar
    _STAND_INS[f"{_core}.numeric", "_frombuffer"] = _from_buffer


def _resolve(value: Any, known: dict[int, Any] | None = None) -> Any:
    """Replace stand-ins by the arrays they became, inside containers; what is referred to twice is looked at once."""
    known = {} if known is None else known
    if id(value) in known:
        return known[id(value)]
    if isinstance(value, _Array):
        if value.value is None:
            raise _RefusedError("got an array without its content.")
        return value.value
    if isinstance(value, (_DataType, type)) or callable(value):
        raise _RefusedError("refused a bare type or function: expected arrays and plain containers only.")
    if isinstance(value, dict):
        known[id(value)] = type(value)((_resolve(k, known), _resolve(v, known)) for k, v in dict.items(value))
    elif isinstance(value, (list, tuple, set, frozenset)):
        known[id(value)] = type(value)(_resolve(item, known) for item in value)
    return known.get(id(value), value)
