"""Folders of pictures → `RegionIndex`: goes on after a stop, and later takes in what is new and what has changed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import numpy as np
from tqdm import tqdm

from .counts import counted
from .image_processing_tap import load_rgb
from .output_files import only_writer
from .picture_folders import PictureRegions
from .region_index import RegionIndex
from .region_tokenizer import TapRegionTokenizer
from .region_tokens import RegionTokens

PART = 32
"""After how many pictures the work so far is written down."""

FindRegions: TypeAlias = "Callable[[PictureRegions, np.ndarray], RegionTokens]"
"""A picture and its pixels (H, W, 3) → its regions."""


@dataclass
class IndexReport:
    """What became of each picture of a folder, by name; `unread` says why."""

    added: list[str] = field(default_factory=list)
    replaced: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    vanished: list[str] = field(default_factory=list)
    unread: dict[str, str] = field(default_factory=dict)


def index_folder(
    pictures: Sequence[PictureRegions],
    output: str | Path,
    tokenizer: TapRegionTokenizer,
    find: FindRegions,
    *,
    notes: dict[str, str],
    hints: dict[str, str] | None = None,
    with_tokens: bool = False,
    captions: bool = True,
    remove_vanished: bool = False,
) -> IndexReport:
    """Bring an index up to date with a folder's pictures (`pictures_of`, `read_region_table`), or make it.

    A picture that the index has is passed over if its file and the regions that were given for it are the same, and encoded
    again if they are not. One that is no longer there is named, and leaves the index only if `remove_vanished` says so. One
    that cannot be read is named, and what the index had of it stays.
    find: gives the regions of a picture. Captions and, if there is a concept bank, names are those of the tokenizer.
    notes: what the regions depend on besides; an index with others is refused (`ValueError`). hints: further notes, which may
    change, such as where the tokenizer is found.

    What has been done is written to the folder `output` + ".parts" every few pictures and when it stops; the next call goes on
    there. `output` changes at the end, at once.
    """
    output = Path(output)
    folder = output.with_name(output.name + ".parts")
    with only_writer(output):
        writer = _Writer(folder, tokenizer, find, notes, with_tokens, captions)
        index = writer.read(output) if output.exists() else RegionIndex(with_tokens=with_tokens)
        report, waiting = writer.compare(pictures, index)
        writer.write(waiting, report)
        gone = {*writer.done, *(report.vanished if remove_vanished else ())}
        if gone:
            index = index.without(gone)
            for _, part in writer.parts():
                index.extend(part)
        if index.fingerprint is None:
            if not report.unread:
                raise ValueError("Got no pictures, expected at least one.")
            raise ValueError(
                f"Got {counted(len(pictures), 'picture')}, none of which can be read: {next(iter(report.unread.values()))}"
            )
        noted = {**index.notes, **(hints or {}), **writer.about}
        if gone or noted != index.notes:
            index.notes = noted
            index.save(output)
        shutil.rmtree(folder, ignore_errors=True)
    return report


class _Writer:
    """Writes the regions of pictures to the files of a folder, of which each is a small index that is whole.

    done: the stamps of the pictures in these files, by name.
    """

    def __init__(
        self,
        folder: Path,
        tokenizer: TapRegionTokenizer,
        find: FindRegions,
        notes: dict[str, str],
        with_tokens: bool,
        captions: bool,
    ) -> None:
        self.folder, self.tokenizer, self.find, self.with_tokens = folder, tokenizer, find, with_tokens
        self.captions = captions and tokenizer.text_tokenizer is not None
        concepts = tokenizer.concepts.digest if tokenizer.concepts is not None else ""
        self.about = {**notes, "captions": str(self.captions), "concepts": concepts}
        self.done: dict[str, str] = {}

    def read(self, path: Path) -> RegionIndex:
        """An index that was made as this one is; `ValueError` for another."""
        index = RegionIndex.load(path)
        if index.with_tokens != self.with_tokens or index.fingerprint != self.tokenizer.fingerprint:
            changed = "vectors" if index.fingerprint == self.tokenizer.fingerprint else "region tokenizer"
        else:
            changed = ", ".join(key for key in self.about if index.notes.get(key, "") != self.about[key])
        if changed:
            raise ValueError(
                f"{path} was made with different {changed}: continue with the same ones, or give another output."
            )
        return index

    def parts(self) -> Iterator[tuple[Path, RegionIndex]]:
        """The folder's files, and the index in each."""
        return ((path, self.read(path)) for path in sorted(self.folder.glob("*.safetensors")))

    def compare(
        self, pictures: Sequence[PictureRegions], index: RegionIndex
    ) -> tuple[IndexReport, list[tuple[PictureRegions, str]]]:
        """What is to be done: a report, and the pictures that wait for it, with their stamps."""
        report, waiting = IndexReport(), []
        indexed = {picture.name: picture.stamp for picture in index.pictures}
        written = {picture.name: picture.stamp for _, part in self.parts() for picture in part.pictures}
        for picture in pictures:
            name = picture.image
            stamp = _stamp(picture, [written.get(name, ""), indexed.get(name, "")])
            if stamp == written.get(name):
                self.done[name] = stamp
            elif stamp == indexed.get(name):
                report.unchanged.append(name)
                continue
            else:
                waiting.append((picture, stamp))
            (report.replaced if name in indexed else report.added).append(name)
        for path, part in self.parts():  # of a run that was stopped, without what has changed since
            stale = [picture.name for picture in part.pictures if picture.name not in self.done]
            if len(stale) == len(part.pictures):
                path.unlink()
            elif stale:
                self._save(part.without(stale), path)
        there = {picture.image for picture in pictures}
        report.vanished = [name for name in indexed if name not in there]
        return report, waiting

    def write(self, waiting: Sequence[tuple[PictureRegions, str]], report: IndexReport) -> None:
        """Encode pictures and write them down, a file for every few; also if it is stopped."""
        self.folder.mkdir(exist_ok=True)
        numbers = [int(path.stem) for path in self.folder.glob("*.safetensors")]
        number = max(numbers, default=-1) + 1  # their count may be one of them, as parts that are out of date are gone
        part = RegionIndex(with_tokens=self.with_tokens)
        begun = len(self.done)
        try:
            for picture, stamp in tqdm(
                waiting, initial=begun, total=begun + len(waiting), unit="picture", disable=None
            ):
                try:
                    pixels = load_rgb(picture.path)
                except ValueError as error:
                    report.unread[picture.image] = str(error)
                    continue
                self._add(part, picture, stamp, pixels)
                if len(part.pictures) >= PART:
                    self._save(part, self._path(number))
                    number, part = number + 1, RegionIndex(with_tokens=self.with_tokens)
        finally:
            if part.pictures:
                self._save(part, self._path(number))
        for names in (report.added, report.replaced):
            names[:] = [name for name in names if name not in report.unread]

    def _add(self, part: RegionIndex, picture: PictureRegions, stamp: str, pixels: np.ndarray) -> None:
        regions = self.find(picture, pixels)
        best = self.tokenizer.classify(regions, 1) if self.tokenizer.concepts is not None and len(regions) else []
        part.add(
            regions,
            [picture.image],
            captions=self.tokenizer.caption(regions) if self.captions and len(regions) else None,
            names=[own[0][0] for own in best] or None,
            stamps=[stamp],
        )
        self.done[picture.image] = stamp

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:06}.safetensors"

    def _save(self, part: RegionIndex, path: Path) -> None:
        part.notes = self.about
        part.save(path)


def _stamp(picture: PictureRegions, known: Sequence[str]) -> str:
    """What identifies a picture's file and its given regions: size, time, content and regions, or one of `known` that does.

    If size and time are as they were, the file is not read.
    """
    regions = _digest(json.dumps(picture.regions, sort_keys=True, default=str).encode())
    try:
        status = os.stat(picture.path)
        quick = f"{status.st_size} {status.st_mtime_ns}"
        for stamp in known:
            if stamp.startswith(f"{quick} ") and stamp.endswith(f" {regions}"):
                return stamp
        content = _digest(picture.path.read_bytes())
    except OSError:  # it is named when its turn has come
        return ""
    ending = f" {content} {regions}"
    return next((stamp for stamp in known if stamp.endswith(ending)), quick + ending)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:24]
