"""GGUF files: which one a model's name stands for, whether it is whole, and where it is unpacked to.

Opening a file with the `gguf` package takes seconds for its vocabulary alone, and transformers opens it once for the
configuration, once for the tokenizer and once for the weights. So each file is unpacked once, into a folder of the user's
cache that is loaded like any other.
"""

from __future__ import annotations

import hashlib
import os
import struct
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from huggingface_hub import cached_assets_path

_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of a number, by the type that GGUF writes for it."""
_STRING, _ARRAY = 8, 9
_MOST_VALUES = 8_000_000
"""Values of all lists; the largest vocabularies have a quarter of a million words and half a million merges."""


def gguf_of(source: str | Path) -> Path | None:
    """The GGUF file at a path: the file itself, or the only one in a folder without other weights. None for all else."""
    path = Path(source)
    if not path.is_dir():
        return path if path.suffix == ".gguf" and path.exists() else None
    files = sorted(path.glob("*.gguf"))
    if not files or any(path.glob("*.safetensors")) or any(path.glob("*.bin")):
        return None
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise ValueError(f"{source} holds {len(files)} GGUF files ({names}): give one of them, for example {files[0]}.")
    return files[0]


def unpacked_folder(gguf: Path) -> Path:
    """Where a GGUF file is unpacked to: a folder of Hugging Face's cache that is named after the file and its content."""
    status = gguf.stat()
    digest = _digest(str(gguf.resolve()), status.st_size, status.st_mtime_ns)
    return cached_assets_path("tap-bridge", "gguf", f"{gguf.stem}-{digest[:12]}") / "model"


@lru_cache(maxsize=8)
def _digest(path: str, size: int, changed: int) -> str:
    """SHA-256 of a file; size and time of its last change let a changed file be read again."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def check_gguf(gguf: Path) -> None:
    """Refuse (`ValueError`) a file that is not GGUF, that ends too early, or whose lists would fill memory."""
    try:
        with open(gguf, "rb") as file:
            _read_over_metadata(file)
    except (struct.error, KeyError) as error:
        raise ValueError(f"{gguf} is not a whole GGUF file: copy or download it again.") from error


def _read_over_metadata(file: BinaryIO) -> None:
    magic, version, tensors, fields = struct.unpack("<4sIQQ", file.read(24))
    if magic != b"GGUF":
        raise ValueError(f"{file.name} is not a GGUF file: it begins with {magic!r}.")
    if version not in (2, 3):
        raise ValueError(
            f"{file.name} has GGUF version {version}, expected 2 or 3, with the least significant byte first."
        )
    if max(tensors, fields) > 100_000:
        raise ValueError(f"{file.name} has {tensors} weights and {fields} fields: no trained model has that many.")
    size, values = os.fstat(file.fileno()).st_size, 0
    for _ in range(fields):
        _skip(file, _number(file, "<Q"))
        kind, count = _number(file, "<I"), 1
        if kind == _ARRAY:
            kind, count = _number(file, "<I"), _number(file, "<Q")
            values += count
        if values > _MOST_VALUES:
            raise ValueError(
                f"{file.name} has lists of more than {_MOST_VALUES:,} values: no trained model has such lists."
            )
        if kind == _STRING:
            for _ in range(count):
                _skip(file, _number(file, "<Q"))
        else:
            _skip(file, count * _SIZES[kind])
        if file.tell() > size:
            raise ValueError(f"{file.name} ends in the middle of its metadata: copy or download it again.")


def _number(file: BinaryIO, kind: str) -> int:
    return int(struct.unpack(kind, file.read(struct.calcsize(kind)))[0])


def _skip(file: BinaryIO, count: int) -> None:
    if count > 1 << 40:
        raise struct.error("a length that no file has")
    file.seek(count, os.SEEK_CUR)
