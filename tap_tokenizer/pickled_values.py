"""What a pickle may build: stand-ins while it is read, arrays in their place when it has been.

A stand-in belongs to `restricted_pickle.py` alone: nothing of a pickle's own is ever called or changed.
"""

from __future__ import annotations

import pickle
import re
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

MAX_DEPTH = 100
"""Containers within containers."""

_NUMBER_TYPE = re.compile(r"[<>|=]?[biuf]\d{1,2}")
"""NumPy's codes of booleans, integers, unsigned integers and floats."""


class RefusedError(pickle.UnpicklingError):
    """What this reader will not have, told apart from what it cannot make out."""


class DataType:
    """`numpy.dtype`: a code such as "f4", and then a state that carries the byte order."""

    def __init__(self, code: Any) -> None:
        if type(code) is not str or not _NUMBER_TYPE.fullmatch(code):
            raise RefusedError(f"refused an array of type {told(code)}: expected numbers or booleans.")
        try:
            self.value = np.dtype(code)
        except TypeError:  # there is no such size
            raise RefusedError(f"refused an array of type {code!r}: NumPy has none.") from None

    def build(self, state: Any) -> None:
        order = state[1] if type(state) is tuple and len(state) > 1 else None
        if type(order) is not str or order not in ("<", ">", "|", "="):
            raise RefusedError(f"refused an array type with byte order {told(order)}.")
        self.value = self.value.newbyteorder(order)  # type: ignore[arg-type]  # one of NumPy's


class Array:
    """What numpy's `_reconstruct` gives: made empty, then built from (version, shape, dtype, is_fortran, bytes)."""

    value: np.ndarray | None = None


@dataclass(frozen=True)
class Storage:
    """The numbers of a torch tensor, as one row."""

    values: torch.Tensor


@dataclass(frozen=True)
class Name:
    """A name that a pickle has asked for: one of our table, which can be called and nothing else."""

    name: str
    call: Callable[..., Any]


def told(value: Any) -> str:
    """A value in a message: itself if it is short and plain, else its type."""
    return (
        repr(value)[:80] if type(value) in (str, bytes, int, float, bool, type(None)) else f"({type(value).__name__})"
    )


def check_sizes(what: str, *tuples: Any) -> None:
    """Refuse sizes that are not tuples of plain, non-negative integers."""
    for sizes in tuples:
        if type(sizes) is not tuple or len(sizes) > 32 or any(type(n) is not int or n < 0 for n in sizes):
            raise RefusedError(f"refused {what} whose sizes are not a short tuple of non-negative integers.")


_LEAVES = frozenset({str, bytes, bytearray, int, float, bool, type(None), set, frozenset, np.ndarray, torch.Tensor})


class Resolver:
    """Replaces stand-ins by the arrays they became, inside containers; what is referred to twice is looked at once."""

    def __init__(self) -> None:
        self.found: dict[int, tuple[Any, int] | None] = {}
        """Of each container that was met: what it became and how deep it is; None while it is looked at."""
        self.replaced: list[Any] = []
        """Tuples that others took the place of: as long as they live, nothing else has their identity."""

    def resolve(self, value: Any, depth: int = 0) -> tuple[Any, int]:
        """What a value becomes, and how many containers lie in one another in it."""
        kind = type(value)
        if kind in (Array, DataType, Name, Storage, torch.dtype):
            return _finished(value), 0
        if kind not in (list, tuple, dict, OrderedDict):
            return value, 0
        known = id(value)
        if known not in self.found:
            if depth >= MAX_DEPTH:
                raise RefusedError(f"refused containers that lie more than {MAX_DEPTH} deep.")
            self.found[known] = None
            became, height = self._resolve_items(value, depth + 1)
            if became is not value:
                self.replaced.append(value)
            self.found[known] = became, height + 1
        found = self.found[known]
        if found is None:
            raise RefusedError("refused a container that holds itself.")
        if depth + found[1] > MAX_DEPTH:
            raise RefusedError(f"refused containers that lie more than {MAX_DEPTH} deep.")
        return found

    def _resolve_items(self, value: Any, depth: int) -> tuple[Any, int]:
        """A container with its items replaced, in place unless it is a tuple, and the depth of the deepest of them."""
        items: Any = list(value) if type(value) is tuple else value
        height, changed = 0, False
        for place, item in items.items() if isinstance(items, dict) else enumerate(items):
            if type(item) not in _LEAVES:
                became, own = self.resolve(item, depth)
                height = max(height, own)
                if became is not item:
                    items[place], changed = became, True
        return (tuple(items) if changed and type(value) is tuple else value), height


def _finished(value: Any) -> np.ndarray:
    """The array that a stand-in became; nothing else of ours may be left in what a pickle builds."""
    if type(value) is not Array:
        raise RefusedError("refused a bare type or function: expected arrays and plain containers only.")
    if value.value is None:
        raise RefusedError("got an array without its content.")
    return value.value
